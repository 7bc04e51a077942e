"""Draw the page of an evaluation: figures from evaluation.json, with their numbers as CSV.

Called by simclr-evaluate.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jobs.figures.canvas import (
    COLORS,
    ENDS,
    MARKERS,
    Axes,
    Page,
    Result,
    canvas,
    draw_band,
    draw_fractions,
    ends_of,
    interval,
    percent_of,
    plain,
    write_csv,
)
from simclr.evaluation.config import PRETRAINED, Protocol
from simclr.evaluation.report import (
    CHOICE_NAME,
    FOLDER_NAME,
    JSON_NAME,
    MIN_SEEDS,
    Choice,
    Evaluation,
    choice_table,
    command,
    read_choice,
    read_report,
    score_table,
    title,
    verdict,
)
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

PAGE_NAME = "evaluation.html"
_IN_FILES = ("calibration", "brier")  # the page shows the reliability diagram instead
_STYLES = ("--", ":", "-.")
_LONGEST = 34  # characters of a class name; longer ones leave no room for the plot
# Bins with fewer predictions are mostly noise: share of all predictions, and count.
_FEWEST_SHARE, _FEWEST = 0.01, 5

_WHO = ("protocol", "encoder", "fraction")
_who = itemgetter(*_WHO)


def write_evaluation_page(run_dir: Path) -> Path:
    """Draw every evaluation of a run; return the path of the page, ``RUN/evaluation.html``.

    Figures and their numbers are in ``RUN/evaluation/TASK-FINGERPRINT``, under the same names.
    """
    report = run_dir / JSON_NAME
    page = Page(f"Evaluation of {run_dir.resolve().name}")
    for one in read_report(report) if report.exists() else []:
        folder = run_dir / FOLDER_NAME / f"{one['task']['name']}-{one['shards']['fingerprint']}"
        folder.mkdir(parents=True, exist_ok=True)
        page.heading(title(one)).lead(verdict(one)).text(_setting(one))
        _fractions(page, folder, one)
        page.text("Scores in percent, in brackets the ends of their 95 % intervals:")
        scores = [name for name in one["results"][0]["scores"] if not name.startswith(_IN_FILES)]
        header, *rows = score_table(one, scores)
        page.table(header, rows)
        page.heading("Findings", 3).bullets(*one["findings"])
        page.heading("Caveats", 3).bullets(*one["notes"])
        page.heading("What to do next", 3).bullets(*_next_steps(run_dir, one))
        page.heading("Classes and probabilities", 3)
        for part in (_classes, _confusion, _reliability, _map):
            part(page, folder, one)
        page.heading("Numbers", 3).text("All numbers of this page, and those without a picture:")
        files = {path.name: str(path.relative_to(run_dir)) for path in sorted(folder.glob("*.csv"))}
        page.links({JSON_NAME: JSON_NAME, **files})
    for path in sorted((run_dir / FOLDER_NAME).glob(f"*/{CHOICE_NAME}")):
        _choice(page, run_dir, path)
    return page.write(run_dir / PAGE_NAME)


def _setting(one: Evaluation) -> str:
    """Describe what was trained and tested on how many patches, and what intervals resample."""
    split, bootstrap = one["split"], one["protocol"]["bootstrap"]
    counts, seeds, unit = split["counts"], split["seeds"], bootstrap["unit"]
    blocks = (
        "single patches, which count as independent"
        if unit == "patch"
        else f"{bootstrap['blocks']} blocks of neighbouring patches (a block is one {unit})"
    )
    return (
        f"The encoder ({one['encoder']}, {len(one['bands'])} bands) is frozen unless a row says "
        f"fine-tune. Classifiers on its features were trained on {counts['train']} patches, chosen "
        f"on {counts['validation']} and scored on {counts['test']} ({split['origin']}; "
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)}). Controls are untrained baselines. Intervals "
        f"resample {blocks} of the test patches."
    )


def _next_steps(run_dir: Path, one: Evaluation) -> Iterator[str]:
    asked = dict.fromkeys(Protocol(row["protocol"]).name for row in one["results"])
    if len(one["split"]["seeds"]) < MIN_SEEDS:
        again = command(run_dir, one, seeds="[0,1,2]", protocols=f"[{','.join(asked)}]")
        yield f"Score with {MIN_SEEDS} seeds: {again}"
    if Protocol.finetune_all.name not in asked:
        # with the others, whose rows the file would lose
        more = command(run_dir, one, protocols=f"[{','.join([*asked, 'finetune_all'])}]")
        yield f"Compare with the same network trained on the labels alone: {more}"
    yield f"Publish the encoder: simclr-export run={run_dir} output=export step={one['step']}"


def _fractions(page: Page, folder: Path, one: Evaluation) -> None:
    path = draw_fractions(folder / "scores.png", one["results"], one["headline"])
    score = plain(one["headline"])
    caption = f"{score[:1].upper()}{score[1:]} of the pretrained encoder and of the controls"
    page.picture(path, f"{caption}, 95 % intervals.")
    rows = []
    for row in one["results"]:
        for score, found in row["scores"].items():
            seeds = " ".join("" if value is None else str(value) for value in found["by_seed"])
            rows.append((*_who(row), score, *ends_of(found), seeds))
    write_csv(folder / "scores.csv", (*_WHO, "score", *ENDS, "by_seed"), rows)


def _classes(page: Page, folder: Path, one: Evaluation) -> None:
    """Draw the F1 of each class that occurs: bars with intervals for the first row, else markers.

    The controls' intervals are only in the CSV: fifty of them would clutter the figure.
    """
    classes, positives = one["task"]["classes"], one["task"]["positives"]
    (first, *others), path = _beside(one), folder / "classes.png"
    order = [row for row in np.argsort(positives, kind="stable")[::-1] if positives[row]]
    places = range(len(order))
    with canvas(path, 8, 1.7 + 0.27 * len(order)) as figure:
        axes = figure.subplots()
        bars = [interval(first["classes"]["f1"][row]) for row in order]
        values, ends = [value for value, _ in bars], np.array([both.ravel() for _, both in bars]).T
        axes.barh(places, values, color=COLORS[0], alpha=0.45, label=first["encoder"])
        axes.errorbar(values, places, xerr=ends, fmt="none", ecolor=COLORS[0], capsize=2)
        for number, other in enumerate(others, start=1):
            values = [percent_of(other["classes"]["f1"][row]["value"]) for row in order]
            style: dict[str, Any] = {"color": COLORS[number % len(COLORS)]}
            style["marker"] = MARKERS[number % len(MARKERS)]
            axes.plot(values, places, linestyle="", label=other["encoder"], **style)
        names = [f"{_short(classes[row])} ({positives[row]})" for row in order]
        axes.set_yticks(places, names, fontsize=9)
        axes.set(xlim=(0, 100), ylim=(len(order) - 0.4, -0.6))
        axes.set_xlabel("F1 (%); in parentheses: labelled patches")
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    absent = sum(not count for count in positives)
    caption = f"F1 of each class, {first['protocol']}; the most frequent class on top"
    left_out = f", {absent} without a labelled patch left out" if absent else ""
    page.picture(path, f"{caption}{left_out}.")
    rows = (
        (*_who(row), name, score, *ends_of(found))
        for row in one["results"]
        for score, by_class in row["classes"].items()
        for name, found in zip(classes, by_class, strict=True)
    )
    write_csv(folder / "classes.csv", (*_WHO, "class", "score", *ENDS), rows)


def _confusion(page: Page, folder: Path, one: Evaluation) -> None:
    """Draw the confusion matrix: colours are shares of the row, numbers are counts."""
    first, classes, path = _beside(one)[0], one["task"]["classes"], folder / "confusion.png"
    if first["confusion"] is None:  # multi-label: classes may occur together
        return
    table = np.asarray(first["confusion"], dtype=np.int64)
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
        axes.set(xlabel="predicted class", ylabel="true class")
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class (%)")
    named = f"{first['encoder']} encoder, {first['protocol']}"
    page.picture(path, f"True and predicted classes of the {named}; test patches of all seeds.")
    rows = ((name, *counts) for name, counts in zip(classes, first["confusion"], strict=True))
    write_csv(folder / "confusion.csv", ("truth", *classes), rows)


def _reliability(page: Page, folder: Path, one: Evaluation) -> None:
    """Plot observed frequency against predicted probability, with a histogram below."""
    drawn = [row for row in _most_labels(one) if row["encoder"] == PRETRAINED]
    path, rows = folder / "reliability.png", []
    with canvas(path, 6, 6) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot(
            [0, 100], [0, 100], "--", color="#777777", linewidth=1, label="perfectly calibrated"
        )
        for number, row in enumerate(drawn):
            curve = row["reliability"]
            _draw_reliability(above, below, curve, row["protocol"], number)
            values = (curve[key] for key in ("counts", "probability", "frequency"))
            # there is one more edge than bins
            bins = zip(curve["edges"][:-1], curve["edges"][1:], *values, strict=True)
            rows += [(*_who(row), *cells) for cells in bins]
        above.set_ylabel("observed frequency (%)")
        above.legend(fontsize=9)
        below.set(xlabel="predicted probability (%)", ylabel="predictions (%)")
        for axes in (above, below):
            axes.set(xlim=(0, 100), ylim=(0, 102))
            axes.grid(alpha=0.3)
    page.picture(
        path,
        "Reliability: bins with at least 5 predictions and 1 % of all, and the 95 % interval of "
        "each share.",
    )
    header = (*_WHO, "from", "to", "predictions", "probability", "frequency")
    write_csv(folder / "reliability.csv", header, rows)


def _draw_reliability(above: Axes, below: Axes, curve: Result, label: str, number: int) -> None:
    counts, predicted, observed = (
        np.array(curve[key], dtype=np.float64) for key in ("counts", "probability", "frequency")
    )
    enough = counts >= max(_FEWEST_SHARE * counts.sum(), _FEWEST)
    shares, totals = observed[enough], counts[enough]
    # intervals for a proportion of independent trials (Wilson 1927)
    ends = [
        binomtest(round(share * count), round(count)).proportion_ci(0.95, method="wilson")
        for share, count in zip(shares, totals, strict=True)
    ]
    bars = 100 * np.abs(np.reshape(ends, (-1, 2)).T - shares)
    style: dict[str, Any] = {"color": COLORS[number], "marker": MARKERS[number], "markersize": 5}
    above.errorbar(100 * predicted[enough], 100 * shares, bars, label=label, **style)
    heights, edges = 100 * counts / counts.sum(), 100 * np.asarray(curve["edges"])
    below.stairs(heights, edges, color=COLORS[number], linewidth=1.5)


def _map(page: Page, folder: Path, one: Evaluation) -> None:
    """Plot test patches on the two principal axes of their features, by class."""
    points, classes, path = one["map"], one["task"]["classes"], folder / "map.png"
    if points is None:
        return
    places = np.asarray(points["points"], dtype=np.float64).reshape(-1, 2)
    of_class = np.asarray(points["classes"])
    names = [*classes, "none of the classes" if len(classes) > 1 else f"not {classes[0]}"]
    present = [number for number in range(len(names)) if (of_class == number).any()]
    with canvas(path, 9, 6) as figure:
        axes = figure.subplots()
        for shown, number in enumerate(present):
            x, y = places[of_class == number].T
            # colours repeat after eight classes; a new marker then distinguishes them
            marker = MARKERS[shown // len(COLORS) % len(MARKERS)]
            style: dict[str, Any] = {"color": COLORS[shown % len(COLORS)], "marker": marker}
            label = f"{_short(names[number])} ({len(x)})"
            axes.scatter(x, y, s=16, alpha=0.75, label=label, **style)
        first, second = (f"{100 * share:.0f} % of the variance" for share in points["variance"])
        axes.set(xlabel=f"first axis ({first})", ylabel=f"second axis ({second})")
        axes.set_aspect("equal", "datalim")  # else a narrow cloud would look round
        figure.legend(loc="outside right center", fontsize=9)
    page.picture(path, "Test patches on the two main axes of the pretrained features, by class.")
    of_point = [[*classes, ""][number] for number in points["classes"]]
    rows = ((x, y, name) for (x, y), name in zip(points["points"], of_point, strict=True))
    write_csv(folder / "map.csv", ("first_axis", "second_axis", "class"), rows)


def _short(name: str) -> str:
    return textwrap.shorten(name, _LONGEST, placeholder=" ...")


def _most_labels(one: Evaluation) -> list[Result]:
    most = max(row["fraction"] for row in one["results"])
    return [row for row in one["results"] if row["fraction"] == most]


def _beside(one: Evaluation) -> list[Result]:
    """Return the rows of one protocol with the most labels, the pretrained encoder first."""
    rows = _most_labels(one)
    asked = [row["protocol"] for row in rows]
    # where only one protocol fits, the standard one of the field
    protocol = Protocol.probe.value if Protocol.probe.value in asked else asked[0]
    return [row for row in rows if row["protocol"] == protocol]


def _choice(page: Page, run_dir: Path, path: Path) -> None:
    """Append a section on one ``checkpoints.json``; its PNG and CSV go beside it."""
    choice, metrics, picture = read_choice(path), run_dir / METRICS_NAME, path.with_suffix(".png")
    losses = dict(zip(choice["steps"], choice["losses"], strict=True))
    # scores against the step, and below them the contrastive loss over the same steps
    with canvas(picture, 9, 6.5) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_choice(above, choice)
        _draw_losses(below, losses, read_metrics(metrics) if metrics.exists() else [])
        for axes in (above, below):
            axes.axvline(choice["best"], color=COLORS[6], linewidth=0.8, alpha=0.5)
            axes.grid(alpha=0.3)
        handles, names = above.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    first, *others = choice["findings"]
    mark = "SIMULATED PATCHES, " if choice["simulated"] else ""
    page.heading(f"{mark}{choice['task']['name']}: choosing a checkpoint")
    page.lead(f"{first[:1].upper()}{first[1:]}.")
    page.picture(picture, "Validation scores of the checkpoints, 95 % intervals, beside the loss.")
    header, *table = choice_table(choice)
    page.table(header, table)
    page.heading("Findings", 3).bullets(*others)
    page.heading("Caveats", 3).bullets(*choice["notes"])
    rows = (
        (
            one["step"],
            losses.get(one["step"]),
            one["protocol"],
            one["encoder"],
            score,
            *ends_of(found),
        )
        for one in choice["results"]
        for score, found in one["scores"].items()
    )
    columns = ("step", "loss", "protocol", "encoder", "score", *ENDS)
    write_csv(path.with_suffix(".csv"), columns, rows)


def _draw_choice(axes: Axes, choice: Choice) -> None:
    headline = choice["headline"]
    for number, protocol in enumerate(dict.fromkeys(one["protocol"] for one in choice["results"])):
        asked = [one for one in choice["results"] if one["protocol"] == protocol]
        own = [one for one in asked if one["step"] is not None]
        steps = [one["step"] for one in own]
        draw_band(axes, steps, [one["scores"][headline] for one in own], protocol, number)
        # controls are no checkpoints and have no step
        controls = [one for one in asked if one["step"] is None]
        for k, one in enumerate(controls if protocol == choice["chosen_by"] else ()):
            color, style = COLORS[2 + k % 5], _STYLES[k % len(_STYLES)]
            value = percent_of(one["scores"][headline]["value"])
            label = f"{protocol}: {one['encoder']}"
            axes.axhline(value, color=color, linestyle=style, linewidth=1.3, label=label)
    axes.set_ylabel(f"{plain(headline)} on validation (%)")
    axes.set_title(f"{choice['chosen_by']} chooses step {choice['best']}")


def _draw_losses(
    axes: Axes, losses: Mapping[int, float | None], records: Sequence[Mapping[str, Any]]
) -> None:
    steps = [record["step"] for record in records]
    # an unknown loss, None, leaves a gap
    every = np.array([record["loss"] for record in records], dtype=np.float64)
    axes.plot(steps, every, color=COLORS[6], linewidth=0.8)
    chosen = np.array([*losses.values()], dtype=np.float64)
    axes.plot([*losses], chosen, "o", color=COLORS[6], markersize=4)
    axes.set(xlabel="step", ylabel="contrastive loss")
    axes.set_title("not used for the choice", fontsize=10)
