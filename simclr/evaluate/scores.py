"""Truth and class scores of a whole test set come in; all scores of its kind of task go out.

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
import torch
from torch import Tensor

from simclr.evaluate.calibration import calibration_gaps, claims, squared_errors
from simclr.evaluate.config import SCORES
from simclr.evaluate.ranking import (
    BoolArray,
    FloatArray,
    Ranking,
    ScoreArray,
    Weights,
    average_precision,
    f1_by_group,
    rank,
    roc_auc,
    running,
    tally,
)

CLASS_SCORES = ("average_precision", "f1", "roc_auc")
NO_POSITIVE_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Panel:
    """Scores of R weightings.

    Attributes:
        overall: by name, each (R,).
        classes: by name, each (R, C).
    """

    overall: dict[str, FloatArray]
    classes: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a classifier said of N samples.

    Attributes:
        scores: (N, C).
        predicted: (N, C) decisions.
        predicted_balanced: (N, C) decisions for a world of as many yes as no; of a ``binary``
            task only.
    """

    scores: ScoreArray
    predicted: BoolArray
    predicted_balanced: BoolArray | None = None


def score_panel(truth: BoolArray, answers: Answers, kind: str) -> Callable[[Weights], Panel]:
    """Return a function from weights (R, N) to the scores of a kind; it sorts only here.

    Args:
        truth: (N, C), with C = 1 for ``binary``.
        answers: to be scored.
        kind: of the task, see ``simclr.evaluate.config.SCORES``.
    """
    scores, predicted = answers.scores, answers.predicted
    columns = [rank(truth[:, c], scores[:, c]) for c in range(truth.shape[1])]
    pooled = rank(truth, scores) if kind == "multi" else None
    calibrated = _calibration(truth, scores, kind)

    def score(weights: Weights) -> Panel:
        """Return all scores of these weightings."""
        weighed = tally(weights)
        classes = _by_class(columns, truth, predicted, weighed)
        overall = {name: macro(values) for name, values in classes.items()}
        overall |= {f"{name}_macro": values for name, values in overall.items()}
        overall["accuracy"] = _accuracy(truth, predicted, weighed)
        overall |= calibrated(weighed)
        if pooled is not None:
            overall["average_precision_micro"] = average_precision(running(pooled, weighed))
            overall["f1_micro"] = f1_micro(truth, predicted, weights)
        if kind == "binary":
            overall |= _balanced(columns[0], truth, answers, weighed)
        return Panel({name: overall[name] for name in SCORES[kind]}, classes)

    return score


def headline(truth: BoolArray, scores: ScoreArray, kind: str) -> float:
    """Return the first score of a kind of task, by which choices are made; -inf if undefined."""
    weights = plain(len(truth))
    if kind == "single":
        value = accuracy(truth, decide(scores, kind, NO_POSITIVE_THRESHOLD), weights)
    else:  # of one column, the pooled ranking is the ranking
        value = average_precision(running(rank(truth, scores), tally(weights)))
    return float(np.nan_to_num(value[0], nan=-np.inf))


