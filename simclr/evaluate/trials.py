"""Features and a split come in; the scored test samples of a k-NN vote and a linear probe go out.

Whatever is chosen (the penalty, the threshold) is chosen on the validation split, by the headline
score of the task; the test split is only ever predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simclr.evaluate.features import Features
from simclr.evaluate.knn import TEMPERATURE, knn_scores
from simclr.evaluate.probe import PENALTIES, Probe, choose_probe, fit_probes, standardisation
from simclr.evaluate.scores import (
    SCORES,
    BoolArray,
    Indices,
    ScoreArray,
    best_threshold,
    decide,
    plain,
    score_panel,
)
from simclr.evaluate.splits import Split
from simclr.evaluate.task import Task

KNN, PROBE = "k-NN", "linear probe"


@dataclass(frozen=True, slots=True)
class Trial:
    """The test samples of one split, as one classifier on one encoder sees them.

    Attributes:
        encoder: name of the row in the report.
        protocol: ``k-NN`` or ``linear probe``.
        seed: of the split and of a random control.
        test: (n,) samples that were predicted.
        truth, predicted: (n, C).
        scores: (n, C).
        choices: what was chosen on validation, for the report.
    """

    encoder: str
    protocol: str
    seed: int
    test: Indices
    truth: BoolArray
    predicted: BoolArray
    scores: ScoreArray
    choices: dict[str, float | bool]


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder's features of all labelled samples (N, D), and the seed it is tried with."""

    encoder: str
    seed: int
    features: Features


def try_knn(subject: Subject, task: Task, split: Split, num_neighbours: int) -> Trial:
    """Predict the test split by a vote among the training split.

    Features are standardised on the training split, as for the probe: an untrained encoder whose
    features point nearly all the same way would otherwise be a weaker control than it is.
    """
    train, validation, test = _standardised(*_parts(subject, split))
    truth = torch.from_numpy(task.truth[split.train])

    def votes(queries: Tensor) -> ScoreArray:
        """Return the neighbours' votes (Q, C)."""
        return np.asarray(knn_scores(train, truth, queries, num_neighbours).numpy())

    used = min(num_neighbours, len(split.train))
    choices = {"neighbours": float(used), "temperature": TEMPERATURE}
    return _trial(KNN, subject, task, split, (votes(validation), votes(test)), choices)


def try_probe(subject: Subject, task: Task, split: Split) -> Trial:
    """Fit a linear probe for every penalty, and predict the test split with the best one."""
    train, validation, test = _parts(subject, split)
    kind = "single" if task.kind == "single" else "multi"
    probes = fit_probes(train, torch.from_numpy(task.truth[split.train]), kind)

    def headline(probe: Probe) -> float:
        """Return the validation score that chooses."""
        return _headline(task, task.truth[split.validation], probe.scores(validation).numpy())

    best = choose_probe(probes, headline)
    choices: dict[str, float | bool] = {
        "penalty": best.penalty,
        "penalty_at_end_of_grid": best.penalty in (PENALTIES[0], PENALTIES[-1]),
        "converged": best.converged,
    }
    scores = best.scores(validation).numpy(), best.scores(test).numpy()
    return _trial(PROBE, subject, task, split, scores, choices)


def _parts(subject: Subject, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = (
        torch.from_numpy(subject.features[rows])
        for rows in (split.train, split.validation, split.test)
    )
    return train, validation, test


def _standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    mean, scale = standardisation(train)
    return [((part - mean) / scale).float() for part in (train, *others)]


def _headline(task: Task, truth: BoolArray, scores: ScoreArray) -> float:
    """Return the headline score, -inf where it does not exist."""
    predicted = decide(scores, task.kind, threshold=0.5)
    panel = score_panel(truth, scores, predicted, task.kind)(plain(len(truth)))
    return float(np.nan_to_num(panel[SCORES[task.kind][0]][0], nan=-np.inf))


def _trial(
    protocol: str,
    subject: Subject,
    task: Task,
    split: Split,
    scores: tuple[ScoreArray, ScoreArray],
    choices: dict[str, float | bool],
) -> Trial:
    """Choose the threshold on the validation scores and freeze it for the test scores."""
    on_validation, on_test = scores
    if task.kind != "single":
        choices = {
            **choices,
            "threshold": best_threshold(task.truth[split.validation], on_validation),
        }
    predicted = decide(on_test, task.kind, choices.get("threshold", 0.5))
    return Trial(
        subject.encoder,
        protocol,
        subject.seed,
        split.test,
        task.truth[split.test],
        predicted,
        on_test,
        choices,
    )
