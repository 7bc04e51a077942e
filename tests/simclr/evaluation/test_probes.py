"""The probe is scikit-learn's logistic regression, k-NN a plain loop; validation chooses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from simclr.evaluation import probes
from simclr.evaluation.config import EvaluateConfig, Protocol
from simclr.evaluation.jobs import EvalData, EvalJob, EvaluatedEncoder
from simclr.evaluation.metrics import best_thresholds
from simclr.evaluation.probes import (
    PENALTIES,
    choose_probe,
    knn,
    linear_probe,
    probe_path,
    standardisation,
)
from simclr.evaluation.splits import Split
from simclr.evaluation.task import Footprints, Task


def example(num_samples=150, width=12, num_classes=4, seed=0):
    """Collinear features of very unequal scale, and labels that depend on them with noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_samples, 5)) @ rng.normal(size=(5, width))
    features += 0.1 * rng.normal(size=features.shape)
    features = features * np.logspace(-3, 3, width) + 100
    logits = StandardScaler().fit_transform(features) @ rng.normal(size=(width, num_classes))
    labels = (logits + 2 * rng.normal(size=logits.shape)).argmax(axis=1)
    return features, labels


def fitted(features, targets, kind, penalties=PENALTIES):
    return list(probe_path(features, targets, kind, penalties))


def one_hot(labels, num_classes=4):
    return torch.eye(num_classes, dtype=torch.bool)[labels]


def objective(weight, probabilities, labels, penalty):
    """The penalised loss as the module defines it; labels are looked up among those present."""
    column = np.searchsorted(np.unique(labels), labels)
    likelihood = np.log(probabilities[np.arange(len(labels)), column]).mean()
    return penalty / 2 * (weight**2).sum() - likelihood


@pytest.mark.parametrize("num_samples", [150, 9])  # more samples than features, and fewer
@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_multinomial_probe_reaches_scikit_learns_optimum(num_samples, penalty):
    features, labels = example(num_samples)
    present = np.unique(labels)
    standard = StandardScaler().fit_transform(features)
    oracle = LogisticRegression(
        C=1 / (penalty * num_samples), solver="newton-cg", tol=1e-12, max_iter=20_000
    )
    oracle.fit(standard, labels)
    probe = fitted(torch.tensor(features), one_hot(labels), "single", (1.0, penalty))[1]
    assert probe.converged
    scores = probe.scores(torch.tensor(features)).numpy()
    np.testing.assert_allclose(scores[:, present], oracle.predict_proba(standard), atol=1e-4)
    weight = probe.weight.T.numpy()[present]
    gap = objective(weight, scores[:, present], labels, penalty) - objective(
        oracle.coef_, oracle.predict_proba(standard), labels, penalty
    )
    assert abs(gap) < 1e-5


def test_multi_label_probe_is_one_regression_a_class():
    features, labels = example()
    truth = np.stack([labels == 0, labels > 1, labels == 3], axis=1)
    standard = StandardScaler().fit_transform(features)
    probe = fitted(torch.tensor(features), torch.tensor(truth), "multi", (0.01,))[0]
    scores = probe.scores(torch.tensor(features)).numpy()
    for column in range(3):
        oracle = LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-10, max_iter=20_000)
        oracle.fit(standard, truth[:, column])
        np.testing.assert_allclose(
            scores[:, column], oracle.predict_proba(standard)[:, 1], atol=1e-4
        )


def test_every_fit_of_a_collapsed_encoder_converges():
    rng = np.random.default_rng(2)
    direction = rng.normal(size=32)
    features = 5 + 1e-6 * rng.normal(size=(80, 1)) * direction + 1e-9 * rng.normal(size=(80, 32))
    labels = rng.integers(0, 4, 80)
    assert all(
        probe.converged for probe in fitted(torch.tensor(features), one_hot(labels), "single")
    )


def test_a_constant_feature_changes_nothing():
    features, labels = example()
    wider = np.hstack([features, np.full((len(features), 1), 0.1)])
    plain = fitted(torch.tensor(features), one_hot(labels), "single", (0.1,))[0]
    probe = fitted(torch.tensor(wider), one_hot(labels), "single", (0.1,))[0]
    assert standardisation(torch.tensor(wider))[1][-1] == torch.inf
    wider[:, -1] = 0.7  # seen for the first time in a query: it must not speak
    torch.testing.assert_close(
        probe.scores(torch.tensor(wider)), plain.scores(torch.tensor(features))
    )


