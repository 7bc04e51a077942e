"""Truth and class scores of a whole test set come in; accuracy, AP, F1 and ROC-AUC go out.

Nothing here averages over batches. Every score takes ``weights``, an (R, N) table of how often
each of N samples counts in each of R weightings: one row of ones gives the plain score, the counts
of a bootstrap give its distribution, and neither needs another sort.

A score that does not exist is NaN and stays out of macro means: AP of a class without a positive,
ROC-AUC of a class without a positive or without a negative, F1 of a class that is neither present
nor predicted. Otherwise the definitions are scikit-learn's, ties included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int32]  # sums over a weighting must stay below 2^31
Indices = npt.NDArray[np.intp]
ScoreArray = npt.NDArray[np.floating]

# The scores of each kind of task; the first is the headline, and choices on the validation split
# go by it. ``single`` is one of three classes or more, ``multi`` any number of classes, and
# ``binary`` yes or no, scored on the yes alone: at 2 % prevalence the no would drown it.
SCORES = {
    "single": ("accuracy", "f1_macro", "average_precision_macro", "roc_auc_macro"),
    "binary": ("average_precision", "f1", "roc_auc", "accuracy"),
    "multi": (
        "average_precision_micro",
        "average_precision_macro",
        "f1_micro",
        "f1_macro",
        "roc_auc_macro",
    ),
}
NO_POSITIVE_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Ranking:
    """Binary decisions in descending order of score, with equal scores kept as one group.

    Attributes:
        samples: (M,) sample of each decision.
        positives: (P,) sample of each positive decision, in the same order.
        start, end: (P,) the half-open range in ``samples`` of the group each positive is in.
        start_hits, end_hits: (P,) the same range in ``positives``.
        values: (P,) score of each positive.
    """

    samples: Indices
    positives: Indices
    start: Indices
    end: Indices
    start_hits: Indices
    end_hits: Indices
    values: ScoreArray


def rank(truth: BoolArray, scores: ScoreArray) -> Ranking:
    """Rank the decisions of one class (N,), or of all classes together (N, C), by score.

    Raises:
        ValueError: shapes differ, or a score is not a number.
    """
    _check(truth, scores)
    num_classes = truth.size // max(len(truth), 1)
    order = np.argsort(-scores.ravel(), kind="stable")
    values, hit = scores.ravel()[order], truth.ravel()[order]
    first = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    group = np.cumsum(np.isin(np.arange(len(values)), first)) - 1
    bounds, hits = np.append(first, len(values)), np.append(0, np.cumsum(hit))
    start, end = bounds[group[hit]], bounds[group[hit] + 1]
    samples = order // num_classes
    return Ranking(samples, samples[hit], start, end, hits[start], hits[end], values[hit])


def average_precision(ranking: Ranking, weights: Weights) -> FloatArray:
    """Return the step-wise area under precision and recall: (R,); NaN without a positive."""
    seen = _running(weights, ranking.samples)[:, ranking.end]
    hits = _running(weights, ranking.positives)[:, ranking.end_hits]
    counts = weights[:, ranking.positives]
    return _divide((counts * _divide(hits, seen, 0.0)).sum(axis=1), counts.sum(axis=1))


def roc_auc(ranking: Ranking, weights: Weights) -> FloatArray:
    """Return the chance that a positive outranks a negative, a tie counting half: (R,)."""
    all_seen, all_hits = (
        _running(weights, ranking.samples),
        _running(weights, ranking.positives),
    )
    before = all_seen[:, ranking.start] - all_hits[:, ranking.start_hits]
    through = all_seen[:, ranking.end] - all_hits[:, ranking.end_hits]
    positives = all_hits[:, -1].astype(np.float64)
    negatives = all_seen[:, -1] - positives
    below = negatives[:, None] - (before + through) / 2
    won = (weights[:, ranking.positives] * below).sum(axis=1)
    return _divide(won, positives * negatives)


def accuracy(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return the share of samples whose whole row is right: (R,), from (N, C) one-hot rows."""
    right = (truth == predicted).all(axis=1)
    return _divide(weights @ right.astype(np.float64), weights.sum(axis=1))


