"""Choices are made on validation, and the test split is only predicted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simclr.evaluation.baselines import EvalData, EvalJob, EvaluatedEncoder
from simclr.evaluation.config import EvaluateConfig, Protocol
from simclr.evaluation.metrics import best_thresholds
from simclr.evaluation.probes import knn, linear_probe
from simclr.evaluation.splits import Split
from simclr.evaluation.task import Footprints, Task

KNN, PROBE = Protocol.knn.value, Protocol.probe.value
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
    return task, features


def try_probe(features, task, split):
    job = EvalJob(EvaluatedEncoder("net", None, None), Protocol.probe, 1.0, 4, split)
    return linear_probe(job, EvalData(task, {"net": features}.__getitem__, EvaluateConfig()))


def try_knn(features, task, split, neighbours):
    job = EvalJob(EvaluatedEncoder("net", None, None), Protocol.knn, 1.0, 4, split)
    config = EvaluateConfig(neighbours=neighbours)
    return knn(job, EvalData(task, {"net": features}.__getitem__, config))


def try_both(task, features):
    return [try_probe(features, task, SPLIT), try_knn(features, task, SPLIT, 5)]


@pytest.mark.parametrize(("kind", "num_classes"), [("single", 3), ("binary", 1), ("multi", 3)])
def test_both_protocols_learn_what_the_features_tell(kind, num_classes):
    task, features = make_task(kind, num_classes)
    for result, protocol in zip(try_both(task, features), (PROBE, KNN), strict=True):
        assert (result.encoder, result.protocol, result.seed) == ("net", protocol, 4)
        assert (
            result.predictions.scores.shape
            == result.predictions.predicted.shape
            == (50, num_classes)
        )
        np.testing.assert_array_equal(result.targets, task.targets[SPLIT.test])
        assert (
            result.predictions.scores[result.targets].mean()
            > result.predictions.scores[~result.targets].mean() + 0.1
        )


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_truth_of_the_test_split_changes_no_prediction(kind):
    task, features = make_task(kind)
    scrambled = task.targets.copy()
    scrambled[SPLIT.test] = scrambled[SPLIT.test][::-1]
    other = dataclasses.replace(task, targets=scrambled)
    for seen, blind in zip(try_both(task, features), try_both(other, features), strict=True):
        np.testing.assert_array_equal(seen.predictions.scores, blind.predictions.scores)
        np.testing.assert_array_equal(seen.predictions.predicted, blind.predictions.predicted)
        assert seen.choices == blind.choices


def test_thresholds_are_the_best_ones_of_validation():
    task, features = make_task("multi")
    everything = Split(SPLIT.train, SPLIT.validation, SPLIT.validation)
    result = try_knn(features, task, everything, 5)
    found = result.choices["thresholds"]
    np.testing.assert_array_equal(
        found, best_thresholds(task.targets[60:90], result.predictions.scores)
    )
    np.testing.assert_array_equal(result.predictions.predicted, result.predictions.scores >= found)


def test_a_penalty_at_the_end_of_the_grid_is_marked():
    task, _ = make_task()
    noise = np.random.default_rng(1).normal(size=(140, 60)).astype(np.float32)
    result = try_probe(noise, task, SPLIT)
    at_end = result.choices["penalty"] in (10.0, 1e-5)
    assert result.choices["penalty_at_end_of_grid"] == at_end
    assert result.choices["converged"] is True


def test_fewer_training_patches_than_neighbours_are_counted_as_they_are():
    task, features = make_task()
    split = Split(np.arange(4), SPLIT.validation, SPLIT.test)
    assert try_knn(features, task, split, 20).choices["neighbours"] == 4


def test_validation_without_a_positive_still_gives_an_answer():
    task, features = make_task("binary", 1)
    truth = task.targets.copy()
    truth[SPLIT.validation] = False
    for result in try_both(dataclasses.replace(task, targets=truth), features):
        assert result.choices["thresholds"] == [0.5]


def test_a_common_offset_of_all_features_changes_no_neighbour():
    task, features = make_task()
    shifted = 1000 + 3 * features
    plain, moved = (try_knn(each, task, SPLIT, 5) for each in (features, shifted))
    np.testing.assert_allclose(moved.predictions.scores, plain.predictions.scores, atol=0.01)
