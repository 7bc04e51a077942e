"""The probe is scikit-learn's logistic regression, and says what it cannot learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from simclr.evaluation import probes as newton
from simclr.evaluation.probes import PENALTIES, choose_probe, probe_path, standardisation


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
    exact = newton.Likelihood(features, truth, kind).solve(1e-3)
    monkeypatch.setattr(newton, "_LARGE", 1)
    rounded = newton.Likelihood(features, truth, kind).solve(1e-3)
    assert rounded[0].dtype == torch.float64
    for found, expected in zip(rounded[:2], exact[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