def f1(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return F1 of each class: (R, C); NaN where a class is neither present nor predicted."""
    hits, marked = _f1_counts(truth, predicted, weights)
    return _divide(2 * hits, marked)


def f1_micro(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return F1 over all decisions of all classes together: (R,)."""
    hits, marked = _f1_counts(truth, predicted, weights)
    return _divide(2 * hits.sum(axis=1), marked.sum(axis=1))


def macro(values: FloatArray) -> FloatArray:
    """Return the mean over classes that have a value: (R, C) -> (R,); NaN where none has."""
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def best_threshold(truth: BoolArray, scores: ScoreArray) -> float:
    """Return the one threshold for all classes with the highest micro F1 of ``score >= it``.

    It is a score of the validation split, the highest one among equals; 0.5 where that split has
    no positive at all.
    """
    ranking = rank(truth, scores)
    if len(ranking.values) == 0:
        return NO_POSITIVE_THRESHOLD
    # F1 only falls between two positives, so its maximum is at the group of a positive.
    by_group = 2 * ranking.end_hits / (ranking.end + len(ranking.positives))
    return float(ranking.values[np.argmax(by_group)])


def decide(scores: ScoreArray, kind: str, threshold: float) -> BoolArray:
    """Return (N, C) decisions: the best class of a ``single`` task, else ``>= threshold``."""
    if kind != "single":
        return np.asarray(scores >= threshold)
    chosen = scores.argmax(axis=1)
    return np.asarray(np.arange(scores.shape[1]) == chosen[:, None])


def plain(num_samples: int) -> Weights:
    """Return the one weighting in which every sample counts once: (1, N)."""
    return np.ones((1, num_samples), np.int32)


def score_panel(
    truth: BoolArray, scores: ScoreArray, predicted: BoolArray, kind: str
) -> Callable[[Weights], dict[str, FloatArray]]:
    """Return a function from weights (R, N) to the scores of a kind, each (R,); it sorts only here.

    truth, scores and predicted are (N, C), with C = 1 for ``binary``.
    """
    columns = [rank(truth[:, c], scores[:, c]) for c in range(truth.shape[1])]
    pooled = rank(truth, scores)

    def over_columns(
        score: Callable[[Ranking, Weights], FloatArray],
    ) -> Callable[[Weights], FloatArray]:
        """Return the macro average of a score of single classes."""
        return lambda weights: macro(np.stack([score(c, weights) for c in columns], axis=1))

    every: dict[str, Callable[[Weights], FloatArray]] = {
        "accuracy": lambda weights: accuracy(truth, predicted, weights),
        "f1_micro": lambda weights: f1_micro(truth, predicted, weights),
        "f1_macro": lambda weights: macro(f1(truth, predicted, weights)),
        "average_precision_micro": lambda weights: average_precision(pooled, weights),
        "average_precision_macro": over_columns(average_precision),
        "roc_auc_macro": over_columns(roc_auc),
    }
    # one column: the mean over classes is the class
    every |= {name: every[f"{name}_macro"] for name in ("f1", "average_precision", "roc_auc")}
    return lambda weights: {name: every[name](weights) for name in SCORES[kind]}


def _check(truth: BoolArray, scores: ScoreArray) -> None:
    if truth.shape != scores.shape:
        raise ValueError(f"truth is {truth.shape} and scores are {scores.shape}; give equal shapes")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are not a number")


def _f1_counts(
    truth: BoolArray, predicted: BoolArray, weights: Weights
) -> tuple[FloatArray, FloatArray]:
    """Return true positives, and positives plus predictions: both (R, C)."""
    counts = weights.astype(np.float64)  # products of integers do not reach BLAS
    marked = counts @ truth + counts @ predicted
    return counts @ (truth & predicted), marked


def _running(weights: Weights, samples: Indices) -> Weights:
    """Return (R, K + 1) sums of the weights of the first 0, 1, ..., K samples."""
    sums = np.zeros((len(weights), len(samples) + 1), np.int32)
    sums[:, 1:] = weights[:, samples]
    # In place: allocating the result costs ten times more than adding it up.
    np.cumsum(sums, axis=1, out=sums)
    return sums


def _divide(
    above: npt.NDArray[np.number], below: npt.NDArray[np.number], empty: float = np.nan
) -> FloatArray:
    """Divide, with ``empty`` where the divisor is 0."""
    shape = np.broadcast_shapes(above.shape, below.shape)
    quotient = np.full(shape, empty, np.float64)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient
