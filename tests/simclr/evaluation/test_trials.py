"""Choices are made on validation, and the test split is only predicted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simclr.evaluation.metrics import best_thresholds
from simclr.evaluation.splits import Split
from simclr.evaluation.task import Footprints, Task
from simclr.evaluation.trials import KNN, PROBE, Subject, try_knn, try_probe

SPLIT = Split(np.arange(0, 60), np.arange(60, 90), np.arange(90, 140))


def make_task(kind="single", num_classes=3):
    """A task whose labels the first features tell, with noise."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(140, 8)).astype(np.float32)
    if kind == "single":
        labels = (features[:, :num_classes] + 0.3 * rng.normal(size=(140, num_classes))).argmax(1)
        truth = np.eye(num_classes, dtype=bool)[labels]
    else:
        truth = features[:, :num_classes] + 0.3 * rng.normal(size=(140, num_classes)) > 0.8
    blank = np.full(140, "")
    classes = tuple(f"class {c}" for c in range(num_classes))
    ids = np.array([f"s/{i}" for i in range(140)])
    nowhere = Footprints(np.zeros(140, np.int32), np.zeros(140), np.zeros(140), 0.0)
    task = Task("land", kind, classes, truth, ids, blank, blank, blank, nowhere, blank, 0)
    return task, Subject("net", 4, features)


def try_both(task, subject):
    return [try_probe(subject, task, SPLIT), try_knn(subject, task, SPLIT, 5)]


@pytest.mark.parametrize(("kind", "num_classes"), [("single", 3), ("binary", 1), ("multi", 3)])
def test_both_protocols_learn_what_the_features_tell(kind, num_classes):
    task, subject = make_task(kind, num_classes)
    for trial, protocol in zip(try_both(task, subject), (PROBE, KNN), strict=True):
        assert (trial.encoder, trial.protocol, trial.seed) == ("net", protocol, 4)
        assert trial.answers.scores.shape == trial.answers.predicted.shape == (50, num_classes)
        np.testing.assert_array_equal(trial.truth, task.truth[SPLIT.test])
        assert (
            trial.answers.scores[trial.truth].mean()
            > trial.answers.scores[~trial.truth].mean() + 0.1
        )


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_truth_of_the_test_split_changes_no_prediction(kind):
    task, subject = make_task(kind)
    scrambled = task.truth.copy()
    scrambled[SPLIT.test] = scrambled[SPLIT.test][::-1]
    other = dataclasses.replace(task, truth=scrambled)
    for seen, blind in zip(try_both(task, subject), try_both(other, subject), strict=True):
        np.testing.assert_array_equal(seen.answers.scores, blind.answers.scores)
        np.testing.assert_array_equal(seen.answers.predicted, blind.answers.predicted)
        assert seen.choices == blind.choices


def test_thresholds_are_the_best_ones_of_validation():
    task, subject = make_task("multi")
    everything = Split(SPLIT.train, SPLIT.validation, SPLIT.validation)
    trial = try_knn(subject, task, everything, 5)
    found = trial.choices["thresholds"]
    np.testing.assert_array_equal(found, best_thresholds(task.truth[60:90], trial.answers.scores))
    np.testing.assert_array_equal(trial.answers.predicted, trial.answers.scores >= found)


def test_a_penalty_at_the_end_of_the_grid_is_marked():
    task, subject = make_task()
    noise = np.random.default_rng(1).normal(size=(140, 60)).astype(np.float32)
    trial = try_probe(dataclasses.replace(subject, features=noise), task, SPLIT)
    at_end = trial.choices["penalty"] in (10.0, 1e-5)
    assert trial.choices["penalty_at_end_of_grid"] == at_end
    assert trial.choices["converged"] is True


def test_fewer_training_patches_than_neighbours_are_counted_as_they_are():
    task, subject = make_task()
    split = Split(np.arange(4), SPLIT.validation, SPLIT.test)
    assert try_knn(subject, task, split, 20).choices["neighbours"] == 4


def test_validation_without_a_positive_still_gives_an_answer():
    task, subject = make_task("binary", 1)
    truth = task.truth.copy()
    truth[SPLIT.validation] = False
    for trial in try_both(dataclasses.replace(task, truth=truth), subject):
        assert trial.choices["thresholds"] == [0.5]


def test_a_common_offset_of_all_features_changes_no_neighbour():
    task, subject = make_task()
    shifted = dataclasses.replace(subject, features=1000 + 3 * subject.features)
    plain, moved = (try_knn(each, task, SPLIT, 5) for each in (subject, shifted))
    np.testing.assert_allclose(moved.answers.scores, plain.answers.scores, atol=0.01)
