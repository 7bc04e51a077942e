"""Metrics of a test set from targets and class scores, for many sample weightings at once.

``weights`` (R, N) are how often each of N samples counts in each of R weightings: ones give the
plain score, bootstrap counts its distribution. Undefined scores are NaN and excluded from macro
means: AP of a class without positives, ROC-AUC of a class without positives or without negatives,
F1 of a class neither present nor predicted. All others are defined as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from simclr.evaluation.config import SCORES

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Weights = npt.NDArray[Any]  # (R, N) counts, or shares where a prevalence is corrected
Indices = npt.NDArray[np.intp]
ScoreArray = npt.NDArray[np.floating]

NUM_BINS = 15  # for the calibration error: Guo et al. 2017 (arXiv 1706.04599) and most since
_EDGES = np.linspace(0, 1, NUM_BINS + 1)
NO_POSITIVE_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Predictions:
    """Scores (N, C) and decisions (N, C) of a classifier.

    ``predicted_balanced`` (N, C) are decisions for balanced classes, in a ``binary`` task only.
    """

    scores: ScoreArray
    predicted: BoolArray
    predicted_balanced: BoolArray | None = None


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Scores by name: (R,) per weighting, and (R, C) per weighting and class."""

    overall: dict[str, FloatArray]
    classes: dict[str, FloatArray]


def metric_table(
    targets: BoolArray, predictions: Predictions, kind: str
) -> Callable[[Weights], MetricTable]:
    """Return a function from weights (R, N) to the scores of a kind of task; sorts only once.

    Targets are (N, C), with C = 1 for ``binary``; see ``simclr.evaluation.config.SCORES``.
    """
    scores, predicted = predictions.scores, predictions.predicted
    columns = [rank(targets[:, c], scores[:, c]) for c in range(targets.shape[1])]
    pooled = rank(targets, scores) if kind == "multi" else None
    gaps = _calibration_gaps(*_claims(targets, scores, kind))
    squares = torch.from_numpy((scores.astype(np.float64) - targets) ** 2)
    # Brier's original (1950) sum over classes, from 0 to 2, or the mean over decisions, 0 to 1
    squares = squares.sum(dim=1) if kind == "single" else squares.mean(dim=1)
    claims_a_sample = 1 if kind == "single" else targets.shape[1]

    def score(weights: Weights) -> MetricTable:
        """Score under these weights."""
        weighed = tally(weights)
        sums = [running(column, weighed) for column in columns]
        classes = {
            "average_precision": np.stack([average_precision(one) for one in sums], axis=1),
            "f1": f1(targets, predicted, weighed),
            "roc_auc": np.stack([roc_auc(one) for one in sums], axis=1),
        }
        overall = {name: macro(values) for name, values in classes.items()}
        overall |= {f"{name}_macro": values for name, values in overall.items()}
        overall["accuracy"] = accuracy(targets, predicted, weighed)
        total = weighed.sum(dim=0).double()
        error = (gaps.to(weighed.dtype) @ weighed).abs().sum(dim=0)
        overall["calibration_error"] = _quotient(error, claims_a_sample * total)
        overall["brier"] = _quotient(squares.to(weighed.dtype) @ weighed, total)
        if pooled is not None:
            overall["average_precision_micro"] = average_precision(running(pooled, weighed))
            overall["f1_micro"] = f1(targets, predicted, weighed, micro=True)
        if kind == "binary":
            overall |= _balanced(columns[0], targets, predictions, weighed)
        return MetricTable({name: overall[name] for name in SCORES[kind]}, classes)

    return score


def primary_metric(targets: BoolArray, scores: ScoreArray, kind: str) -> float:
    """Return the score that makes all choices, the first of its kind of task; -inf if undefined."""
    weighed = tally(unit_weights(len(targets)))
    if kind == "single":
        value = accuracy(targets, decide(scores, kind, NO_POSITIVE_THRESHOLD), weighed)
    else:  # for a single column, the pooled ranking is its own
        value = average_precision(running(rank(targets, scores), weighed))
    return float(np.nan_to_num(value[0], nan=-np.inf))


def decide(scores: ScoreArray, kind: str, thresholds: FloatArray | float) -> BoolArray:
    """Return decisions (N, C): the best class of a ``single`` task, else ``>= threshold``."""
    if kind != "single":
        return np.asarray(scores >= thresholds)
    chosen = scores.argmax(axis=1)
    return np.asarray(np.arange(scores.shape[1]) == chosen[:, None])


def unit_weights(num_samples: int) -> Weights:
    """Return the weighting (1, N) in which every sample counts once."""
    return np.ones((1, num_samples), np.int32)


def tally(weights: Weights) -> Tensor:
    """Return weights (R, N) transposed to (N, R), contiguous: one row per sample.

    Counts become float32, in which sums below 2^24 are exact; all else becomes float64.
    """
    kind = np.float32 if np.issubdtype(weights.dtype, np.integer) else np.float64
    return torch.from_numpy(np.ascontiguousarray(weights.T, dtype=kind))


