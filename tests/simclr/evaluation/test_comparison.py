"""Rows are means over seeds with paired differences; a difference counts only if all agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simclr.evaluation.baselines import EvalResult
from simclr.evaluation.bootstrap import choose_blocks, compare, score_results
from simclr.evaluation.metrics import Predictions

NUM_SAMPLES = 200


def make_trial(encoder, seed, test, skill):
    """A result of a two-class task whose answers are right with probability ``skill``."""
    labels = np.arange(NUM_SAMPLES)[test] % 2
    # the same patches are hard for everyone: that is what pairing takes out
    hard = np.random.default_rng(0).random(NUM_SAMPLES)[test]
    chosen = np.where(hard < skill, labels, 1 - labels)
    truth, predicted = np.eye(2, dtype=bool)[labels], np.eye(2, dtype=bool)[chosen]
    return EvalResult(
        encoder,
        "linear probe",
        seed,
        test,
        truth,
        Predictions(predicted.astype(float), predicted),
        {},
    )


def rows_of(results, num_resamples=200):
    tested = np.unique(np.concatenate([result.test for result in results]))
    rows = score_results(results, "single", tested, choose_blocks({}, len(tested)), num_resamples)
    return {row.encoder: row for row in rows}


def drawn_tests(num_seeds=3):
    rng = np.random.default_rng(2)
    return [np.sort(rng.permutation(NUM_SAMPLES)[:60]) for _ in range(num_seeds)]


def test_a_row_is_the_mean_over_its_seeds():
    tests = drawn_tests()
    results = [make_trial("a", seed, test, 0.7) for seed, test in enumerate(tests)]
    row = rows_of(results)["a"]
    accuracies = [
        (result.targets == result.predictions.predicted).all(axis=1).mean() for result in results
    ]
    np.testing.assert_allclose(row.by_seed["accuracy"], accuracies)
    interval = row.intervals["accuracy"]
    assert interval.value == pytest.approx(np.mean(accuracies))
    assert interval.low < interval.value < interval.high


def test_the_paired_interval_is_narrower_than_the_two_intervals_apart():
    test = np.arange(100)
    rows = rows_of([make_trial("a", 0, test, 0.80), make_trial("b", 0, test, 0.75)], 1000)
    gap = compare(rows["a"], rows["b"], "single", 0.0)[0].over_samples
    apart = [
        row.intervals["accuracy"].high - row.intervals["accuracy"].low for row in rows.values()
    ]
    assert gap.high - gap.low < 0.7 * min(apart)


def test_a_row_without_seeds_stands_beside_every_seed_of_the_other():
    test = np.arange(150)
    results = [make_trial("a", 0, test, 0.9)]
    results += [make_trial("b", seed, test, skill) for seed, skill in enumerate((0.5, 0.6, 0.55))]
    rows = rows_of(results)
    difference = compare(rows["a"], rows["b"], "single", 0.0)[0]
    assert difference.score == "accuracy"
    expected = rows["a"].by_seed["accuracy"] - rows["b"].by_seed["accuracy"]
    assert difference.over_seeds.value == pytest.approx(expected.mean())
    assert difference.resolved


def test_a_difference_that_seeds_disagree_on_is_not_resolved():
    test = np.arange(NUM_SAMPLES)
    results = [make_trial("a", 0, test, 0.8)]
    results += [make_trial("b", seed, test, skill) for seed, skill in enumerate((0.3, 0.9, 0.6))]
    rows = rows_of(results)
    difference = compare(rows["a"], rows["b"], "single", 0.0)[0]
    assert difference.over_samples.excludes_zero
    assert not difference.over_seeds.excludes_zero
    assert not difference.resolved


def test_one_seed_is_judged_by_the_samples_alone():
    test = np.arange(NUM_SAMPLES)
    rows = rows_of([make_trial("a", 0, test, 0.9), make_trial("b", 0, test, 0.5)])
    difference = compare(rows["a"], rows["b"], "single", 0.5)[0]
    assert math.isnan(difference.over_seeds.low)
    assert difference.resolved


def test_class_scores_leave_undefined_classes_undefined():
    test = np.arange(0, NUM_SAMPLES, 2)  # of class 0 alone
    classes = rows_of([make_trial("a", 0, test, 1.0)])["a"].classes
    assert classes["f1"][0] == 1
    assert np.isnan(classes["f1"][1])
    assert np.isnan(classes["average_precision"][1])
