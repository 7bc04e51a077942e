"""A run's evaluation.json comes in; figures, their numbers as CSV and one HTML page go out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jobs.figures import charts
from jobs.figures.cells import ENDS, Rows, cell, score_cells, write_csv
from jobs.figures.charts import Result, spoken
from jobs.figures.checkpoints import add_checkpoints
from jobs.figures.page import Page
from simclr.evaluate.choice import JSON_NAME as CHECKPOINTS_JSON
from simclr.evaluate.report import FOLDER_NAME, JSON_NAME, Evaluation, read_report
from simclr.evaluate.setting import PRETRAINED
from simclr.evaluate.table import score_table, title

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
    path = charts.draw_fractions(folder / "scores.png", one["results"], one["headline"])
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
    path = charts.draw_classes(folder / "classes.png", drawn, task["classes"], task["positives"])
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
    path = charts.draw_confusion(folder / "confusion.png", first["confusion"], classes)
    page.picture(path, f"Truth and answers of the {_named(first)}; test patches of all seeds.")
    rows = ((name, *counts) for name, counts in zip(classes, first["confusion"], strict=True))
    write_csv(folder / "confusion.csv", ("truth", *classes), rows)


def _reliability(page: Page, folder: Path, one: Evaluation) -> None:
    drawn = [row for row in _most_labels(one) if row["encoder"] == PRETRAINED]
    path = charts.draw_reliability(folder / "reliability.png", drawn)
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
    path = charts.draw_map(folder / "map.png", points, classes)
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
