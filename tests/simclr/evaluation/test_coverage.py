"""The 95 % interval of every printed score and difference covers the truth 90 times in 100."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from simclr.evaluation.baselines import EvalResult
from simclr.evaluation.bootstrap import choose_blocks, compare, score_results
from simclr.evaluation.config import SCORES, WITHOUT_INTERVAL
from simclr.evaluation.metrics import Predictions, decide, metric_table, unit_weights

NUM_CLASSES = {"single": 10, "multi": 8, "binary": 1}
PREVALENCE = {"multi": np.linspace(0.1, 0.5, 8), "binary": np.array([0.25])}
THRESHOLD, THRESHOLD_BALANCED = 0.45, 0.3
POPULATION = 400_000
NAMES = ("first", "second")


def draw(random, kind, count, signal):
    """Return targets (N, C) and the probabilities of two classifiers that err alike."""
    num_classes = NUM_CLASSES[kind]
    if kind == "single":
        targets = np.eye(num_classes, dtype=bool)[np.arange(count) % num_classes]
    else:
        targets = random.random((count, num_classes)) < PREVALENCE[kind]
    noise = random.normal(size=(count, num_classes))
    other = 0.7 * noise + 0.7 * random.normal(size=(count, num_classes))
    scores = []
    for logits in (signal * targets + noise, signal * targets + other):
        if kind == "single":
            odds = np.exp(1.3 * logits)
            scores.append(odds / odds.sum(axis=1, keepdims=True))
        else:
            scores.append(1 / (1 + np.exp(-1.5 * (logits - 1.5))))
    return targets, scores


def predictions(scores, kind):
    balanced = decide(scores, kind, THRESHOLD_BALANCED) if kind == "binary" else None
    return Predictions(scores, decide(scores, kind, THRESHOLD), balanced)


def population(random, kind, signal):
    targets, scores = draw(random, kind, POPULATION, signal)
    tables = [metric_table(targets, predictions(one, kind), kind) for one in scores]
    return [
        {name: float(value[0]) for name, value in table(unit_weights(POPULATION)).overall.items()}
        for table in tables
    ]


def rows_of(random, kind, count, signal):
    targets, scores = draw(random, kind, count, signal)
    rows = np.arange(count)
    results = [
        EvalResult(name, "probe", 0, rows, targets, predictions(one, kind), {})
        for name, one in zip(NAMES, scores, strict=True)
    ]
    return score_results(results, kind, rows, choose_blocks({}, count), 400)


# 400 trials find 0.95 as 0.93 or more, and 0.90 as less than 0.92, 19 times in 20.
@pytest.mark.exhaustive
@pytest.mark.parametrize("signal", [1.5, 2.5])
@pytest.mark.parametrize(("count", "trials"), [(60, 400), (200, 400), (1000, 200)])
@pytest.mark.parametrize("kind", list(NUM_CLASSES))
def test_every_interval_covers_the_truth_at_least_90_times_in_100(kind, count, trials, signal):
    random = np.random.default_rng(count)
    first, second = population(random, kind, signal)
    covered, printed = Counter(), Counter()
    for _ in range(trials):
        one, other = rows_of(random, kind, count, signal)
        found = [(f"{name}", one.intervals[name], first[name]) for name in SCORES[kind]]
        found += [
            (f"difference in {gap.score}", gap.over_samples, first[gap.score] - second[gap.score])
            for gap in compare(one, other, kind, 0.0)
        ]
        for name, interval, truth in found:
            if not np.isnan(interval.low):
                printed[name] += 1
                covered[name] += interval.low <= truth <= interval.high
    shares = {name: covered[name] / printed[name] for name in printed}
    expected = [name for name in SCORES[kind] if name not in WITHOUT_INTERVAL]
    assert set(shares) == {*expected, *(f"difference in {name}" for name in expected)}
    assert min(shares.values()) >= 0.90, shares


def test_a_score_whose_interval_cannot_cover_has_none():
    one, other = rows_of(np.random.default_rng(0), "single", 60, 1.5)
    assert np.isnan(one.intervals["calibration_error"].low)
    assert "calibration_error" not in {gap.score for gap in compare(one, other, "single", 0.0)}


def test_average_precision_over_few_patches_of_many_classes_covers_as_often_as_accuracy():
    random = np.random.default_rng(3)
    truth = population(random, "single", 1.5)[0]
    covered = Counter()
    for _ in range(100):
        row = rows_of(random, "single", 60, 1.5)[0]
        for name in ("accuracy", "average_precision_macro"):
            interval = row.intervals[name]
            covered[name] += interval.low <= truth[name] <= interval.high
    # percentile intervals of the second cover 75 times in 100
    assert min(covered.values()) >= 86, covered
