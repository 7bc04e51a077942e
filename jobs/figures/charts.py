"""Charts of evaluations: scores, classes, confusion, reliability, maps; one PNG file a function.

Called by the page of an evaluation and by the report of a study.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from jobs.figures.canvas import COLORS, Axes, canvas, number_of, percent_of

Result = Mapping[str, Any]  # one row of an evaluation: an encoder under a protocol

_GREY = "#777777"
_MARKERS = "osD^vP*X"
_LONGEST = 34  # letters of a class name; more would leave no room for the picture
# Frequencies among fewer predictions are mostly noise: share of all, and number.
_FEWEST_SHARE, _FEWEST = 0.01, 5


def draw_fractions(path: Path, results: Sequence[Result], score: str) -> Path:
    """Draw a score against the share of the labels, a panel a protocol, bands of 95 %.

    With a single share there is no curve to be drawn: a point and its interval for each encoder.
    """
    protocols = list(dict.fromkeys(one["protocol"] for one in results))
    encoders = list(dict.fromkeys(one["encoder"] for one in results))
    single = len({one["fraction"] for one in results}) == 1
    draw = _points if single else _curves
    with canvas(path, 3.2 + 3.2 * len(protocols), 4.2) as figure:
        panels = figure.subplots(1, len(protocols), squeeze=False, sharex=True, sharey=True)[0]
        for axes, protocol in zip(panels, protocols, strict=True):
            own = [one for one in results if one["protocol"] == protocol]
            draw(axes, own, encoders, score)
            axes.set_title(protocol)
            axes.grid(alpha=0.3)
        if not single:
            panels[0].set_ylabel(f"{plain(score)} (%)")
            handles, names = _legend_of(panels)
            figure.legend(handles, names, loc="outside right center", fontsize=9)
    return path


def draw_classes(
    path: Path, results: Sequence[Result], classes: Sequence[str], positives: Sequence[int]
) -> Path:
    """Draw F1 of each class that occurs: a bar with its interval for the first row, else marks.

    The controls' intervals are in the CSV: fifty of them on a page hide what they stand for.
    """
    order = [row for row in np.argsort(positives, kind="stable")[::-1] if positives[row]]
    with canvas(path, 8, 1.7 + 0.27 * len(order)) as figure:
        axes = figure.subplots()
        first, *others = results
        _bars(axes, [first["classes"]["f1"][number] for number in order], first["encoder"])
        for number, other in enumerate(others, start=1):
            values = [percent_of(other["classes"]["f1"][row]["value"]) for row in order]
            style: dict[str, Any] = {"color": COLORS[number], "marker": _MARKERS[number]}
            axes.plot(values, range(len(order)), linestyle="", label=other["encoder"], **style)
        names = [f"{_short(classes[row])} ({positives[row]})" for row in order]
        axes.set_yticks(range(len(order)), names, fontsize=9)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("F1 (%); in parentheses: labelled patches")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return path


def draw_confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Path:
    """Draw the confusion matrix: colour is the share of the row, numbers are counts."""
    table = np.asarray(counts, dtype=np.int64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.45 * len(classes)
    with canvas(path, side + 0.8, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(table > 0):
            color = "white" if shares[row, column] > 0.6 else "black"
            text = str(table[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        names = [_short(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class (%)")
    return path


def draw_reliability(path: Path, results: Sequence[Result]) -> Path:
    """Draw the frequency of predicted events against their probability, and their number below."""
    with canvas(path, 6, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 100], [0, 100], "--", color=_GREY, linewidth=1, label="perfectly calibrated")
        for number, one in enumerate(results):
            _reliability(above, below, one, number)
        above.set_ylabel("observed frequency (%)")
        above.legend(fontsize=9)
        below.set_ylabel("predictions (%)")
        below.set_xlabel("predicted probability (%)")
        for axes in (above, below):
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 102)
            axes.grid(alpha=0.3)
    return path


def draw_map(path: Path, points: Mapping[str, Any], classes: Sequence[str]) -> Path:
    """Draw test patches on the two main axes of their features, by class."""
    places = np.asarray(points["points"], dtype=np.float64).reshape(-1, 2)
    of_class = np.asarray(points["classes"])
    names = [*classes, "none of the classes" if len(classes) > 1 else f"not {classes[0]}"]
    present = [number for number in range(len(names)) if (of_class == number).any()]
    with canvas(path, 9, 6) as figure:
        axes = figure.subplots()
        for shown, number in enumerate(present):
            here = places[of_class == number]
            # colours run out after eight classes; the mark then tells the rounds apart
            marker = _MARKERS[shown // len(COLORS) % len(_MARKERS)]
            color = COLORS[shown % len(COLORS)]
            label = f"{_short(names[number])} ({len(here)})"
            axes.scatter(
                here[:, 0], here[:, 1], s=16, color=color, marker=marker, alpha=0.75, label=label
            )
        _name_axes(axes, points["variance"])
        figure.legend(loc="outside right center", fontsize=9)
    return path


def plain(score: str) -> str:
    """Return a name as people write it: no underscores, ``F1``."""
    return re.sub(r"\bf1\b", "F1", score.replace("_", " "))


def _curves(axes: Axes, results: Sequence[Result], encoders: Sequence[str], score: str) -> None:
    for number, encoder in enumerate(encoders):
        own = sorted(
            (one for one in results if one["encoder"] == encoder), key=lambda one: one["fraction"]
        )
        if own:
            shares = [100 * one["fraction"] for one in own]
            _band(axes, shares, [one["scores"][score] for one in own], encoder, number)
    axes.set_xscale("log")
    ticks = sorted({100 * one["fraction"] for one in results})
    axes.set_xticks(ticks, [f"{share:g}" for share in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training labels (%)")


def _points(axes: Axes, results: Sequence[Result], encoders: Sequence[str], score: str) -> None:
    by_encoder = {one["encoder"]: one["scores"][score] for one in results}
    for row, encoder in enumerate(encoders):
        if (found := by_encoder.get(encoder)) is not None:
            value, ends = _interval(found)
            axes.errorbar(value, row, xerr=ends, fmt="o", color=COLORS[row], capsize=3)
    axes.set_yticks(range(len(encoders)), encoders)
    axes.set_ylim(len(encoders) - 0.5, -0.5)
    axes.set_xlabel(f"{plain(score)} (%)")


def _band(
    axes: Axes, places: Sequence[float], scores: Sequence[Result], label: str, number: int
) -> None:
    value, low, high = (
        [percent_of(one[key]) for one in scores] for key in ("value", "low", "high")
    )
    color = COLORS[number % len(COLORS)]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        places,
        value,
        color=color,
        marker=_MARKERS[number % len(_MARKERS)],
        label=label,
    )


def _bars(axes: Axes, scores: Sequence[Result], label: str) -> None:
    ends = np.array([_interval(one)[1].ravel() for one in scores]).T
    values = [_interval(one)[0] for one in scores]
    axes.barh(range(len(values)), values, color=COLORS[0], alpha=0.45, label=label)
    axes.errorbar(values, range(len(values)), xerr=ends, fmt="none", ecolor=COLORS[0], capsize=2)


def _reliability(above: Axes, below: Axes, one: Result, number: int) -> None:
    curve = one["reliability"]
    counts = np.array([number_of(count) for count in curve["counts"]])
    enough = counts >= max(_FEWEST_SHARE * counts.sum(), _FEWEST)
    predicted, observed = (
        np.array([number_of(value) for value in curve[name]])
        for name in ("probability", "frequency")
    )
    style: dict[str, Any] = {
        "color": COLORS[number],
        "marker": _MARKERS[number],
        "markersize": 5,
    }
    shares = observed[enough]
    ends = np.array([_wilson(*pair) for pair in zip(shares, counts[enough], strict=True)])
    bars = np.abs(ends.reshape(-1, 2).T - shares)
    predicted, shares, bars = 100 * predicted[enough], 100 * shares, 100 * bars
    above.errorbar(predicted, shares, bars, label=one["protocol"], **style)
    heights, edges = 100 * counts / counts.sum(), 100 * np.asarray(curve["edges"])
    below.stairs(heights, edges, color=COLORS[number], linewidth=1.5)


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of independent trials (Wilson 1927)."""
    test = binomtest(round(share * count), round(count))
    low, high = test.proportion_ci(0.95, method="wilson")
    return low, high


def _name_axes(axes: Axes, variance: Sequence[float]) -> None:
    first, second = (f"{100 * share:.0f} % of the variance" for share in variance)
    axes.set_xlabel(f"first axis ({first})")
    axes.set_ylabel(f"second axis ({second})")
    axes.set_aspect("equal", "datalim")  # else a narrow cloud would look as wide as a round one


def _legend_of(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Return the marks of all panels, each name once: no panel need hold every encoder."""
    pairs = [
        pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)
    ]
    named = {name: handle for handle, name in reversed(pairs)}
    names = list(dict.fromkeys(name for _, name in pairs))
    return [named[name] for name in names], names


def _interval(score: Result) -> tuple[float, NDArray[np.float64]]:
    """Return a value and the distances (2, 1) to its interval's ends, NaN without any.

    A percentile interval need not hold the value itself: matplotlib refuses what is negative.
    """
    value = percent_of(score["value"])
    ends = [[value - percent_of(score["low"])], [percent_of(score["high"]) - value]]
    return value, np.maximum(ends, 0)


def _short(name: str) -> str:
    return textwrap.shorten(name, _LONGEST, placeholder=" ...")
