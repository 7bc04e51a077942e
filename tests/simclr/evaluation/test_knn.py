"""The k-NN vote equals a plain loop, for any block size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from simclr.evaluation import probes as knn


def example(num_features=60, num_queries=17, num_classes=3):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(num_features, 8, generator=generator)
    queries = torch.randn(num_queries, 8, generator=generator)
    truth = torch.rand(num_features, num_classes, generator=generator) < 0.4
    return features, truth, queries


def test_scores_equal_a_loop_over_queries():
    features, truth, queries = example()
    scores = knn.knn_scores(features, truth, queries, num_neighbours=5).numpy()
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    for query, row in zip(queries.numpy(), scores, strict=True):
        cosine = unit @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosine)[:5]
        weights = np.exp(cosine[nearest] / knn.TEMPERATURE)
        expected = weights @ truth.numpy()[nearest] / weights.sum()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_decisions_equal_scikit_learn():
    features, _, queries = example(200, 50)
    labels = np.random.default_rng(1).integers(0, 4, 200)
    scores = knn.knn_scores(features, torch.eye(4)[labels].bool(), queries, num_neighbours=7)
    oracle = KNeighborsClassifier(
        7, metric="cosine", weights=lambda d: np.exp((1 - d) / knn.TEMPERATURE)
    ).fit(features.numpy(), labels)
    np.testing.assert_array_equal(scores.argmax(dim=1).numpy(), oracle.predict(queries.numpy()))


def test_scores_do_not_depend_on_the_block_size(monkeypatch):
    features, truth, queries = example()
    whole = knn.knn_scores(features, truth, queries, num_neighbours=5)
    monkeypatch.setattr(knn, "_BLOCK_ELEMENTS", 60 * 4)
    torch.testing.assert_close(
        knn.knn_scores(features, truth, queries, num_neighbours=5), whole, rtol=1e-6, atol=1e-6
    )


def test_scores_do_not_depend_on_the_length_of_features():
    features, truth, queries = example()
    longer = knn.knn_scores(features * 3, truth, queries * 0.1, num_neighbours=5)
    torch.testing.assert_close(
        longer, knn.knn_scores(features, truth, queries, num_neighbours=5), rtol=1e-5, atol=1e-6
    )


def test_with_fewer_features_than_neighbours_all_vote():
    features, truth, queries = example(num_features=4)
    torch.testing.assert_close(
        knn.knn_scores(features, truth, queries, num_neighbours=20),
        knn.knn_scores(features, truth, queries, num_neighbours=4),
    )


def test_no_feature_to_look_among_stops():
    features, truth, queries = example()
    with pytest.raises(ValueError, match="no labelled features"):
        knn.knn_scores(features[:0], truth[:0], queries, num_neighbours=1)
