"""Numbers of a figure come in; a CSV file that holds them goes out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from preprocess.shards.atomic import write_text

ENDS = ("value", "low", "high")

Rows = Iterable[Sequence[object]]


def write_csv(path: Path, header: Sequence[str], rows: Rows) -> None:
    """Write header and rows whole."""
    text = StringIO()
    writer: Callable[[Sequence[object]], object] = csv.writer(text, lineterminator="\n").writerow
    for row in (header, *rows):
        writer(row)
    write_text(path, text.getvalue())


def score_cells(found: Mapping[str, Any]) -> tuple[object, ...]:
    """Return a score and the ends of its interval."""
    return tuple(cell(found[key]) for key in ENDS)


def cell(number: float | None) -> object:
    """Return a number; a score that does not exist is an empty cell."""
    return "" if number is None else number


def number_of(value: float | None) -> float:
    """Return a number to be drawn: NaN, a gap, where it does not exist."""
    return float("nan") if value is None else float(value)
