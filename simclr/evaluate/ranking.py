"""Truth and scores of decisions come in; average precision and ROC-AUC of many weightings go out.

Only positives move precision and recall, and there are few of them. The decisions between two
positives are therefore summed in one go, and what remains is as long as the list of positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Weights = npt.NDArray[Any]  # (R, N) counts, or shares where a prevalence is corrected
Indices = npt.NDArray[np.intp]
ScoreArray = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Binary decisions in descending order of score; of equal scores, all or none are taken.

    G groups of equal scores hold a positive.

    Attributes:
        samples: (M,) sample of each decision.
        segments: (2G + 1,) starts in ``samples``: what lies before a group, the group, and so on
            in turn; the last segment is what follows the last group.
        positives: (P,) sample of each positive decision, in the same order.
        groups: (G,) starts in ``positives``.
        values: (G,) score of each group.
    """

    samples: Indices
    segments: Indices
    positives: Indices
    groups: Indices
    values: ScoreArray


@dataclass(frozen=True, slots=True)
class Running:
    """Sums of weights down a ranking for R weightings, each (G, R) float64, ``total`` (R,).

    Attributes:
        hits: positives of the group.
        hits_through: positives down to the end of the group.
        seen_before: decisions above the group.
        seen_through: decisions down to its end.
        total: all decisions.
    """

    hits: Tensor
    hits_through: Tensor
    seen_before: Tensor
    seen_through: Tensor
    total: Tensor


def rank(truth: BoolArray, scores: ScoreArray) -> Ranking:
    """Rank the decisions of one class (N,), or of all classes together (N, C), by score.

    Raises:
        ValueError: shapes differ, or a score is not a number.
    """
    _check(truth, scores)
    num_classes = truth.size // max(len(truth), 1)
    order = np.argsort(-scores.ravel(), kind="stable")
    values, hit = scores.ravel()[order], truth.ravel()[order]
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    ends = np.append(starts, len(values))[1:]
    hits = np.add.reduceat(hit, starts, dtype=np.intp) if len(starts) else starts
    held = hits > 0
    starts, ends, hits = starts[held], ends[held], hits[held]
    samples = order // num_classes
    return Ranking(
        samples,
        segments=np.append(0, np.stack([starts, ends], axis=1).ravel()),
        positives=samples[hit],
        groups=np.cumsum(hits) - hits,
        values=values[starts],
    )


def tally(weights: Weights) -> Tensor:
    """Return weights (R, N) as (N, R): a row of all weightings for each sample.

    Counts become float32, which is exact below 2^24 a sum; anything else stays float64.
    """
    kind = np.float32 if np.issubdtype(weights.dtype, np.integer) else np.float64
    return torch.from_numpy(np.ascontiguousarray(weights.T, dtype=kind))


def running(ranking: Ranking, weighed: Tensor) -> Running:
    """Sum weights (N, R) down a ranking."""
    seen = _sums(weighed, ranking.samples, ranking.segments).double().cumsum(dim=0)
    hits = _sums(weighed, ranking.positives, ranking.groups).double()
    return Running(hits, hits.cumsum(dim=0), seen[:-1:2], seen[1::2], seen[-1])


def average_precision(sums: Running) -> FloatArray:
    """Return the step-wise area under precision and recall: (R,); NaN without a positive."""
    # above the first decision that counts, 0 / 0 would stand for a precision nobody asks for
    precision = sums.hits_through / sums.seen_through.where(sums.seen_through > 0, 1.0)
    return _array((sums.hits * precision).sum(dim=0) / sums.hits.sum(dim=0))


def roc_auc(sums: Running) -> FloatArray:
    """Return the chance that a positive outranks a negative, a tie counting half: (R,)."""
    above = sums.seen_before - (sums.hits_through - sums.hits)
    through = sums.seen_through - sums.hits_through
    positives = sums.hits.sum(dim=0)
    negatives = sums.total - positives
    won = (sums.hits * (negatives - (above + through) / 2)).sum(dim=0)
    return _array(won / (positives * negatives))


def f1_by_group(sums: Running) -> FloatArray:
    """Return F1 of saying yes down to the end of each group: (G, R)."""
    return _array(2 * sums.hits_through / (sums.seen_through + sums.hits.sum(dim=0)))


def _sums(weighed: Tensor, samples: Indices, starts: Indices) -> Tensor:
    """Return (S, R) sums of the rows of weights over consecutive stretches of samples."""
    if len(samples) == 0:
        return weighed.new_zeros(len(starts), weighed.shape[1])
    # reads each row once, in order, and writes only the sums: no (M, R) table is ever made
    return functional.embedding_bag(
        torch.from_numpy(samples), weighed, torch.from_numpy(starts), mode="sum"
    )


def _array(values: Tensor) -> FloatArray:
    return np.asarray(values.numpy(), np.float64)


def _check(truth: BoolArray, scores: ScoreArray) -> None:
    if truth.shape != scores.shape:
        raise ValueError(f"truth is {truth.shape} and scores are {scores.shape}; give equal shapes")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are not a number")
