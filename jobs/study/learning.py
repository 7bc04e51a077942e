"""The metric records of a study's runs come in; how each arm learnt goes out: rows and words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from jobs.config import StudyName
from jobs.study.analysis import Estimate
from jobs.study.arms import Member
from simclr.monitoring.health import collapse_in_words
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

# Elsewhere arms differ in the chance level or the scale of their losses.
SAME_LOSS = (StudyName.optimizer, StudyName.rate)
_CONTROLS = "controls/"


@dataclass(frozen=True, slots=True)
class Moment:
    """What a run said of itself at a step.

    Attributes:
        arm: of the study.
        seed: of the study.
        step: optimizer step.
        share: of all steps.
        loss: mean since the record before.
        chance_level: loss of guessing, ln(2N - 1) with N pairs.
        headline: name of the score that the probe is told by; empty where not probed.
        probe: linear probe on validation labels; NaN where not probed.
        knn: the same of k-NN.
        random_encoder: the probe of an encoder that learnt nothing.
        image_statistics: the probe of means and deviations of the bands.
        collapsed: whether the projections of the interval had collapsed.
    """

    arm: str
    seed: int
    step: int
    share: float
    loss: float
    chance_level: float
    headline: str
    probe: float
    knn: float
    random_encoder: float
    image_statistics: float
    collapsed: bool


def moments_of(members: Iterable[Member]) -> list[Moment]:
    """Read what runs have said of themselves so far."""
    found = []
    for member in members:
        path = Path(member.run.run_dir, METRICS_NAME)
        if path.is_file():
            found += [_moment(member, record) for record in read_metrics(path)]
    return found


def against_scores(moments: Sequence[Moment], means: Sequence[Estimate], score: str) -> str:
    """Say which arm the loss would have chosen, and which the score chooses; nothing of one arm."""
    losses = {arm: _last_loss(moments, arm) for arm in {one.arm for one in moments}}
    both = [one for one in means if not math.isnan(one.mean + losses.get(one.name, math.nan))]
    if len(both) < 2:
        return ""
    lowest = min(both, key=lambda one: losses[one.name])
    best = max(both, key=lambda one: one.mean)
    return (
        f"The lowest loss, {losses[lowest.name]:.2f}, is that of {lowest.name}, whose {score} is "
        f"{lowest.mean:.3f}; the highest {score}, {best.mean:.3f}, is that of {best.name}, whose "
        f"loss is {losses[best.name]:.2f}.{_agreement(both, losses, score)}"
    )


def collapses(moments: Sequence[Moment]) -> str:
    """Name the arms that collapsed, with the share of their runs that did; nothing if none did."""
    runs = {(one.arm, one.seed) for one in moments}
    hit = {(one.arm, one.seed) for one in moments if one.collapsed}
    arms = dict.fromkeys(one.arm for one in moments if (one.arm, one.seed) in hit)
    told = [
        f"{arm} (in {sum(a == arm for a, _ in hit)} of {sum(a == arm for a, _ in runs)} runs)"
        for arm in arms
    ]
    return f"Projections collapsed at some step of {', '.join(told)}." if told else ""


def _moment(member: Member, record: dict[str, Any]) -> Moment:
    headline = _headline(record)
    return Moment(
        member.arm,
        member.seed,
        record["step"],
        record["step"] / record["num_steps"],
        _number(record, "loss"),
        record["chance_level"],
        headline,
        _number(record, f"probe/{headline}"),
        _number(record, f"knn/{headline}"),
        _number(record, f"{_CONTROLS}random_encoder"),
        _number(record, f"{_CONTROLS}image_statistics"),
        None not in (record["deviation"], record["mean_cosine"])
        and bool(collapse_in_words(record)),
    )


def _headline(record: dict[str, Any]) -> str:
    # the first of the panel, as curves of a single run take it
    return next((key for key in record if key.startswith("probe/")), "").partition("/")[2]


def _number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    return math.nan if value is None else float(value)


def _last_loss(moments: Sequence[Moment], arm: str) -> float:
    """Return the mean over seeds of an arm's loss at its last record."""
    last = {one.seed: one.loss for one in moments if one.arm == arm}
    return sum(last.values()) / len(last)


def _agreement(both: Sequence[Estimate], losses: dict[str, float], score: str) -> str:
    if len(both) < 3 or len({one.mean for one in both}) < 2:
        return ""
    found = stats.spearmanr([-losses[one.name] for one in both], [one.mean for one in both])
    return (
        f" Low loss and high {score} agree on the arms with Spearman {found.statistic:.2f}: choose "
        f"by {score}."
    )
