"""A run's evaluation.json comes in; figures, their numbers as CSV and one HTML page go out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from jobs.figures.canvas import (
    COLORS,
    ENDS,
    Axes,
    Page,
    Rows,
    canvas,
    cell,
    number_of,
    score_cells,
    write_csv,
)
from simclr.evaluation.checkpoint_selection import JSON_NAME as CHECKPOINTS_JSON
from simclr.evaluation.checkpoint_selection import Choice, read_choice
from simclr.evaluation.report import (
    FOLDER_NAME,
    JSON_NAME,
    Evaluation,
    choice_table,
    read_report,
    score_table,
    title,
)
from simclr.evaluation.session import PRETRAINED
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

Result = Mapping[str, Any]  # one row of an evaluation: an encoder under a protocol

_GREY = "#777777"
_MARKERS_of_charts = "osD^vP*X"
_LONGEST = 34  # letters of a class name; more would leave no room for the picture
# The frequency among fewer claims is mostly noise: of all claims, and in number.
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
            asked = [one for one in results if one["protocol"] == protocol]
            draw(axes, asked, encoders, score)
            axes.set_title(protocol)
            axes.grid(alpha=0.3)
        if not single:
            panels[0].set_ylabel(spoken(score))
            handles, names = _legend_of(panels)
            figure.legend(handles, names, loc="outside right center", fontsize=9)
    return path


def draw_classes(
    path: Path, results: Sequence[Result], classes: Sequence[str], positives: Sequence[int]
) -> Path:
    """Draw F1 of each class: a bar with its interval for the first row, marks for the others.

    The controls' intervals are in the CSV: fifty of them on a page hide what they stand for.
    """
    order = np.argsort(positives, kind="stable")[::-1]
    with canvas(path, 8, 1.7 + 0.27 * len(classes)) as figure:
        axes = figure.subplots()
        first, *others = results
        _bars(axes, [first["classes"]["f1"][number] for number in order], first["encoder"])
        for number, other in enumerate(others, start=1):
            values = [number_of(other["classes"]["f1"][row]["value"]) for row in order]
            style: dict[str, Any] = {"color": COLORS[number], "marker": _MARKERS_of_charts[number]}
            axes.plot(values, range(len(order)), linestyle="", label=other["encoder"], **style)
        names = [f"{_short(classes[row])} ({positives[row]})" for row in order]
        axes.set_yticks(range(len(order)), names, fontsize=9)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("F1 (in brackets: labelled patches)")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return path


def draw_confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Path:
    """Draw how the patches of each class were answered: shares of the row, counts in the cells."""
    table = np.asarray(counts, dtype=np.int64)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.6 + 0.45 * len(classes)
    with canvas(path, side + 0.8, side) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(table > 0):
            color = "white" if shares[row, column] > 0.6 else "black"
            words = str(table[row, column])
            axes.text(column, row, words, ha="center", va="center", color=color, fontsize=8)
        names = [_short(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    return path


def draw_reliability(path: Path, results: Sequence[Result]) -> Path:
    """Draw how often claims came true against their probability; below, how many there were."""
    with canvas(path, 6, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], "--", color=_GREY, linewidth=1, label="as often as claimed")
        for number, one in enumerate(results):
            _reliability_of_charts(above, below, one, number)
        above.set_ylabel("share that came true")
        above.legend(fontsize=9)
        below.set_ylabel("share of claims")
        below.set_xlabel("probability that was claimed")
        for axes in (above, below):
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1.02)
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
            marker = _MARKERS_of_charts[shown // len(COLORS) % len(_MARKERS_of_charts)]
            color = COLORS[shown % len(COLORS)]
            label = f"{_short(names[number])} ({len(here)})"
            axes.scatter(
                here[:, 0], here[:, 1], s=16, color=color, marker=marker, alpha=0.75, label=label
            )
        _name_axes(axes, points["variance"])
        figure.legend(loc="outside right center", fontsize=9)
    return path


def spoken(score: str) -> str:
    """Return the name of a score in words."""
    return score.replace("_", " ")


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
    axes.set_xlabel(spoken(score))


def _band(
    axes: Axes, places: Sequence[float], scores: Sequence[Result], label: str, number: int
) -> None:
    value, low, high = ([number_of(one[key]) for one in scores] for key in ("value", "low", "high"))
    color = COLORS[number % len(COLORS)]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        places,
        value,
        color=color,
        marker=_MARKERS_of_charts[number % len(_MARKERS_of_charts)],
        label=label,
    )


def _bars(axes: Axes, scores: Sequence[Result], label: str) -> None:
    ends = np.array([_interval(one)[1].ravel() for one in scores]).T
    values = [_interval(one)[0] for one in scores]
    axes.barh(range(len(values)), values, color=COLORS[0], alpha=0.45, label=label)
    axes.errorbar(values, range(len(values)), xerr=ends, fmt="none", ecolor=COLORS[0], capsize=2)


def _reliability_of_charts(above: Axes, below: Axes, one: Result, number: int) -> None:
    curve = one["reliability"]
    counts = np.array([number_of(count) for count in curve["counts"]])
    enough = counts >= max(_FEWEST_SHARE * counts.sum(), _FEWEST)
    claimed, came_true = (
        np.array([number_of(value) for value in curve[name]])
        for name in ("probability", "frequency")
    )
    style: dict[str, Any] = {
        "color": COLORS[number],
        "marker": _MARKERS_of_charts[number],
        "markersize": 5,
    }
    shares = came_true[enough]
    ends = np.array([_wilson(*pair) for pair in zip(shares, counts[enough], strict=True)])
    bars = np.abs(ends.reshape(-1, 2).T - shares)
    above.errorbar(claimed[enough], shares, bars, label=one["protocol"], **style)
    below.stairs(counts / counts.sum(), curve["edges"], color=COLORS[number], linewidth=1.5)


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
    value = number_of(score["value"])
    ends = [[value - number_of(score["low"])], [number_of(score["high"]) - value]]
    return value, np.maximum(ends, 0)


def _short(name: str) -> str:
    return textwrap.shorten(name, _LONGEST, placeholder=" ...")


_STYLES = ("--", ":", "-.")
_MARKERS = "os"


def add_checkpoints(page: Page, run_dir: Path, path: Path) -> None:
    """Append a section on one ``checkpoints.json``; PNG and CSV lie beside it."""
    choice = read_choice(path)
    mark = "SIMULATED PATCHES, " if choice["simulated"] else ""
    page.heading(f"{mark}{choice['task']['name']}: choosing a checkpoint")
    page.text(*choice["findings"], *choice["notes"])
    header, *rows = choice_table(choice)
    page.table(header, rows)
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.exists() else []
    picture = draw_checkpoints(path.with_suffix(".png"), choice, records)
    page.picture(picture, "Validation scores of the checkpoints, 95 % intervals, beside the loss.")
    columns = ("step", "loss", "protocol", "encoder", "score", *ENDS)
    write_csv(path.with_suffix(".csv"), columns, _rows(choice))


def draw_checkpoints(path: Path, choice: Choice, records: Sequence[dict[str, Any]]) -> Path:
    """Draw scores against the step, and below the contrastive loss over the same steps."""
    with canvas(path, 9, 6.5) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _scores(above, choice)
        _loss(below, choice, records)
        for axes in (above, below):
            axes.axvline(choice["best"], color=COLORS[6], linewidth=0.8, alpha=0.5)
            axes.grid(alpha=0.3)
        handles, names = above.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    return path


def _scores(axes: Axes, choice: Choice) -> None:
    headline = choice["headline"]
    for number, protocol in enumerate(dict.fromkeys(one["protocol"] for one in choice["results"])):
        asked = [one for one in choice["results"] if one["protocol"] == protocol]
        own = [one for one in asked if one["step"] is not None]
        steps = [one["step"] for one in own]
        value, low, high = (
            [number_of(one["scores"][headline][key]) for one in own] for key in ENDS
        )
        color = COLORS[number]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, value, color=color, marker=_MARKERS[number], label=protocol)
        if protocol == choice["chosen_by"]:
            _controls(axes, [one for one in asked if one["step"] is None], headline)
    axes.set_ylabel(f"{spoken(headline)} on validation")
    axes.set_title(f"{choice['chosen_by']} chooses step {choice['best']}")


def _controls(axes: Axes, controls: Sequence[dict[str, Any]], headline: str) -> None:
    """Draw what stands beside the checkpoints: it knows no step."""
    for number, one in enumerate(controls):
        color, style = COLORS[2 + number % 5], _STYLES[number % len(_STYLES)]
        value = number_of(one["scores"][headline]["value"])
        label = f"{one['protocol']}: {one['encoder']}"
        axes.axhline(value, color=color, linestyle=style, linewidth=1.3, label=label)


def _loss(axes: Axes, choice: Choice, records: Sequence[dict[str, Any]]) -> None:
    steps = [record["step"] for record in records]
    axes.plot(steps, [number_of(one["loss"]) for one in records], color=COLORS[6], linewidth=0.8)
    losses = [number_of(loss) for loss in choice["losses"]]
    axes.plot(choice["steps"], losses, "o", color=COLORS[6], markersize=4)
    axes.set_ylabel("contrastive loss")
    axes.set_xlabel("step")
    axes.set_title("the loss chooses nothing", fontsize=10)


def _rows(choice: Choice) -> Iterator[Sequence[object]]:
    losses = dict(zip(choice["steps"], choice["losses"], strict=True))
    for one in choice["results"]:
        step = one["step"]
        who = ("" if step is None else step, losses.get(step), one["protocol"], one["encoder"])
        for score, found in one["scores"].items():
            yield (*who, score, *score_cells(found))


PAGE_NAME = "evaluation.html"
# What is drawn where only one protocol has room: the reference of the field first.
_PREFERRED = "linear probe"
_CURVE = ("counts", "probability", "frequency")


def write_evaluation_page(run_dir: Path) -> Path:
    """Draw every evaluation of a run; return the page, ``RUN/evaluation.html``.

    Pictures and their numbers lie in ``RUN/evaluation/TASK-FINGERPRINT``, under the same names.
    """
    report = run_dir / JSON_NAME
    evaluations = read_report(report) if report.exists() else []
    page = Page(f"Evaluation of {run_dir.resolve().name}")
    for one in evaluations:
        name = f"{one['task']['name']}-{one['shards']['fingerprint']}"
        folder = run_dir / FOLDER_NAME / name
        folder.mkdir(parents=True, exist_ok=True)
        page.heading(title(one)).text(*one["findings"], *one["notes"])
        page.table(*_shown_scores(one))
        for part in (_fractions, _classes, _confusion, _reliability, _map):
            part(page, folder, one)
    for path in sorted((run_dir / FOLDER_NAME).glob(f"*/{CHECKPOINTS_JSON}")):
        add_checkpoints(page, run_dir, path)
    return page.write(run_dir / PAGE_NAME)


def _fractions(page: Page, folder: Path, one: Evaluation) -> None:
    path = draw_fractions(folder / "scores.png", one["results"], one["headline"])
    page.picture(path, f"{spoken(one['headline'])} of encoders and controls, 95 % intervals.")
    header = ("protocol", "encoder", "fraction", "score", *ENDS, "by_seed")
    write_csv(folder / "scores.csv", header, _score_rows(one["results"]))


def _score_rows(results: Iterable[Result]) -> Iterator[Sequence[object]]:
    for row in results:
        for score, found in row["scores"].items():
            seeds = " ".join("" if value is None else str(value) for value in found["by_seed"])
            yield (*_who(row), score, *score_cells(found), seeds)


def _classes(page: Page, folder: Path, one: Evaluation) -> None:
    drawn, task = _beside(one), one["task"]
    path = draw_classes(folder / "classes.png", drawn, task["classes"], task["positives"])
    page.picture(path, f"F1 of each class, {drawn[0]['protocol']}; the commonest class above.")
    rows = (
        (*_who(row), name, score, *score_cells(found))
        for row in one["results"]
        for score, by_class in row["classes"].items()
        for name, found in zip(task["classes"], by_class, strict=True)
    )
    header = ("protocol", "encoder", "fraction", "class", "score", *ENDS)
    write_csv(folder / "classes.csv", header, rows)


def _confusion(page: Page, folder: Path, one: Evaluation) -> None:
    first, classes = _beside(one)[0], one["task"]["classes"]
    if first["confusion"] is None:  # classes that may occur together are not mistaken for another
        return
    path = draw_confusion(folder / "confusion.png", first["confusion"], classes)
    page.picture(path, f"Truth and answers of the {_named(first)}; test patches of all seeds.")
    rows = ((name, *counts) for name, counts in zip(classes, first["confusion"], strict=True))
    write_csv(folder / "confusion.csv", ("truth", *classes), rows)


def _reliability(page: Page, folder: Path, one: Evaluation) -> None:
    drawn = [row for row in _most_labels(one) if row["encoder"] == PRETRAINED]
    path = draw_reliability(folder / "reliability.png", drawn)
    page.picture(
        path,
        "Can a stated probability be believed? Bins with 5 claims and 1 % of all, or more, and the "
        "95 % interval of each share.",
    )
    rows = ((*_who(row), *cells) for row in drawn for cells in _bins(row["reliability"]))
    header = ("protocol", "encoder", "fraction", "from", "to", "claims", "probability", "frequency")
    write_csv(folder / "reliability.csv", header, rows)


def _bins(curve: Result) -> Iterator[tuple[object, ...]]:
    values = ([cell(value) for value in curve[key]] for key in _CURVE)
    # there is one edge more than bins
    return zip(curve["edges"][:-1], curve["edges"][1:], *values, strict=True)


def _map(page: Page, folder: Path, one: Evaluation) -> None:
    points, classes = one["map"], one["task"]["classes"]
    if points is None:
        return
    path = draw_map(folder / "map.png", points, classes)
    page.picture(path, "Test patches on the two main axes of the pretrained features, by class.")
    names = [*classes, ""]
    rows = (
        (x, y, names[number])
        for (x, y), number in zip(points["points"], points["classes"], strict=True)
    )
    write_csv(folder / "map.csv", ("first_axis", "second_axis", "class"), rows)


def _shown_scores(one: Evaluation) -> tuple[Sequence[str], Rows]:
    header, *rows = score_table(one)
    return header, rows


def _most_labels(one: Evaluation) -> list[Result]:
    most = max(row["fraction"] for row in one["results"])
    return [row for row in one["results"] if row["fraction"] == most]


def _beside(one: Evaluation) -> list[Result]:
    """Return the rows of one protocol with the most labels, the pretrained encoder first."""
    rows = _most_labels(one)
    asked = [row["protocol"] for row in rows]
    protocol = _PREFERRED if _PREFERRED in asked else asked[0]
    return [row for row in rows if row["protocol"] == protocol]


def _who(row: Result) -> tuple[object, ...]:
    return row["protocol"], row["encoder"], row["fraction"]


def _named(row: Result) -> str:
    return f"{row['encoder']} encoder, {row['protocol']}"