def test_a_class_absent_from_training_scores_zero_and_the_others_sum_to_one():
    features, labels = example(num_classes=3)
    probe = fitted(torch.tensor(features), one_hot(labels), "single", (0.1,))[0]
    scores = probe.scores(torch.tensor(features))
    assert (scores[:, 3] == 0).all()
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(labels), dtype=torch.float64))


def test_a_multi_label_class_in_every_or_no_sample_is_certain():
    features, labels = example()
    truth = np.stack([labels == 0, labels >= 0, labels < 0], axis=1)
    probe = fitted(torch.tensor(features), torch.tensor(truth), "multi", (0.1,))[0]
    scores = probe.scores(torch.tensor(features))
    assert (scores[:, 1] == 1).all()
    assert (scores[:, 2] == 0).all()


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_labels_that_are_all_the_same_stop(kind):
    features, _ = example()
    truth = one_hot(np.zeros(len(features), int))
    with pytest.raises(ValueError, match="all 150 training patches have the same labels"):
        fitted(torch.tensor(features), truth, kind)


def test_among_equal_scores_the_strongest_penalty_is_chosen():
    features, labels = example()
    probes = fitted(torch.tensor(features), one_hot(labels), "single")
    assert choose_probe(probes, lambda probe: 0.5).penalty == max(PENALTIES)
    assert choose_probe(probes, lambda probe: probe.penalty == 0.1).penalty == 0.1


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_large_problems_in_float32_end_where_float64_does(kind, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (400,), generator=generator)
    truth = labels[:, None] == torch.arange(3)
    if kind == "multi":
        truth = truth | (torch.rand(400, 3, generator=generator) > 0.7)
    features = torch.randn(400, 6, generator=generator).double() + labels[:, None]
    exact = probes.Likelihood(features, truth, kind).solve(1e-3)
    monkeypatch.setattr(probes, "_LARGE", 1)
    rounded = probes.Likelihood(features, truth, kind).solve(1e-3)
    assert rounded[0].dtype == torch.float64
    for found, expected in zip(rounded[:2], exact[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def neighbourhood(num_features=60, num_queries=17, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_features, 8, generator=generator)
    queries = torch.randn(num_queries, 8, generator=generator)
    truth = torch.rand(num_features, num_classes, generator=generator) < 0.4
    return features, truth, queries


def test_scores_equal_a_loop_over_queries():
    features, truth, queries = neighbourhood()
    scores = probes.knn_scores(features, truth, queries, num_neighbours=5).numpy()
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    for query, row in zip(queries.numpy(), scores, strict=True):
        cosine = unit @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosine)[:5]
        weights = np.exp(cosine[nearest] / probes.TEMPERATURE)
        expected = weights @ truth.numpy()[nearest] / weights.sum()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_decisions_equal_scikit_learn():
    features, _, queries = neighbourhood(200, 50)
    labels = np.random.default_rng(1).integers(0, 4, 200)
    scores = probes.knn_scores(features, torch.eye(4)[labels].bool(), queries, num_neighbours=7)
    oracle = KNeighborsClassifier(
        7, metric="cosine", weights=lambda d: np.exp((1 - d) / probes.TEMPERATURE)
    ).fit(features.numpy(), labels)
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), oracle.predict(queries.numpy()))


def test_scores_do_not_depend_on_the_block_size(monkeypatch):
    features, truth, queries = neighbourhood()
    whole = probes.knn_scores(features, truth, queries, num_neighbours=5)
    monkeypatch.setattr(probes, "_BLOCK_ELEMENTS", 60 * 4)
    torch.testing.assert_close(
        probes.knn_scores(features, truth, queries, num_neighbours=5), whole, rtol=1e-6, atol=1e-6
    )


def test_scores_do_not_depend_on_the_length_of_features():
    features, truth, queries = neighbourhood()
    longer = probes.knn_scores(features * 3, truth, queries * 0.1, num_neighbours=5)
    torch.testing.assert_close(
        longer, probes.knn_scores(features, truth, queries, num_neighbours=5), rtol=1e-5, atol=1e-6
    )


def test_with_fewer_features_than_neighbours_all_vote():
    features, truth, queries = neighbourhood(num_features=4)
    torch.testing.assert_close(
        probes.knn_scores(features, truth, queries, num_neighbours=20),
        probes.knn_scores(features, truth, queries, num_neighbours=4),
    )


def test_no_feature_to_look_among_stops():
    features, truth, queries = neighbourhood()
    with pytest.raises(ValueError, match="no labelled features"):
        probes.knn_scores(features[:0], truth[:0], queries, num_neighbours=1)


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