@dataclass(frozen=True, slots=True)
class Ranking:
    """Binary decisions in descending order of score; equal scores are accepted all or none.

    G groups of equal scores contain a positive. ``segments`` are starts in ``samples``, alternately
    of the stretch before a group and of the group; the last one starts after the last group.
    """

    samples: Indices  # (M,) sample of each decision
    segments: Indices  # (2G + 1,)
    positives: Indices  # (P,) sample of each positive decision, in the same order
    groups: Indices  # (G,) starts in positives
    values: ScoreArray  # (G,) score of each group


@dataclass(frozen=True, slots=True)
class Running:
    """Sums of weights along a ranking for R weightings, each (G, R) float64, ``total`` (R,)."""

    hits: Tensor  # positives in the group
    hits_through: Tensor  # positives up to the end of the group
    seen_before: Tensor  # decisions before the group
    seen_through: Tensor  # decisions up to the end of the group
    total: Tensor  # all decisions


def rank(targets: BoolArray, scores: ScoreArray) -> Ranking:
    """Rank the decisions of one class (N,), or of all classes together (N, C), by score.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    if targets.shape != scores.shape:
        raise ValueError(
            f"targets are {targets.shape} and scores are {scores.shape}; give equal shapes"
        )
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are not a number")
    order = np.argsort(-scores.ravel(), kind="stable")
    values, hit = scores.ravel()[order], targets.ravel()[order]
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    ends = np.append(starts, len(values))[1:]
    hits = np.add.reduceat(hit, starts, dtype=np.intp) if len(starts) else starts
    held = hits > 0
    starts, ends, hits = starts[held], ends[held], hits[held]
    samples = order // (targets.size // max(len(targets), 1))
    return Ranking(
        samples,
        segments=np.append(0, np.stack([starts, ends], axis=1).ravel()),
        positives=samples[hit],
        groups=np.cumsum(hits) - hits,
        values=values[starts],
    )


def running(ranking: Ranking, weighed: Tensor) -> Running:
    """Sum weights (N, R) along a ranking."""

    def sums(samples: Indices, starts: Indices) -> Tensor:
        """Return (S, R) sums of the rows of weights over consecutive stretches of samples."""
        if len(samples) == 0:
            return weighed.new_zeros(len(starts), weighed.shape[1]).double()
        # reads each row once, in order, and writes only the sums: no (M, R) table is created
        bags = torch.from_numpy(samples), weighed, torch.from_numpy(starts)
        return functional.embedding_bag(*bags, mode="sum").double()

    seen = sums(ranking.samples, ranking.segments).cumsum(dim=0)
    hits = sums(ranking.positives, ranking.groups)
    return Running(hits, hits.cumsum(dim=0), seen[:-1:2], seen[1::2], seen[-1])


def average_precision(sums: Running) -> FloatArray:
    """Return the step-wise area under precision and recall: (R,); NaN without a positive."""
    # before the first decision of non-zero weight, avoid 0 / 0: its hits have weight 0 anyway
    precision = sums.hits_through / sums.seen_through.where(sums.seen_through > 0, 1.0)
    return _quotient((sums.hits * precision).sum(dim=0), sums.hits.sum(dim=0))


def roc_auc(sums: Running) -> FloatArray:
    """Return the probability that a positive outranks a negative, ties counting half: (R,)."""
    above = sums.seen_before - (sums.hits_through - sums.hits)
    through = sums.seen_through - sums.hits_through
    positives = sums.hits.sum(dim=0)
    negatives = sums.total - positives
    won = (sums.hits * (negatives - (above + through) / 2)).sum(dim=0)
    return _quotient(won, positives * negatives)


def accuracy(targets: BoolArray, predicted: BoolArray, weighed: Tensor) -> FloatArray:
    """Return the share of samples whose entire row is right: (R,), from (N, C) and (N, R)."""
    right = torch.from_numpy((targets == predicted).all(axis=1))
    return _quotient(right.to(weighed.dtype) @ weighed, weighed.sum(dim=0))


def f1(
    targets: BoolArray, predicted: BoolArray, weighed: Tensor, *, micro: bool = False
) -> FloatArray:
    """Return F1 per class: (R, C); NaN for a class neither present nor predicted.

    With ``micro``, over the decisions of all classes together: (R,).
    """
    hits, positives, claims = (
        torch.from_numpy(marks.T.astype(np.float32)).to(weighed.dtype) @ weighed
        for marks in (targets & predicted, targets, predicted)
    )
    marked = positives + claims
    if micro:
        return _quotient(2 * hits.sum(dim=0), marked.sum(dim=0))
    return _quotient(2 * hits, marked).T


def macro(values: FloatArray) -> FloatArray:
    """Return the mean over classes, ignoring NaN: (R, C) -> (R,); NaN if all are."""
    defined = ~np.isnan(values)
    total = torch.from_numpy(np.where(defined, values, 0.0).sum(axis=1))
    return _quotient(total, torch.from_numpy(defined.sum(axis=1)))


def _balanced(
    column: Ranking, targets: BoolArray, predictions: Predictions, weighed: Tensor
) -> dict[str, FloatArray]:
    """Return AP and F1 with negatives weighted to balance the positives; none is dropped."""
    positive, weighed = torch.from_numpy(targets), weighed.double()
    yes = (weighed * positive).sum(dim=0)
    # balanced separately in every resample, since their shares of positives differ
    even = torch.where(
        positive, weighed, weighed * (yes / (weighed.sum(dim=0) - yes).clamp_min(1e-12))
    )
    chosen = predictions.predicted_balanced
    decided = predictions.predicted if chosen is None else chosen
    return {
        "average_precision_balanced": average_precision(running(column, even)),
        "f1_balanced": f1(targets, decided, even)[:, 0],
    }


def best_thresholds(
    targets: BoolArray, scores: ScoreArray, weights: FloatArray | None = None
) -> FloatArray:
    """Return for each class the threshold with the highest F1 of ``score >= threshold``: (C,).

    Thresholds are among the scores (N, C); the highest among equals. A class without positives gets
    the best threshold for all classes together, 0.5 if no class has any. ``weights`` (N,) are
    sample weights; None weights all equally.
    """
    weighed = tally(unit_weights(len(targets)) if weights is None else weights[None])

    def best(ranking: Ranking, otherwise: float) -> float:
        """Return the threshold with the highest F1 of a class."""
        if len(ranking.values) == 0:
            return otherwise
        # F1 only falls between positives, so its maximum is at a group with a positive
        sums = running(ranking, weighed)
        by_group = _quotient(2 * sums.hits_through, sums.seen_through + sums.hits.sum(dim=0))
        return float(ranking.values[np.argmax(by_group[:, 0])])

    together = best(rank(targets, scores), NO_POSITIVE_THRESHOLD)
    columns = (rank(targets[:, c], scores[:, c]) for c in range(targets.shape[1]))
    return np.array([best(column, together) for column in columns])


def balancing_weights(targets: BoolArray) -> FloatArray:
    """Return weights (N,) under which positives and negatives of targets (N, 1) weigh the same."""
    positive = targets[:, 0]
    negatives = max(int((~positive).sum()), 1)
    return np.where(positive, 1.0, positive.sum() / negatives)


def reliability(targets: BoolArray, scores: ScoreArray, kind: str) -> dict[str, FloatArray]:
    """Return how often predictions of similar probability were right, in bins of equal width.

    A ``single`` task predicts one class per sample; any other predicts every class.

    Returns:
        ``edges`` (NUM_BINS + 1,); ``counts`` of predictions, their mean ``probability``, and the
        ``frequency`` of right ones, (NUM_BINS,) each; the latter two are NaN in an empty bin.
    """
    probability, right = _claims(targets, scores, kind)
    bins = _bins(probability).ravel()
    counts = np.bincount(bins, minlength=NUM_BINS).astype(np.float64)
    filled = np.where(counts > 0, counts, np.nan)
    return {
        "edges": _EDGES,
        "counts": counts,
        "probability": np.bincount(bins, probability.ravel(), NUM_BINS) / filled,
        "frequency": np.bincount(bins, right.ravel().astype(float), NUM_BINS) / filled,
    }


def _claims(targets: BoolArray, scores: ScoreArray, kind: str) -> tuple[FloatArray, BoolArray]:
    """Return the predicted probabilities and whether each prediction was right: both (N, K)."""
    probability = scores.astype(np.float64)
    if kind != "single":
        return probability, targets
    best = probability.argmax(axis=1)[:, None]
    return np.take_along_axis(probability, best, axis=1), np.take_along_axis(targets, best, axis=1)


def _calibration_gaps(probability: FloatArray, right: BoolArray) -> Tensor:
    """Return (NUM_BINS, N) float64: the contribution of each sample to the gap of each bin.

    The expected calibration error of a weighting is the sum of the absolute weighted gaps divided
    by the weight of all predictions.
    """
    gaps = torch.zeros(NUM_BINS, len(right), dtype=torch.float64)
    difference = torch.from_numpy(probability - right)
    for column, bins in enumerate(_bins(probability).T):
        gaps[torch.from_numpy(bins.copy()), torch.arange(len(bins))] += difference[:, column]
    return gaps


def _bins(probability: FloatArray) -> Indices:
    """Return the bin of each probability; 1 is in the last bin."""
    return np.clip(np.digitize(probability, _EDGES) - 1, 0, NUM_BINS - 1)


def _quotient(above: Tensor, below: Tensor) -> FloatArray:
    """Divide in float64; 0 / 0 is NaN, an undefined score."""
    return np.asarray((above.double() / below.double()).numpy())
