"""Figures as image files, tables as CSV, reports as one HTML page; each whole or not at all.

Called by everything that draws. The only module that imports matplotlib.
"""

from __future__ import annotations

import base64
import csv
import html
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

# An unknown backend in the user's environment makes the import fail; figures use none.
os.environ["MPLBACKEND"] = "agg"

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from preprocess.shards.atomic_io import atomic_path, write_text

__all__ = ["COLORS", "Axes", "Figure", "MaxNLocator", "canvas"]

# Okabe and Ito's palette: told apart by colour-blind readers too, and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# A page shows about 100 pixels an inch; lines and text of charts are kept sharper. Photographs are
# a tenth as large as JPEG.
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "dpi": 150, "metadata": {"Software": None}},
    ".jpg": {"format": "jpeg", "dpi": 110, "pil_kwargs": {"quality": 88, "subsampling": 0}},
}


@contextmanager
def canvas(path: str | Path, width: float = 7.0, height: float = 4.5) -> Iterator[Figure]:
    """Yield an empty figure of ``width`` x ``height`` inches; at the end ``path`` holds it.

    No global state of matplotlib is touched: figures can be drawn in threads and on login nodes
    without a display. Nothing is written if the drawing raises. The same data give the same bytes.

    Args:
        path: ends with ``.png`` for charts, ``.jpg`` for photographs.
        width: inches.
        height: inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_path(Path(path)) as partial:
        figure.savefig(partial, **_FORMATS[Path(path).suffix])


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --dim: #595959; --line: #d9d9d9; --paper: #fff;
        --soft: #f4f4f4; --mark: #0072b2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --dim: #a8a8a8; --line: #444;
        --paper: #16181b; --soft: #23262b; --mark: #56b4e9 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { font-size: 1.6rem } h3 { font-size: 1.05rem; margin-top: 1.8rem }
h2 { font-size: 1.3rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem }
a { color: var(--mark) } li { margin: .2rem 0 } ul { padding-left: 1.2rem }
.lead { font-size: 1.2rem; border-left: .3rem solid var(--mark); padding-left: .8rem }
figure { margin: 1rem 0; overflow-x: auto } figcaption { color: var(--dim); font-size: .9rem }
/* figures are drawn on white */
img { max-width: 100%; height: auto; background: #fff }
/* a figure that were shrunk to a phone could not be read: it scrolls */
@media (max-width: 45rem) { img { max-width: 45rem } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem 1.2rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); white-space: nowrap }
.wraps td:last-child { white-space: normal; min-width: 14rem }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; font-size: .85rem }
.scroll { overflow-x: auto } summary { cursor: pointer; color: var(--mark) }
"""


class Page:
    """One report under construction; each method appends a part and returns the page."""

    def __init__(self, title: str) -> None:
        """Begin a page with its title."""
        self._title = html.escape(title)
        self._parts: list[str] = [f"<h1>{self._title}</h1>"]

    def heading(self, text: str, level: int = 2) -> Page:
        """Append the heading of a section, or at level 3 of a part of it."""
        return self._append(f"<h{level}>{html.escape(text)}</h{level}>")

    def lead(self, text: str) -> Page:
        """Append the sentence that a reader in a hurry needs."""
        return self._append(f'<p class="lead">{html.escape(text)}</p>')

    def text(self, *paragraphs: str) -> Page:
        """Append paragraphs of plain text."""
        return self._append(*(f"<p>{html.escape(text)}</p>" for text in paragraphs))

    def bullets(self, *items: str) -> Page:
        """Append a list; nothing without items."""
        lines = [f"<li>{html.escape(item)}</li>" for item in items]
        return self._append("<ul>", *lines, "</ul>") if lines else self

    def links(self, targets: Mapping[str, str]) -> Page:
        """Append a list of links: text to address, or to a path relative to the page."""
        safe = {text: html.escape(quote(url, safe="/:#?=&@%")) for text, url in targets.items()}
        lines = [f'<li><a href="{url}">{html.escape(text)}</a></li>' for text, url in safe.items()]
        return self._append("<ul>", *lines, "</ul>") if lines else self

    def command(self, text: str) -> Page:
        """Append a command or a file's content as it is to be typed."""
        return self._append(f"<pre>{html.escape(text)}</pre>")

    def folded(self, title: str, text: str) -> Page:
        """Append a long text, such as all settings, behind its title: a click shows it."""
        summary, inside = html.escape(title), html.escape(text)
        return self._append(f"<details><summary>{summary}</summary><pre>{inside}</pre></details>")

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[object]], *, wraps: bool = False
    ) -> Page:
        """Append a table; every cell is shown as ``str`` gives it.

        Args:
            header: names of the columns.
            rows: cells of each row.
            wraps: the last column holds sentences; else every cell stays on one line.
        """
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>\n"
            for row in rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        kind = "scroll wraps" if wraps else "scroll"
        return self._append(f'<div class="{kind}">{table}</div>')

    def picture(self, path: str | Path, caption: str) -> Page:
        """Append an image file, held in the page itself so that the page can be mailed alone."""
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
        text = html.escape(caption)
        kind = _FORMATS[Path(path).suffix]["format"]
        image = f'<img src="data:image/{kind};base64,{data}" alt="{text}">'
        return self._append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")

    def write(self, path: str | Path) -> Path:
        """Write the page whole and return its path."""
        body = "\n".join(self._parts)
        write_text(
            Path(path),
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,">'  # else a browser asks a server for one
            f"<title>{self._title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
        )
        return Path(path)

    def _append(self, *parts: str) -> Page:
        self._parts.extend(parts)
        return self


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


def percent_of(value: float | None) -> float:
    """Return a share to be drawn in percent, as tables and sentences have it."""
    return 100 * number_of(value)
