"""Scores, with ties, empty classes and weights, equal those of scikit-learn and of plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from simclr.evaluation import metrics as ours
from simclr.evaluation.metrics import (
    NUM_BINS,
    Predictions,
    decide,
    metric_table,
    reliability,
    unit_weights,
)


def average_precision(truth, scores, weights):
    sums = ours.running(ours.rank(truth, scores), ours.tally(weights))
    return ours.average_precision(sums)


def roc_auc(truth, scores, weights):
    return ours.roc_auc(ours.running(ours.rank(truth, scores), ours.tally(weights)))


def panel_of(truth, scores, predicted, kind, weights):
    return ours.metric_table(truth, ours.Predictions(scores, predicted), kind)(weights).overall


@st.composite
def decisions(draw):
    """Truth and scores (N, C) with many ties, some classes without positives, and counts (N,)."""
    num_samples, num_classes = draw(st.integers(2, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.random((num_samples, num_classes)) < rng.choice([0.0, 0.1, 0.5, 1.0], num_classes)
    levels = draw(st.sampled_from([1, 2, 5, 10_000]))
    scores = rng.integers(0, levels, truth.shape) / levels
    weights = rng.integers(0, 4, num_samples)
    weights[rng.integers(num_samples)] += 1
    return truth, scores, weights.astype(np.int32)


def oracle_by_class(function, truth, scores, weights, needs_negative=False):
    """What scikit-learn says of each class; NaN where the class is empty."""
    values = []
    for column in range(truth.shape[1]):
        present = weights[truth[:, column]].sum()
        absent = weights[~truth[:, column]].sum()
        known = present > 0 and (absent > 0 or not needs_negative)
        value = function(truth[:, column], scores[:, column], sample_weight=weights)
        values.append(value if known else np.nan)
    return np.array(values)


@pytest.mark.filterwarnings("ignore:No positive class found", "ignore:Only one class is present")
@settings(max_examples=150)
@given(decisions())
def test_average_precision_and_roc_auc_of_each_class_equal_scikit_learn(case):
    truth, scores, weights = case
    classes = range(truth.shape[1])
    ap = [average_precision(truth[:, c], scores[:, c], weights[None])[0] for c in classes]
    auc = [roc_auc(truth[:, c], scores[:, c], weights[None])[0] for c in classes]
    np.testing.assert_allclose(
        ap, oracle_by_class(metrics.average_precision_score, truth, scores, weights), rtol=1e-12
    )
    kept = weights > 0  # scikit-learn's AUC asks for both classes among rows of weight 0, too
    np.testing.assert_allclose(
        auc,
        oracle_by_class(
            metrics.roc_auc_score, truth[kept], scores[kept], weights[kept], needs_negative=True
        ),
        rtol=1e-12,
        atol=1e-12,
    )


@settings(max_examples=100)
@given(decisions())
def test_micro_average_precision_equals_scikit_learn(case):
    truth, scores, weights = case
    if not weights @ truth.any(axis=1):
        assert np.isnan(average_precision(truth, scores, weights[None])[0])
        return
    oracle = metrics.average_precision_score(
        truth.ravel(), scores.ravel(), sample_weight=np.repeat(weights, truth.shape[1])
    )
    pooled = average_precision(truth, scores, weights[None])[0]
    assert pooled == pytest.approx(oracle, rel=1e-12)


@settings(max_examples=100)
@given(decisions())
def test_f1_equals_scikit_learn_with_undefined_classes_left_out(case):
    truth, scores, weights = case
    predicted = scores >= 0.5
    values = ours.f1(truth, predicted, ours.tally(weights[None]))[0]
    for column in range(truth.shape[1]):
        oracle = metrics.f1_score(
            truth[:, column],
            predicted[:, column],
            labels=[True],
            average="macro",
            sample_weight=weights,
            zero_division=np.nan,
        )
        np.testing.assert_allclose(values[column], oracle, rtol=1e-12)
    if np.any(weights @ (truth | predicted)):
        micro = metrics.f1_score(
            truth.ravel(), predicted.ravel(), sample_weight=np.repeat(weights, truth.shape[1])
        )
        found = ours.f1(truth, predicted, ours.tally(weights[None]), micro=True)[0]
        assert found == pytest.approx(micro, rel=1e-12)


def test_macro_scores_of_single_labels_equal_scikit_learn():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, 200)
    scores = rng.dirichlet(np.ones(4), 200).round(2)
    truth = np.eye(4, dtype=bool)[labels]
    predicted = ours.decide(scores, "single", 0.5)
    panel = panel_of(truth, scores, predicted, "single", ours.unit_weights(200))
    chosen = scores.argmax(axis=1)
    assert panel["accuracy"][0] == pytest.approx(metrics.accuracy_score(labels, chosen))
    assert panel["f1_macro"][0] == pytest.approx(metrics.f1_score(labels, chosen, average="macro"))
    for name, oracle in (
        ("average_precision_macro", metrics.average_precision_score(truth, scores)),
        ("roc_auc_macro", metrics.roc_auc_score(truth, scores)),
    ):
        assert panel[name][0] == pytest.approx(oracle, rel=1e-12)


def test_binary_scores_are_those_of_the_yes_alone():
    rng = np.random.default_rng(6)
    truth, scores = rng.random((80, 1)) < 0.1, rng.random((80, 1))
    panel = panel_of(truth, scores, scores >= 0.8, "binary", ours.unit_weights(80))
    assert tuple(panel) == ours.SCORES["binary"]
    for name, oracle in (
        ("average_precision", metrics.average_precision_score(truth[:, 0], scores[:, 0])),
        ("f1", metrics.f1_score(truth[:, 0], scores[:, 0] >= 0.8)),
        ("roc_auc", metrics.roc_auc_score(truth[:, 0], scores[:, 0])),
        ("accuracy", metrics.accuracy_score(truth[:, 0], scores[:, 0] >= 0.8)),
    ):
        assert panel[name][0] == pytest.approx(oracle, rel=1e-12)


def test_an_empty_class_is_nan_by_itself_and_absent_from_the_macro_mean():
    truth = np.array([[1, 0], [0, 0], [1, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.2, 0.2], [0.8, 0.3]])
    predicted = ours.decide(scores, "multi", 0.5)
    panel = panel_of(truth, scores, predicted, "multi", ours.unit_weights(3))
    assert np.isnan(average_precision(truth[:, 1], scores[:, 1], ours.unit_weights(3))[0])
    assert panel["average_precision_macro"][0] == 1
    assert panel["f1_macro"][0] == 1


def test_weights_of_two_equal_the_same_set_written_twice():
    rng = np.random.default_rng(3)
    truth, scores = rng.random((30, 3)) < 0.3, rng.random((30, 3)).round(1)
    predicted = scores >= 0.4
    counts = rng.integers(0, 3, 30)
    twice = np.repeat(np.arange(30), counts)
    weighted = panel_of(truth, scores, predicted, "multi", counts[None].astype(np.int32))
    written = panel_of(
        truth[twice], scores[twice], predicted[twice], "multi", ours.unit_weights(len(twice))
    )
    for name in ours.SCORES["multi"]:
        np.testing.assert_allclose(weighted[name], written[name], rtol=1e-6)


def test_each_class_has_the_threshold_of_its_highest_f1():
    rng = np.random.default_rng(8)
    for _ in range(50):
        truth = rng.random((25, 2)) < 0.3
        truth[:2] = True
        scores = rng.random((25, 2)).round(1)
        for column, threshold in enumerate(ours.best_thresholds(truth, scores)):
            by_hand = {
                value: metrics.f1_score(truth[:, column], scores[:, column] >= value)
                for value in np.unique(scores[:, column])
            }
            assert by_hand[threshold] == pytest.approx(max(by_hand.values()), rel=1e-12)


def test_a_class_without_a_positive_takes_the_threshold_of_all_and_no_positive_one_half():
    truth = np.array([[True, False], [True, False], [False, False]])
    scores = np.array([[0.9, 0.3], [0.8, 0.2], [0.1, 0.1]])
    np.testing.assert_array_equal(ours.best_thresholds(truth, scores), [0.8, 0.8])
    np.testing.assert_array_equal(ours.best_thresholds(truth[:, 1:], scores[:, 1:]), [0.5])


def test_balanced_scores_are_those_of_a_set_with_every_yes_repeated():
    rng = np.random.default_rng(1)
    truth, scores = np.arange(60)[:, None] % 4 == 0, rng.random((60, 1)).round(1)
    predicted, balanced = scores >= 0.7, scores >= 0.4
    found = ours.metric_table(truth, ours.Predictions(scores, predicted, balanced), "binary")
    evened = np.repeat(np.arange(60), np.where(truth[:, 0], 3, 1))  # 45 yes, 45 no
    panel = found(ours.unit_weights(60)).overall
    assert panel["average_precision_balanced"][0] == pytest.approx(
        metrics.average_precision_score(truth[evened, 0], scores[evened, 0]), rel=1e-12
    )
    assert panel["f1_balanced"][0] == pytest.approx(
        metrics.f1_score(truth[evened, 0], balanced[evened, 0]), rel=1e-12
    )
    assert panel["f1"][0] == pytest.approx(metrics.f1_score(truth[:, 0], predicted[:, 0]))
    threshold = ours.best_thresholds(truth, scores, ours.balancing_weights(truth))
    np.testing.assert_allclose(
        threshold, ours.best_thresholds(truth[evened], scores[evened]), rtol=1e-12
    )


def test_a_score_that_is_not_a_number_stops():
    with pytest.raises(ValueError, match="1 of 2 scores are not a number"):
        ours.rank(np.array([True, False]), np.array([np.nan, 1.0]))


def test_shapes_that_differ_stop():
    with pytest.raises(ValueError, match="give equal shapes"):
        ours.rank(np.zeros((2, 3), bool), np.zeros((2, 2)))


def calibration_panel(truth, scores, kind, weights=None):
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
    found = calibration_panel(truth, scores, "multi").overall
    expected = error_by_loops(scores.ravel(), truth.ravel())
    assert found["calibration_error"][0] == pytest.approx(expected, rel=1e-5)
    brier = metrics.brier_score_loss(truth.ravel(), scores.ravel())
    assert found["brier"][0] == pytest.approx(brier, rel=1e-5)


def test_error_of_a_single_label_is_that_of_the_best_class():
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(5), 300)
    truth = np.eye(5, dtype=bool)[rng.integers(0, 5, 300)]
    found = calibration_panel(truth, scores, "single").overall
    right = truth[np.arange(300), scores.argmax(axis=1)]
    assert found["calibration_error"][0] == pytest.approx(
        error_by_loops(scores.max(axis=1), right), rel=1e-5
    )
    assert found["brier"][0] == pytest.approx(((scores - truth) ** 2).sum(axis=1).mean(), rel=1e-5)


def test_certain_and_right_is_no_error_and_certain_and_wrong_the_greatest():
    truth = np.eye(2, dtype=bool)[[0, 1, 0]]
    right = calibration_panel(truth, truth.astype(float), "single").overall
    wrong = calibration_panel(truth, (~truth).astype(float), "single").overall
    assert (right["calibration_error"][0], right["brier"][0]) == (0, 0)
    assert (wrong["calibration_error"][0], wrong["brier"][0]) == (1, 2)


def test_weights_of_two_equal_a_sample_written_twice():
    rng = np.random.default_rng(2)
    truth, scores = rng.random((40, 1)) < 0.5, rng.random((40, 1))
    counts = rng.integers(0, 3, 40).astype(np.int32)
    twice = np.repeat(np.arange(40), counts)
    weighted = calibration_panel(truth, scores, "binary", counts[None]).overall
    written = calibration_panel(truth[twice], scores[twice], "binary").overall
    for name in ("calibration_error", "brier"):
        np.testing.assert_allclose(weighted[name], written[name], rtol=1e-5)


def test_the_curve_holds_every_claim_once_and_leaves_empty_bins_unknown():
    scores = np.array([[0.05], [0.06], [0.95], [1.0]])
    curve = reliability(np.array([[False], [True], [True], [True]]), scores, "binary")
    assert curve["counts"].tolist() == [2, *[0] * (NUM_BINS - 2), 2]
    assert (curve["frequency"][0], curve["frequency"][-1]) == (0.5, 1)
    assert curve["probability"][0] == pytest.approx(0.055)
    assert np.isnan(curve["frequency"][1:-1]).all()
