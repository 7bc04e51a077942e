"""The pictures of a study: its couplets, estimates with intervals, and curves; for its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.figures.canvas import COLORS, Axes, canvas
from jobs.study.analysis import Array, CurvePoint, Estimate, lowest_quarter

# The heat map is a triangle: each pair of the nine operations once.
_ROWS = ("brightness", "contrast", "gain", "speckle", "flip", "rotation", "shift", "zoom")
_COLUMNS = ("blur", *_ROWS[:-1])
_PALE = "#444444"  # still readable on the darkest green
_GREY = "#777777"
_SIDE = 0.46  # of a cell that is 1 wide: neighbours keep a frame each


def draw_couplets(
    path: Path, maps: Mapping[str, Sequence[Estimate]], clear: set[str], score: str
) -> Path:
    """Draw a triangle of couplets for each title; the lowest quarter of each is framed.

    Args:
        path: PNG.
        maps: title to estimates, those of couplets are drawn.
        clear: couplets of the first map that differ from the reference beyond chance, in bold.
        score: what is shown.
    """
    values = [one.mean for some in maps.values() for one in some if "+" in one.name]
    limits = float(np.nanmin(values)), float(np.nanmax(values))
    with canvas(path, 6.2 * len(maps), 5.8) as figure:
        panels = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, estimates) in zip(panels, maps.items(), strict=True):
            bold = clear if axes is panels[0] else set()  # of the mean, not of one label set
            image = _triangle(axes, estimates, limits, bold)
            axes.set_title(title)
        figure.colorbar(image, ax=panels, shrink=0.7, label=score)
    return path


def _triangle(
    axes: Axes, estimates: Sequence[Estimate], limits: tuple[float, float], clear: set[str]
) -> Any:
    grid: Array = np.full((len(_ROWS), len(_COLUMNS)), np.nan)
    lowest = lowest_quarter(estimates)
    for one in estimates:
        if "+" not in one.name:
            continue
        column, below = sorted(("blur", *_ROWS).index(name) for name in one.name.split("+"))
        row = below - 1  # rows begin with the second operation
        grid[row, column] = one.mean
        style: dict[str, Any] = {"color": _PALE}
        if one.name in clear:
            style = {"color": "black", "weight": "bold"}
        text = f"{one.mean:.3f}"
        if not math.isnan(one.half_width):
            text += f"\n±{one.half_width:.3f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, **style)
        if one.name in lowest:
            across = [column + _SIDE * sign for sign in (-1, 1, 1, -1, -1)]
            down = [row + _SIDE * sign for sign in (-1, -1, 1, 1, -1)]
            axes.plot(across, down, color=COLORS[1], linewidth=1.5)
    image = axes.imshow(grid, cmap="YlGn", vmin=limits[0], vmax=limits[1], alpha=0.55)
    axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=40, ha="right")
    axes.set_yticks(range(len(_ROWS)), _ROWS)
    axes.spines[:].set_visible(False)
    return image


def draw_estimates(path: Path, estimates: Sequence[Estimate], label: str) -> Path:
    """Draw means with their intervals, in the order of the table; a line where 0 matters."""
    with canvas(path, 7.5, 1.2 + 0.28 * len(estimates)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(estimates):
            half = 0 if math.isnan(one.half_width) else one.half_width
            color = COLORS[1] if one.excludes_zero else COLORS[0]
            axes.errorbar(one.mean, row, xerr=half, fmt="o", color=color, capsize=3, markersize=4)
        axes.set_yticks(range(len(estimates)), [one.name for one in estimates])
        axes.set_ylim(len(estimates) - 0.4, -0.6)  # downwards, as in the tables
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if tests := sum(not math.isnan(one.p_value) for one in estimates):
            axes.axvline(0, color=COLORS[6], linewidth=1)
            # of many intervals some leave 0 out by chance: the colour counts, not the interval
            axes.set_title(f"red: beyond chance, corrected for {tests} tests", fontsize=10)
    return path


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
    means = {share: float(np.mean(known[share])) for share in sorted(known)}
    marker = "o" if value == "probe" else ""
    axes.plot([*means], [*means.values()], linewidth=1.3, marker=marker, markersize=3, **style)
    fallen = sorted({one.share for one in own if one.collapsed} & set(means))
    if fallen:
        heights = [means[share] for share in fallen]
        axes.plot(fallen, heights, "x", color=style["color"], markersize=7)


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
