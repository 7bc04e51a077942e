"""Features and a split come in; the scored test samples of a k-NN vote and a linear probe go out.

Whatever is chosen (the penalty, the threshold) is chosen on the validation split, by the headline
score of the task; the test split is only ever predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr.evaluation.config import Protocol
from simclr.evaluation.features import Features
from simclr.evaluation.metrics import (
    Answers,
    BoolArray,
    Indices,
    ScoreArray,
    balancing_weights,
    best_thresholds,
    decide,
    headline,
)
from simclr.evaluation.probes import (
    PENALTIES,
    TEMPERATURE,
    Probe,
    choose_probe,
    knn_scores,
    probe_path,
    standardisation,
)
from simclr.evaluation.splits import Split
from simclr.evaluation.task import Task

KNN, PROBE = Protocol.knn.value, Protocol.probe.value


@dataclass(frozen=True, slots=True)
class Trial:
    """The test samples of one split, as one classifier on one encoder sees them.

    Attributes:
        encoder: name of the row in the report.
        protocol: ``k-NN``, ``linear probe`` or ``fine-tune ...``.
        seed: of the split, the label subset and a random control.
        test: (n,) samples that were predicted.
        truth: (n, C).
        answers: of those samples.
        choices: what was chosen on validation, for the report.
        fraction: share of the training labels that was used.
    """

    encoder: str
    protocol: str
    seed: int
    test: Indices
    truth: BoolArray
    answers: Answers
    choices: dict[str, Any]
    fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class Entry:
    """Who is tried: name of the row, seed of this attempt, share of the training labels."""

    encoder: str
    seed: int
    fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder's features of all labelled samples, and what it is tried with.

    Attributes:
        encoder: name of the row in the report.
        seed: of this attempt.
        features: (N, D).
        fraction: share of the training labels.
    """

    encoder: str
    seed: int
    features: Features
    fraction: float = 1.0

    @property
    def entry(self) -> Entry:
        """Who is tried, without the features."""
        return Entry(self.encoder, self.seed, self.fraction)


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
    return judge(KNN, subject.entry, task, split, (votes(validation), votes(test)), choices)


def try_probe(subject: Subject, task: Task, split: Split) -> Trial:
    """Fit a linear probe for every penalty, and predict the test split with the best one."""
    train, validation, test = _parts(subject, split)
    kind = "single" if task.kind == "single" else "multi"
    probes = probe_path(train, torch.from_numpy(task.truth[split.train]), kind)

    def on_validation(probe: Probe) -> float:
        """Return the score that chooses."""
        return headline(task.truth[split.validation], probe.scores(validation).numpy(), task.kind)

    best = choose_probe(probes, on_validation)
    choices = {
        "penalty": best.penalty,
        "penalty_at_end_of_grid": best.penalty in (PENALTIES[0], PENALTIES[-1]),
        "converged": best.converged,
    }
    scores = best.scores(validation).numpy(), best.scores(test).numpy()
    return judge(PROBE, subject.entry, task, split, scores, choices)


def judge(
    protocol: str,
    entry: Entry,
    task: Task,
    split: Split,
    scores: tuple[ScoreArray, ScoreArray],
    choices: dict[str, Any],
) -> Trial:
    """Choose thresholds on the validation scores and freeze them for the test scores.

    For a world with as many yes as no, the thresholds are chosen anew with weights that make the
    validation split such a world; the test split is no part of that choice.
    """
    on_validation, on_test = scores
    truth = task.truth[split.validation]
    balanced = None
    if task.kind != "single":
        choices = {**choices, "thresholds": best_thresholds(truth, on_validation).tolist()}
    if task.kind == "binary":
        even = best_thresholds(truth, on_validation, balancing_weights(truth))
        balanced = decide(on_test, task.kind, even)
        choices["thresholds_balanced"] = even.tolist()
    predicted = decide(on_test, task.kind, np.array(choices.get("thresholds", 0.5)))
    return Trial(
        entry.encoder,
        protocol,
        entry.seed,
        split.test,
        task.truth[split.test],
        Answers(on_test, predicted, balanced),
        choices,
        entry.fraction,
    )


def _parts(subject: Subject, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    train, validation, test = (
        torch.from_numpy(subject.features[rows])
        for rows in (split.train, split.validation, split.test)
    )
    return train, validation, test


def _standardised(train: Tensor, *others: Tensor) -> list[Tensor]:
    mean, scale = standardisation(train)
    return [((part - mean) / scale).float() for part in (train, *others)]
