"""Scores of a run's checkpoints come in; a figure, its numbers and a part of a page go out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.figures.canvas import COLORS, Axes, canvas
from jobs.figures.cells import ENDS, number_of, score_cells, write_csv
from jobs.figures.charts import spoken
from jobs.figures.page import Page
from simclr.evaluate.choice import Choice, read_choice
from simclr.evaluate.table import choice_table
from simclr.metrics import METRICS_NAME, read_metrics

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
