"""Labelled features and queries come in; class scores of a k-nearest-neighbour vote go out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.07  # Wu et al. 2018 (arXiv 1805.01978), section 3.4, and most since
_BLOCK_ELEMENTS = 1 << 25


def knn_scores(features: Tensor, truth: Tensor, queries: Tensor, num_neighbours: int) -> Tensor:
    """Score each query by its nearest features in cosine similarity.

    A neighbour votes for each of its classes with weight exp(similarity / 0.07); the votes of a
    query are divided by the sum of its weights, so that scores lie in [0, 1] for single and for
    multiple labels alike. Similarities are computed block by block: memory does not grow with the
    product of features and queries.

    Args:
        features: (N, D) float32, as the encoder gives them.
        truth: (N, C) bool.
        queries: (M, D) float32.
        num_neighbours: k; with fewer features than that, all of them vote.

    Returns:
        (M, C) float32.

    Raises:
        ValueError: there is no feature to be near to.
    """
    if len(features) == 0:
        raise ValueError("k-NN has no labelled features to look among")
    unit, votes = functional.normalize(features, dim=1), truth.to(features.dtype)
    rows = max(1, _BLOCK_ELEMENTS // len(features))
    return torch.cat(
        [
            _vote(functional.normalize(block, dim=1) @ unit.T, votes, num_neighbours)
            for block in torch.split(queries, rows)
        ]
    )


def _vote(similarity: Tensor, votes: Tensor, num_neighbours: int) -> Tensor:
    """Return (m, C) scores from similarities (m, N) and the votes (N, C) of all features."""
    nearest, index = similarity.topk(min(num_neighbours, similarity.shape[1]), dim=1)
    weights = functional.softmax(nearest / TEMPERATURE, dim=1)
    scores = torch.einsum("mk,mkc->mc", weights, votes[index])
    return scores.clamp_(0, 1)  # a sum of rounded weights may exceed 1 by an ulp
