"""The pictures of a study: its couplets, estimates with intervals, and curves; for its report.

Scores are drawn in percent, differences in points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from jobs.figures.canvas import COLORS, Axes, canvas, plain
from jobs.study.analysis import Array, CurvePoint, Estimate, lowest_quarter

# The heat map is a triangle: each pair of the nine operations once.
_ROWS = ("brightness", "contrast", "gain", "speckle", "flip", "rotation", "shift", "zoom")
_COLUMNS = ("blur", *_ROWS[:-1])
_PALE = "#444444"  # still readable on the darkest green
_GREY = "#777777"
_SIDE = 0.46  # of a cell that is 1 wide: neighbours keep a frame each


def draw_couplets(
    path: Path,
    estimates: Sequence[Estimate],
    limits: tuple[float, float],
    score: str,
    clear: Set[str] = frozenset(),
) -> Path:
    """Draw the triangle of couplets; their lowest quarter is framed.

    Args:
        path: PNG.
        estimates: of arms; those of couplets are drawn.
        limits: scores at the ends of the colours, 0 to 1.
        score: its name.
        clear: couplets that differ significantly from the reference, in bold.
    """
    with canvas(path, 8.6, 6.2) as figure:
        axes = figure.subplots()
        image = _triangle(axes, estimates, limits, clear)
        figure.colorbar(image, ax=axes, shrink=0.7, label=f"{plain(score)} (%)")
    return path


def _triangle(
    axes: Axes, estimates: Sequence[Estimate], limits: tuple[float, float], clear: Set[str]
) -> Any:
    grid: Array = np.full((len(_ROWS), len(_COLUMNS)), np.nan)
    lowest = lowest_quarter(estimates)
    for one in estimates:
        if "+" not in one.name:
            continue
        column, below = sorted(("blur", *_ROWS).index(name) for name in one.name.split("+"))
        row = below - 1  # rows begin with the second operation
        grid[row, column] = 100 * one.mean
        style: dict[str, Any] = {"color": _PALE}
        if one.name in clear:
            style = {"color": "black", "weight": "bold"}
        text = f"{100 * one.mean:.1f}"
        if not math.isnan(one.half_width):
            text += f"\n±{100 * one.half_width:.1f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=11, **style)
        if one.name in lowest:
            across = [column + _SIDE * sign for sign in (-1, 1, 1, -1, -1)]
            down = [row + _SIDE * sign for sign in (-1, -1, 1, 1, -1)]
            axes.plot(across, down, color=COLORS[1], linewidth=2)
    low, high = (100 * limit for limit in limits)
    image = axes.imshow(grid, cmap="YlGn", vmin=low, vmax=high, alpha=0.55, aspect="auto")
    axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=30, ha="right", fontsize=11)
    axes.set_yticks(range(len(_ROWS)), _ROWS, fontsize=11)
    axes.spines[:].set_visible(False)
    return image


def draw_estimates(path: Path, estimates: Sequence[Estimate], label: str) -> Path:
    """Draw means with their intervals, in the order given; a line where 0 matters."""
    with canvas(path, 8.6, 1.2 + 0.3 * len(estimates)) as figure:
        axes = figure.subplots()
        for row, one in enumerate(estimates):
            half = 0 if math.isnan(one.half_width) else 100 * one.half_width
            style: dict[str, Any] = {"fmt": "o", "capsize": 3, "markersize": 4}
            color = COLORS[1] if one.excludes_zero else COLORS[0]
            axes.errorbar(100 * one.mean, row, xerr=half, color=color, **style)
        axes.set_yticks(range(len(estimates)), [one.name for one in estimates])
        axes.set_ylim(len(estimates) - 0.4, -0.6)  # downwards, as in the tables
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if tests := sum(not math.isnan(one.p_value) for one in estimates):
            axes.axvline(0, color=COLORS[6], linewidth=1)
            # of many intervals some leave 0 out by chance: the colour counts, not the interval
            axes.set_title(f"red: significant after correction for {tests} tests", fontsize=10)
    return path


def draw_curves(path: Path, points: Sequence[CurvePoint]) -> Path:
    """Draw each arm's loss with the chance level and, where runs were probed, their probe.

    Lines are means over seeds; arms whose names begin alike share a colour, and a cross marks a
    collapse. The loss is no measure of quality, and other batch sizes have other chance levels.
    """
    arms = list(dict.fromkeys(one.arm for one in points))
    metric = next((one.metric for one in points if one.metric), "")
    with canvas(path, 13 if metric else 8.6, 5) as figure:
        left, *right = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
        for arm, style in zip(arms, _styles(arms), strict=True):
            own = [one for one in points if one.arm == arm]
            for axes, value, scale in zip(
                (left, *right), ("loss", "probe"), (1, 100), strict=False
            ):
                _curve(axes, own, value, scale, {"label": arm, **style})
        if any(one.collapsed for one in points):
            left.plot([], [], "x", color=COLORS[6], label="collapsed")
        for chance in sorted({one.chance_level for one in points}):
            left.axhline(chance, color=_GREY, linestyle="--", linewidth=1)
            text = f"chance: ln(2N - 1) = {chance:.2f}"
            left.annotate(text, (1, chance), ha="right", va="bottom", fontsize=9)
        left.set_ylabel("contrastive loss (no measure of quality)")
        for axes in right:
            axes.set_ylabel(f"linear probe, validation labels: {plain(metric)} (%)")
            _draw_baselines(axes, points)
        for axes in (left, *right):
            axes.set_xlabel("share of all steps")
            axes.set_xlim(0, 1.02)
            axes.grid(alpha=0.3)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=9)
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


def _curve(
    axes: Axes, own: Sequence[CurvePoint], value: str, scale: float, style: Mapping[str, Any]
) -> None:
    """Draw the mean over seeds of an arm at each share of its steps, and where it had collapsed."""
    known: dict[float, list[float]] = {}
    for one in own:
        if not math.isnan(number := scale * getattr(one, value)):
            known.setdefault(one.share, []).append(number)
    means = {share: float(np.mean(known[share])) for share in sorted(known)}
    marker = "o" if value == "probe" else ""
    axes.plot([*means], [*means.values()], linewidth=1.3, marker=marker, markersize=3, **style)
    fallen = sorted({one.share for one in own if one.collapsed} & set(means))
    if fallen:
        heights = [means[share] for share in fallen]
        axes.plot(fallen, heights, "x", color=style["color"], markersize=7)


def _draw_baselines(axes: Axes, points: Sequence[CurvePoint]) -> None:
    for name, style in (("random_encoder", ":"), ("image_statistics", "--")):
        values = [getattr(one, name) for one in points if not math.isnan(getattr(one, name))]
        if values:
            level = 100 * float(np.mean(values))
            axes.axhline(level, color=COLORS[6], linestyle=style, linewidth=1)
            axes.annotate(plain(name), (0.01, level), ha="left", va="bottom", fontsize=9)
