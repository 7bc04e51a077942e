"""Calibration error and Brier score are those of plain loops and of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from simclr.evaluation.metrics import (
    NUM_BINS,
    Predictions,
    decide,
    metric_table,
    reliability,
    unit_weights,
)


def panel(truth, scores, kind, weights=None):
    answers = Predictions(scores, decide(scores, kind, 0.5))
    return metric_table(truth, answers, kind)(
        unit_weights(len(truth)) if weights is None else weights
    )


def error_by_loops(probability, right):
    """Guo et al. 2017, equation 3."""
    total = 0.0
    for k in range(NUM_BINS):
        inside = (probability >= k / NUM_BINS) & (
            (probability < (k + 1) / NUM_BINS) | (k == NUM_BINS - 1)
        )
        if inside.any():
            total += inside.mean() * abs(probability[inside].mean() - right[inside].mean())
    return total


def test_error_of_several_labels_is_that_of_all_decisions():
    rng = np.random.default_rng(0)
    truth, scores = rng.random((200, 4)) < 0.3, rng.random((200, 4))
    found = panel(truth, scores, "multi").overall
    expected = error_by_loops(scores.ravel(), truth.ravel())
    assert found["calibration_error"][0] == pytest.approx(expected, rel=1e-5)
    brier = metrics.brier_score_loss(truth.ravel(), scores.ravel())
    assert found["brier"][0] == pytest.approx(brier, rel=1e-5)


def test_error_of_a_single_label_is_that_of_the_best_class():
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(5), 300)
    truth = np.eye(5, dtype=bool)[rng.integers(0, 5, 300)]
    found = panel(truth, scores, "single").overall
    right = truth[np.arange(300), scores.argmax(axis=1)]
    assert found["calibration_error"][0] == pytest.approx(
        error_by_loops(scores.max(axis=1), right), rel=1e-5
    )
    assert found["brier"][0] == pytest.approx(((scores - truth) ** 2).sum(axis=1).mean(), rel=1e-5)


def test_certain_and_right_is_no_error_and_certain_and_wrong_the_greatest():
    truth = np.eye(2, dtype=bool)[[0, 1, 0]]
    right = panel(truth, truth.astype(float), "single").overall
    wrong = panel(truth, (~truth).astype(float), "single").overall
    assert (right["calibration_error"][0], right["brier"][0]) == (0, 0)
    assert (wrong["calibration_error"][0], wrong["brier"][0]) == (1, 2)


def test_weights_of_two_equal_a_sample_written_twice():
    rng = np.random.default_rng(2)
    truth, scores = rng.random((40, 1)) < 0.5, rng.random((40, 1))
    counts = rng.integers(0, 3, 40).astype(np.int32)
    twice = np.repeat(np.arange(40), counts)
    weighted = panel(truth, scores, "binary", counts[None]).overall
    written = panel(truth[twice], scores[twice], "binary").overall
    for name in ("calibration_error", "brier"):
        np.testing.assert_allclose(weighted[name], written[name], rtol=1e-5)


def test_the_curve_holds_every_claim_once_and_leaves_empty_bins_unknown():
    scores = np.array([[0.05], [0.06], [0.95], [1.0]])
    curve = reliability(np.array([[False], [True], [True], [True]]), scores, "binary")
    assert curve["counts"].tolist() == [2, *[0] * (NUM_BINS - 2), 2]
    assert (curve["frequency"][0], curve["frequency"][-1]) == (0.5, 1)
    assert curve["probability"][0] == pytest.approx(0.055)
    assert np.isnan(curve["frequency"][1:-1]).all()
