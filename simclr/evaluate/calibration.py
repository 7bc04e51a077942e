"""Truth and probabilities come in; calibration error, Brier score and reliability go out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simclr.evaluate.ranking import BoolArray, FloatArray, Indices, ScoreArray

# Guo et al. 2017 (arXiv 1706.04599) and most since.
NUM_BINS = 15


@dataclass(frozen=True, slots=True)
class Claims:
    """What was claimed with which probability: (N, K), K = 1 for one answer a sample.

    Attributes:
        probability: in [0, 1].
        right: whether it was so.
    """

    probability: FloatArray
    right: BoolArray


@dataclass(frozen=True, slots=True)
class Reliability:
    """Claims by probability, in bins of equal width.

    Attributes:
        edges: (NUM_BINS + 1,).
        counts: (NUM_BINS,) claims.
        probability: (NUM_BINS,) their mean; NaN in an empty bin.
        frequency: (NUM_BINS,) share of them that was right.
    """

    edges: FloatArray
    counts: FloatArray
    probability: FloatArray
    frequency: FloatArray


def claims(truth: BoolArray, scores: ScoreArray, kind: str) -> Claims:
    """Return the claims of scores (N, C): the best class of a ``single`` task, else every yes."""
    probability = scores.astype(np.float64)
    if kind != "single":
        return Claims(probability, truth)
    best = probability.argmax(axis=1)[:, None]
    return Claims(
        np.take_along_axis(probability, best, axis=1), np.take_along_axis(truth, best, axis=1)
    )


def reliability(made: Claims) -> Reliability:
    """Return how often claims of about one probability came true."""
    bins = _bins(made.probability).ravel()
    counts = np.bincount(bins, minlength=NUM_BINS).astype(np.float64)
    sums = np.bincount(bins, made.probability.ravel(), NUM_BINS)
    hits = np.bincount(bins, made.right.ravel().astype(float), NUM_BINS)
    filled = np.where(counts > 0, counts, np.nan)
    return Reliability(_edges(), counts, sums / filled, hits / filled)


def calibration_gaps(made: Claims) -> Tensor:
    """Return (NUM_BINS, N) float64: what each sample adds to the gap of each bin.

    The expected calibration error of a weighting is the sum of the absolute weighted gaps over
    the weight of all claims: bins with many claims count more.
    """
    gaps = torch.zeros(NUM_BINS, len(made.right), dtype=torch.float64)
    difference = torch.from_numpy(made.probability - made.right)
    for column, bins in enumerate(_bins(made.probability).T):
        rows = torch.from_numpy(bins.copy())
        gaps[rows, torch.arange(len(rows))] += difference[:, column]
    return gaps


def squared_errors(truth: BoolArray, scores: ScoreArray, kind: str) -> Tensor:
    """Return the Brier score of each sample, (N,) float64.

    Brier's own (1950) for ``single``: the sum over classes, from 0 to 2. The mean over decisions
    otherwise, from 0 to 1.
    """
    squares = torch.from_numpy((scores.astype(np.float64) - truth) ** 2)
    return squares.sum(dim=1) if kind == "single" else squares.mean(dim=1)


def _edges() -> FloatArray:
    return np.linspace(0, 1, NUM_BINS + 1)


def _bins(probability: FloatArray) -> Indices:
    """Return the bin of each probability; 1 belongs to the last one."""
    return np.clip(np.digitize(probability, _edges()) - 1, 0, NUM_BINS - 1)
