"""Loss, probe and collapse of a study's runs while they train, for the report of simclr-study.

A loss is no measure of quality: it is always shown beside the probe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jobs.config import StudyName
from jobs.figures.canvas import COLORS, Axes, canvas
from jobs.study.analysis import Estimate
from jobs.study.arms import StudyRun
from simclr.monitoring.health import collapse_in_words
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

# Elsewhere arms differ in the chance level or the scale of their losses.
SAME_LOSS = (StudyName.optimizer, StudyName.rate)
_GREY = "#777777"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One metric record of a run.

    Attributes:
        arm: of the study.
        seed: of the study.
        step: optimizer step.
        share: of all steps.
        loss: mean since the record before.
        chance_level: loss of guessing, ln(2N - 1) with N pairs.
        metric: name of the score of the probe; empty where not probed.
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
    metric: str
    probe: float
    knn: float
    random_encoder: float
    image_statistics: float
    collapsed: bool


def read_curves(runs: Iterable[StudyRun]) -> list[CurvePoint]:
    """Read the metric records of runs; those that have not begun have none."""
    points = []
    for run in runs:
        path = Path(run.config.run_dir, METRICS_NAME)
        if path.is_file():
            points += [_point(run, record) for record in read_metrics(path)]
    return points


def loss_beside_score(points: Sequence[CurvePoint], means: Sequence[Estimate], score: str) -> str:
    """Name the arm that the loss would choose and the one that the score chooses; empty for one."""
    losses = {arm: _last_loss(points, arm) for arm in {one.arm for one in points}}
    both = [one for one in means if not math.isnan(one.mean + losses.get(one.name, math.nan))]
    if len(both) < 2:
        return ""
    lowest = min(both, key=lambda one: losses[one.name])
    best = max(both, key=lambda one: one.mean)
    sentence = (
        f"The lowest loss, {losses[lowest.name]:.2f}, is that of {lowest.name}, whose {score} is "
        f"{lowest.mean:.3f}; the highest {score}, {best.mean:.3f}, is that of {best.name}, whose "
        f"loss is {losses[best.name]:.2f}."
    )
    if len(both) < 3 or len({one.mean for one in both}) < 2:
        return sentence
    found = stats.spearmanr([-losses[one.name] for one in both], [one.mean for one in both])
    return f"{sentence} Low loss and high {score} agree with Spearman {found.statistic:.2f}."


def collapses(points: Sequence[CurvePoint]) -> str:
    """Name the arms that collapsed, with the share of their runs that did; empty if none did."""
    runs = {(one.arm, one.seed) for one in points}
    hit = {(one.arm, one.seed) for one in points if one.collapsed}
    arms = dict.fromkeys(one.arm for one in points if (one.arm, one.seed) in hit)
    named = [
        f"{arm} (in {sum(a == arm for a, _ in hit)} of {sum(a == arm for a, _ in runs)} runs)"
        for arm in arms
    ]
    return f"Projections collapsed at some step of {', '.join(named)}." if named else ""


def draw_curves(path: Path, points: Sequence[CurvePoint]) -> Path:
    """Draw each arm's loss, with the level of chance, and beside it its probe: means over seeds.

    Arms whose names begin alike share a colour. A cross is where projections had collapsed. The
    loss is no measure of quality, and arms of other batch sizes have other chance levels.
    """
    arms = list(dict.fromkeys(one.arm for one in points))
    with canvas(path, 13, 5) as figure:
        left, right = figure.subplots(1, 2)
        for arm, style in zip(arms, _styles(arms), strict=True):
            own = [one for one in points if one.arm == arm]
            for axes, value in ((left, "loss"), (right, "probe")):
                _curve(axes, own, value, {"label": arm, **style})
        if any(one.collapsed for one in points):
            left.plot([], [], "x", color=COLORS[6], label="collapsed")
        for chance in sorted({one.chance_level for one in points}):
            left.axhline(chance, color=_GREY, linestyle="--", linewidth=1)
            text = f"chance: ln(2N - 1) = {chance:.2f}"
            left.annotate(text, (1, chance), ha="right", va="bottom", fontsize=8)
        left.set_ylabel("contrastive loss (no measure of quality)")
        _label_probe(right, points)
        for axes in (left, right):
            axes.set_xlabel("share of all steps")
            axes.set_xlim(0, 1.02)
            axes.grid(alpha=0.3)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=8)
    return path


def _styles(arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return colour and dashes of each arm: colours for families, dashes within one."""
    families = [arm.rpartition(" ")[0] or arm for arm in arms]
    colors = list(dict.fromkeys(families))
    seen = [families[:number].count(family) for number, family in enumerate(families)]
    return [
        {
            "color": COLORS[colors.index(family) % len(COLORS)],
            "linestyle": ("-", "--", ":", "-.")[(rank + colors.index(family) // len(COLORS)) % 4],
        }
        for family, rank in zip(families, seen, strict=True)
    ]


def _curve(axes: Axes, own: Sequence[CurvePoint], value: str, style: Mapping[str, Any]) -> None:
    """Draw the mean over seeds of an arm at each share of its steps, and what had collapsed."""
    known: dict[float, list[float]] = {}
    for one in own:
        if not math.isnan(number := getattr(one, value)):
            known.setdefault(one.share, []).append(number)
    shares = sorted(known)
    means = [float(np.mean(known[share])) for share in shares]
    marker = "o" if value == "probe" else ""
    axes.plot(shares, means, linewidth=1.3, marker=marker, markersize=3, **style)
    fallen = {one.share for one in own if one.collapsed} & set(shares)
    crosses = [(share, mean) for share, mean in zip(shares, means, strict=True) if share in fallen]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color=style["color"], markersize=7)


def _label_probe(axes: Axes, points: Sequence[CurvePoint]) -> None:
    """Label the axis of the probe, and draw the untrained controls."""
    metric = next((one.metric for one in points if one.metric), "")
    if not metric:
        axes.text(0.5, 0.5, "not probed: monitor.shards", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    axes.set_ylabel(f"linear probe, validation labels: {metric.replace('_', ' ')}")
    for name, style in (("random_encoder", ":"), ("image_statistics", "--")):
        values = [getattr(one, name) for one in points if not math.isnan(getattr(one, name))]
        if values:
            level = float(np.mean(values))
            axes.axhline(level, color=COLORS[6], linestyle=style, linewidth=1)
            text = name.replace("_", " ")
            axes.annotate(text, (0.01, level), ha="left", va="bottom", fontsize=8)


def _point(run: StudyRun, record: dict[str, Any]) -> CurvePoint:
    # the first metric of the probe, as curves of a single run take it
    metric = next((key for key in record if key.startswith("probe/")), "").partition("/")[2]

    def number(key: str) -> float:
        """Return a metric, NaN where it is missing or null."""
        value = record.get(key)
        return math.nan if value is None else float(value)

    return CurvePoint(
        run.arm,
        run.seed,
        record["step"],
        record["step"] / record["num_steps"],
        number("loss"),
        record["chance_level"],
        metric,
        number(f"probe/{metric}"),
        number(f"knn/{metric}"),
        number("controls/random_encoder"),
        number("controls/image_statistics"),
        None not in (record["deviation"], record["mean_cosine"])
        and bool(collapse_in_words(record)),
    )


def _last_loss(points: Sequence[CurvePoint], arm: str) -> float:
    """Return the mean over seeds of an arm's loss at its last record."""
    last = {one.seed: one.loss for one in points if one.arm == arm}
    return sum(last.values()) / len(last)
