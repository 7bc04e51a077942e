"""The page of an evaluation: figures of evaluation.json, each with its numbers as CSV beside it.

Called by simclr-evaluate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.figures.canvas import (
    COLORS,
    ENDS,
    Axes,
    Page,
    Rows,
    canvas,
    cell,
    number_of,
    percent_of,
    score_cells,
    write_csv,
)
from jobs.figures.charts import (
    Result,
    draw_classes,
    draw_confusion,
    draw_fractions,
    draw_map,
    draw_reliability,
    plain,
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
    read_choice,
    read_report,
    score_table,
    title,
    verdict,
)
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

_STYLES = ("--", ":", "-.")
_MARKERS = "os"


def add_checkpoints(page: Page, run_dir: Path, path: Path) -> None:
    """Append a section on one ``checkpoints.json``; PNG and CSV lie beside it."""
    choice = read_choice(path)
    mark = "SIMULATED PATCHES, " if choice["simulated"] else ""
    page.heading(f"{mark}{choice['task']['name']}: choosing a checkpoint")
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.exists() else []
    picture = draw_checkpoints(path.with_suffix(".png"), choice, records)
    first, *others = choice["findings"]
    page.lead(f"{first[:1].upper()}{first[1:]}.")
    page.picture(picture, "Validation scores of the checkpoints, 95 % intervals, beside the loss.")
    header, *rows = choice_table(choice)
    page.table(header, rows)
    page.heading("Findings", 3).bullets(*others)
    page.heading("Caveats", 3).bullets(*choice["notes"])
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
            [percent_of(one["scores"][headline][key]) for one in own] for key in ENDS
        )
        color = COLORS[number]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, value, color=color, marker=_MARKERS[number], label=protocol)
        if protocol == choice["chosen_by"]:
            _controls(axes, [one for one in asked if one["step"] is None], headline)
    axes.set_ylabel(f"{plain(headline)} on validation (%)")
    axes.set_title(f"{choice['chosen_by']} chooses step {choice['best']}")


def _controls(axes: Axes, controls: Sequence[dict[str, Any]], headline: str) -> None:
    """Draw what stands beside the checkpoints: it knows no step."""
    for number, one in enumerate(controls):
        color, style = COLORS[2 + number % 5], _STYLES[number % len(_STYLES)]
        value = percent_of(one["scores"][headline]["value"])
        label = f"{one['protocol']}: {one['encoder']}"
        axes.axhline(value, color=color, linestyle=style, linewidth=1.3, label=label)


def _loss(axes: Axes, choice: Choice, records: Sequence[dict[str, Any]]) -> None:
    steps = [record["step"] for record in records]
    axes.plot(steps, [number_of(one["loss"]) for one in records], color=COLORS[6], linewidth=0.8)
    losses = [number_of(loss) for loss in choice["losses"]]
    axes.plot(choice["steps"], losses, "o", color=COLORS[6], markersize=4)
    axes.set_ylabel("contrastive loss")
    axes.set_xlabel("step")
    axes.set_title("not used for the choice", fontsize=10)


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
_IN_FILES = ("calibration", "brier")  # the page has the reliability diagram
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
        page.heading(title(one)).lead(verdict(one)).text(_setting(one))
        _fractions(page, folder, one)
        page.text("Scores in percent, in brackets the ends of their 95 % intervals:")
        page.table(*_shown_scores(one))
        page.heading("Findings", 3).bullets(*one["findings"])
        page.heading("Caveats", 3).bullets(*one["notes"])
        page.heading("What to do next", 3).bullets(*_next_steps(run_dir, one))
        page.heading("Classes and probabilities", 3)
        for part in (_classes, _confusion, _reliability, _map):
            part(page, folder, one)
        _add_files(page, run_dir, folder)
    for path in sorted((run_dir / FOLDER_NAME).glob(f"*/{CHOICE_NAME}")):
        add_checkpoints(page, run_dir, path)
    return page.write(run_dir / PAGE_NAME)


def _setting(one: Evaluation) -> str:
    """Return what was trained and tested on how many patches, and what an interval is over."""
    split, bootstrap = one["split"], one["protocol"]["bootstrap"]
    counts, seeds = split["counts"], split["seeds"]
    unit = bootstrap["unit"]
    blocks = (
        "single patches, which count as independent"
        if unit == "patch"
        else f"{bootstrap['blocks']} blocks of neighbouring patches (a block is one {unit})"
    )
    return (
        f"The encoder ({one['encoder']}, {len(one['bands'])} bands) is frozen unless a row says "
        "fine-tune. Classifiers on its features were trained on "
        f"{counts['train']} patches, chosen on {counts['validation']} and scored on "
        f"{counts['test']} ({split['origin']}; {len(seeds)} seed{'s' * (len(seeds) != 1)}). "
        "Controls are untrained baselines. Intervals resample "
        f"{blocks} of the test patches."
    )


def _next_steps(run_dir: Path, one: Evaluation) -> Iterator[str]:
    shards, task = one["shards"]["folder"], one["task"]["name"]
    again = f"simclr-evaluate run={run_dir} shards={shards} task={task}"
    if len(one["split"]["seeds"]) < MIN_SEEDS:
        yield f"Score with {MIN_SEEDS} seeds: {again} seeds=[0,1,2]"
    protocols = list(dict.fromkeys(row["protocol"] for row in one["results"]))
    if Protocol.finetune_all.value not in protocols:
        yield (
            "Compare with the same network trained on the labels alone: "
            f"{again} protocols=[finetune_all]"
        )
    if any(row["encoder"] == PRETRAINED for row in one["results"]):
        yield f"Publish the encoder: simclr-export run={run_dir} output=export step={one['step']}"


def _add_files(page: Page, run_dir: Path, folder: Path) -> None:
    names = {path.name: str(path.relative_to(run_dir)) for path in sorted(folder.glob("*.csv"))}
    page.heading("Numbers", 3).text("All numbers of this page, and those without a picture:")
    page.links({JSON_NAME: JSON_NAME, **names})


def _fractions(page: Page, folder: Path, one: Evaluation) -> None:
    path = draw_fractions(folder / "scores.png", one["results"], one["headline"])
    score = plain(one["headline"])
    caption = f"{score[:1].upper()}{score[1:]} of the pretrained encoder and of the controls"
    page.picture(path, f"{caption}, 95 % intervals.")
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
    absent = sum(not count for count in task["positives"])
    page.picture(
        path,
        f"F1 of each class, {drawn[0]['protocol']}; the most frequent class on top"
        + (f", {absent} without a labelled patch left out." if absent else "."),
    )
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
    page.picture(
        path, f"True and predicted classes of the {_named(first)}; test patches of all seeds."
    )
    rows = ((name, *counts) for name, counts in zip(classes, first["confusion"], strict=True))
    write_csv(folder / "confusion.csv", ("truth", *classes), rows)


def _reliability(page: Page, folder: Path, one: Evaluation) -> None:
    drawn = [row for row in _most_labels(one) if row["encoder"] == PRETRAINED]
    path = draw_reliability(folder / "reliability.png", drawn)
    page.picture(
        path,
        "Reliability: bins with at least 5 predictions and 1 % of all, and the "
        "95 % interval of each share.",
    )
    rows = ((*_who(row), *cells) for row in drawn for cells in _bins(row["reliability"]))
    header = (
        "protocol",
        "encoder",
        "fraction",
        "from",
        "to",
        "predictions",
        "probability",
        "frequency",
    )
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
    names = [name for name in one["results"][0]["scores"] if not name.startswith(_IN_FILES)]
    header, *rows = score_table(one, names)
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