def accuracy(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return the share of samples whose whole row is right: (R,), from (N, C) one-hot rows."""
    return _accuracy(truth, predicted, tally(weights))


def f1(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return F1 of each class: (R, C); NaN where a class is neither present nor predicted."""
    return _f1(truth, predicted, tally(weights))


def f1_micro(truth: BoolArray, predicted: BoolArray, weights: Weights) -> FloatArray:
    """Return F1 over all decisions of all classes together: (R,)."""
    hits, marked = _f1_counts(truth, predicted, tally(weights))
    return _quotient(2 * hits.sum(dim=0), marked.sum(dim=0))


def macro(values: FloatArray) -> FloatArray:
    """Return the mean over classes that have a value: (R, C) -> (R,); NaN where none has."""
    defined = ~np.isnan(values)
    total = torch.from_numpy(np.where(defined, values, 0.0).sum(axis=1))
    return _quotient(total, torch.from_numpy(defined.sum(axis=1)))


def best_thresholds(
    truth: BoolArray, scores: ScoreArray, weights: FloatArray | None = None
) -> FloatArray:
    """Return for each class the threshold with the highest F1 of ``score >= it``: (C,).

    Thresholds are scores of the validation split, the highest one among equals. A class without a
    positive takes the one that is best for all classes together; 0.5 where no class has any.

    Args:
        truth: (N, C).
        scores: (N, C).
        weights: (N,) how much each sample counts; None counts all alike.
    """
    counts = plain(len(truth)) if weights is None else weights[None]
    together = _best(rank(truth, scores), counts, NO_POSITIVE_THRESHOLD)
    columns = (rank(truth[:, c], scores[:, c]) for c in range(truth.shape[1]))
    return np.array([_best(column, counts, together) for column in columns])


def balancing_weights(truth: BoolArray) -> FloatArray:
    """Return weights (N,) under which the yes of truth (N, 1) weigh as much as the no."""
    positive = truth[:, 0]
    negatives = max(int((~positive).sum()), 1)
    return np.where(positive, 1.0, positive.sum() / negatives)


def decide(scores: ScoreArray, kind: str, thresholds: FloatArray | float) -> BoolArray:
    """Return (N, C) decisions: the best class of a ``single`` task, else ``>= threshold``."""
    if kind != "single":
        return np.asarray(scores >= thresholds)
    chosen = scores.argmax(axis=1)
    return np.asarray(np.arange(scores.shape[1]) == chosen[:, None])


def plain(num_samples: int) -> Weights:
    """Return the one weighting in which every sample counts once: (1, N)."""
    return np.ones((1, num_samples), np.int32)


def _by_class(
    columns: list[Ranking], truth: BoolArray, predicted: BoolArray, weighed: Tensor
) -> dict[str, FloatArray]:
    sums = [running(column, weighed) for column in columns]
    return {
        "average_precision": np.stack([average_precision(one) for one in sums], axis=1),
        "f1": _f1(truth, predicted, weighed),
        "roc_auc": np.stack([roc_auc(one) for one in sums], axis=1),
    }


def _balanced(
    column: Ranking, truth: BoolArray, answers: Answers, weighed: Tensor
) -> dict[str, FloatArray]:
    """Return AP and F1 if as many samples were yes as no: each no counts less, none is dropped."""
    even = weighed.double() * torch.from_numpy(balancing_weights(truth))[:, None]
    chosen = answers.predicted_balanced
    decided = answers.predicted if chosen is None else chosen
    return {
        "average_precision_balanced": average_precision(running(column, even)),
        "f1_balanced": _f1(truth, decided, even)[:, 0],
    }


def _calibration(
    truth: BoolArray, scores: ScoreArray, kind: str
) -> Callable[[Tensor], dict[str, FloatArray]]:
    made = claims(truth, scores, kind)
    gaps, squares = calibration_gaps(made), squared_errors(truth, scores, kind)
    num_claims = made.right.shape[1]

    def score(weighed: Tensor) -> dict[str, FloatArray]:
        """Return expected calibration error and Brier score."""
        total = weighed.sum(dim=0).double()
        error = (gaps.to(weighed.dtype) @ weighed).abs().sum(dim=0)
        return {
            "calibration_error": _quotient(error, num_claims * total),
            "brier": _quotient(squares.to(weighed.dtype) @ weighed, total),
        }

    return score


def _best(ranking: Ranking, counts: Weights, otherwise: float) -> float:
    if len(ranking.values) == 0:
        return otherwise
    # F1 only falls between two positives, so its maximum is at the group of a positive
    by_group = f1_by_group(running(ranking, tally(counts)))
    return float(ranking.values[np.argmax(by_group[:, 0])])


def _accuracy(truth: BoolArray, predicted: BoolArray, weighed: Tensor) -> FloatArray:
    right = torch.from_numpy((truth == predicted).all(axis=1))
    return _quotient(right.to(weighed.dtype) @ weighed, weighed.sum(dim=0))


def _f1(truth: BoolArray, predicted: BoolArray, weighed: Tensor) -> FloatArray:
    hits, marked = _f1_counts(truth, predicted, weighed)
    return _quotient(2 * hits, marked).T


def _f1_counts(truth: BoolArray, predicted: BoolArray, weighed: Tensor) -> tuple[Tensor, Tensor]:
    """Return true positives, and positives plus predictions: both (C, R)."""

    def total(marks: BoolArray) -> Tensor:
        """Return the weight of the marked samples of each class."""
        return torch.from_numpy(marks.T.astype(np.float32)).to(weighed.dtype) @ weighed

    return total(truth & predicted), total(truth) + total(predicted)


def _quotient(above: Tensor, below: Tensor) -> FloatArray:
    """Divide in float64; 0 / 0 is NaN, a score that does not exist."""
    return np.asarray((above.double() / below.double()).numpy())
