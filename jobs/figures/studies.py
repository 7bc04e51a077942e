"""The tables of a study come in; heat maps of couplets, arms with intervals and curves go out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.figures.canvas import COLORS, Axes, canvas
from jobs.studies.analysis import Estimate

_ROWS = ("brightness", "contrast", "gain", "speckle", "flip", "rotation", "shift", "zoom")
_COLUMNS = ("blur", *_ROWS[:-1])
_GREY = "#777777"
_PALE = "#444444"  # still readable on the darkest green


def draw_couplets(
    path: Path, maps: Mapping[str, Sequence[Estimate]], clear: set[str], score: str
) -> Path:
    """Draw a triangle of couplets for each title; cells in bold are told from ``none``.

    Args:
        path: PNG.
        maps: title to estimates, those of couplets are drawn.
        clear: couplets that differ from the reference beyond chance.
        score: what is shown.
    """
    values = [one.mean for some in maps.values() for one in some if "+" in one.name]
    low, high = np.nanmin(values), np.nanmax(values)
    with canvas(path, 6.2 * len(maps), 5.8) as figure:
        places = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, estimates) in zip(places, maps.items(), strict=True):
            image = _triangle(axes, _cells(estimates), (float(low), float(high)), clear)
            axes.set_title(title)
        figure.colorbar(image, ax=places, shrink=0.7, label=score)
    return path


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


def draw_losses(path: Path, curves: Mapping[str, Sequence[dict[str, Any]]]) -> Path:
    """Draw the loss of each arm against its progress, with the level of chance, ln(2N - 1).

    The loss is no measure of quality, and arms of other batch sizes have other chance levels.
    """
    with canvas(path, 8, 5) as figure:
        axes = figure.subplots()
        for number, (name, records) in enumerate(curves.items()):
            style = ("-", "--", ":")[number // len(COLORS) % 3]
            share = [one["step"] / records[-1]["step"] for one in records]
            losses = [one["loss"] for one in records]
            color = COLORS[number % len(COLORS)]
            axes.plot(share, losses, style, color=color, label=name, linewidth=1.2)
        for chance in sorted({records[-1]["chance_level"] for records in curves.values()}):
            axes.axhline(chance, color=_GREY, linestyle="--", linewidth=1)
            axes.annotate(f"chance {chance:.2f}", (1, chance), ha="right", va="bottom", fontsize=8)
        axes.set_xlabel("share of all steps")
        axes.set_ylabel("contrastive loss (no measure of quality)")
        axes.legend(fontsize=8, ncols=2)
        axes.grid(alpha=0.3)
    return path


def _cells(estimates: Sequence[Estimate]) -> dict[frozenset[str], Estimate]:
    return {frozenset(one.name.split("+")): one for one in estimates if "+" in one.name}


def _triangle(
    axes: Axes,
    cells: Mapping[frozenset[str], Estimate],
    limits: tuple[float, float],
    clear: set[str],
) -> Any:
    grid: NDArray[np.float64] = np.full((len(_ROWS), len(_COLUMNS)), np.nan)
    for row, one in enumerate(_ROWS):
        for column, other in enumerate(_COLUMNS[: row + 1]):
            cell = cells.get(frozenset((one, other)))
            if cell is None:
                continue
            grid[row, column] = cell.mean
            told = cell.name in clear
            axes.text(
                column,
                row,
                _words(cell),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if told else _PALE,
                weight="bold" if told else "normal",
            )
    image = axes.imshow(grid, cmap="YlGn", vmin=limits[0], vmax=limits[1], alpha=0.55)
    axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=40, ha="right")
    axes.set_yticks(range(len(_ROWS)), _ROWS)
    axes.spines[:].set_visible(False)
    return image


def _words(cell: Estimate) -> str:
    if math.isnan(cell.half_width):
        return f"{cell.mean:.3f}"
    return f"{cell.mean:.3f}\n±{cell.half_width:.3f}"
