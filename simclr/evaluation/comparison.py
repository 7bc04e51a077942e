"""Trials come in; scores with intervals and paired differences to the controls go out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simclr.evaluation.bootstrap import (
    Interval,
    percentile_interval,
    repeated_split_interval,
    two_sided_p,
)
from simclr.evaluation.config import SCORES
from simclr.evaluation.metrics import (
    CLASS_SCORES,
    FloatArray,
    Indices,
    Panel,
    Weights,
    plain,
    score_panel,
)
from simclr.evaluation.trials import Trial


@dataclass(frozen=True, slots=True)
class Row:
    """One encoder under one protocol, the mean over its trials.

    Attributes:
        encoder, protocol: what was scored, and how.
        fraction: share of the training labels that was used.
        trials: one a seed; a single one where no seed plays a part.
        intervals: by score, over resamples of the test blocks.
        classes: by score of single classes, one interval a class.
        by_seed: by score, the value of each trial.
        distributions: by score, (R,) values over the resamples.
    """

    encoder: str
    protocol: str
    fraction: float
    trials: tuple[Trial, ...]
    intervals: dict[str, Interval]
    classes: dict[str, list[Interval]]
    by_seed: dict[str, FloatArray]
    distributions: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an encoder is ahead of a control in one score.

    Attributes:
        encoder: in question.
        control, protocol, fraction, score: what is compared.
        over_samples: interval over resamples of the test blocks, paired.
        over_seeds: Student's interval over seeds, corrected for overlapping test sets; without
            ends where there is one seed.
        p_value: two-sided, of no difference, by the paired resamples of the test blocks.
        resolved: whether every interval there is excludes zero.
    """

    encoder: str
    control: str
    protocol: str
    fraction: float
    score: str
    over_samples: Interval
    over_seeds: Interval
    p_value: float
    resolved: bool


def score_trials(
    trials: Sequence[Trial], kind: str, tested: Indices, resamples: Iterable[Weights]
) -> list[Row]:
    """Score all trials on the same resamples, and gather those of one encoder and protocol.

    Args:
        trials: all of them.
        kind: of the task.
        tested: (T,) sorted, every sample that some trial tested.
        resamples: counts (r, T) of those samples, some rows at a time.
    """
    panels = [score_panel(t.truth, t.answers, kind) for t in trials]
    values = [panel(plain(len(t.test))) for panel, t in zip(panels, trials, strict=True)]
    places = [np.searchsorted(tested, t.test) for t in trials]
    drawn: list[list[Panel]] = [[] for _ in trials]
    for counts in resamples:
        for panel, place, chunks in zip(panels, places, drawn, strict=True):
            whole = len(place) == counts.shape[1]  # then a copy would change nothing
            chunks.append(panel(counts if whole else counts[:, place]))
    rows: dict[tuple[str, str, float], list[int]] = {}
    for number, trial in enumerate(trials):
        rows.setdefault((trial.encoder, trial.protocol, trial.fraction), []).append(number)
    return [
        _row(
            [trials[i] for i in members], [values[i] for i in members], [drawn[i] for i in members]
        )
        for members in rows.values()
    ]


def compare(row: Row, control: Row, kind: str, test_to_train: float) -> list[Difference]:
    """Return the paired differences of two rows of one protocol, for every score.

    Args:
        row: the encoder in question.
        control: what it should beat.
        kind: of the task.
        test_to_train: test samples over training samples if every seed drew its own split, else 0.
    """
    return [_difference(row, control, score, test_to_train) for score in SCORES[kind]]


def _row(trials: list[Trial], values: list[Panel], drawn: list[list[Panel]]) -> Row:
    names = list(values[0].overall)
    by_seed = {name: np.array([value.overall[name][0] for value in values]) for name in names}
    distributions = {
        name: np.mean([_joined([chunk.overall[name] for chunk in one]) for one in drawn], axis=0)
        for name in names
    }
    intervals = {
        name: percentile_interval(float(by_seed[name].mean()), distributions[name])
        for name in names
    }
    classes = {name: _class_intervals(name, values, drawn) for name in CLASS_SCORES}
    first = trials[0]
    return Row(
        first.encoder,
        first.protocol,
        first.fraction,
        tuple(trials),
        intervals,
        classes,
        by_seed,
        distributions,
    )


def _class_intervals(name: str, values: list[Panel], drawn: list[list[Panel]]) -> list[Interval]:
    """Return one interval a class: the mean over trials, NaN where a trial has no value."""
    means = np.mean([value.classes[name][0] for value in values], axis=0)
    spread = np.mean([_joined([chunk.classes[name] for chunk in one]) for one in drawn], axis=0)
    return [
        percentile_interval(float(mean), column)
        for mean, column in zip(means, spread.T, strict=True)
    ]


def _joined(chunks: list[FloatArray]) -> FloatArray:
    return np.concatenate(chunks)


def _difference(row: Row, control: Row, score: str, test_to_train: float) -> Difference:
    # a row without seeds stands beside every seed of the other
    by_seed = np.subtract(*np.broadcast_arrays(row.by_seed[score], control.by_seed[score]))
    paired = row.distributions[score] - control.distributions[score]
    over_samples = percentile_interval(float(by_seed.mean()), paired)
    over_seeds = repeated_split_interval(by_seed, test_to_train)
    known = [over_samples] if len(by_seed) == 1 else [over_samples, over_seeds]
    resolved = all(interval.excludes_zero for interval in known)
    return Difference(
        row.encoder,
        control.encoder,
        row.protocol,
        row.fraction,
        score,
        over_samples,
        over_seeds,
        two_sided_p(paired),
        resolved,
    )
