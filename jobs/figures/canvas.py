"""Write figures as images, tables as CSV and reports as one HTML page, each file atomically.

Elements that several pages share are here too. The only module that imports matplotlib.
"""

from __future__ import annotations

import base64
import csv
import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

# An unknown backend in the user's environment would break the import; the figures need only agg.
os.environ["MPLBACKEND"] = "agg"

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from preprocess.shards.atomic_io import atomic_path, write_text

__all__ = ["COLORS", "Axes", "Figure", "MaxNLocator", "canvas"]

Result = Mapping[str, Any]  # one row of an evaluation: an encoder under a protocol

# Okabe and Ito's palette: distinguishable for colour-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = "osD^vP*X"
# A page shows about 100 pixels per inch; charts are finer, for sharp lines and text. As JPEG,
# photographs are a tenth of the size.
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "png", "dpi": 150, "metadata": {"Software": None}},
    ".jpg": {"format": "jpeg", "dpi": 110, "pil_kwargs": {"quality": 88, "subsampling": 0}},
}


@contextmanager
def canvas(path: str | Path, width: float = 7.0, height: float = 4.5) -> Iterator[Figure]:
    """Yield an empty figure of ``width`` x ``height`` inches; save it to ``path`` at the end.

    No global state of matplotlib is touched: figures can be drawn in threads and on login nodes
    without a display. Nothing is written if the drawing raises. The same data give the same bytes.
    ``path`` ends with ``.png`` for charts, ``.jpg`` for photographs.
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
        """Append the heading of a section, or of a subsection at level 3."""
        return self._append(f"<h{level}>{html.escape(text)}</h{level}>")

    def lead(self, text: str) -> Page:
        """Append a summary for readers in a hurry."""
        return self._append(f'<p class="lead">{html.escape(text)}</p>')

    def text(self, *paragraphs: str) -> Page:
        """Append paragraphs of plain text."""
        return self._append(*(f"<p>{html.escape(text)}</p>" for text in paragraphs))

    def bullets(self, *items: str) -> Page:
        """Append a bullet list; append nothing if there are no items."""
        lines = [f"<li>{html.escape(item)}</li>" for item in items]
        return self._append("<ul>", *lines, "</ul>") if lines else self

    def links(self, targets: Mapping[str, str]) -> Page:
        """Append a list of links, from text to URL or to a path relative to the page."""
        safe = {text: html.escape(quote(url, safe="/:#?=&@%")) for text, url in targets.items()}
        lines = [f'<li><a href="{url}">{html.escape(text)}</a></li>' for text, url in safe.items()]
        return self._append("<ul>", *lines, "</ul>") if lines else self

    def command(self, text: str) -> Page:
        """Append a command or the content of a file, verbatim."""
        return self._append(f"<pre>{html.escape(text)}</pre>")

    def folded(self, title: str, text: str) -> Page:
        """Append a long text, such as all settings, collapsed under its title."""
        summary, inside = html.escape(title), html.escape(text)
        return self._append(f"<details><summary>{summary}</summary><pre>{inside}</pre></details>")

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[object]], *, wraps: bool = False
    ) -> Page:
        """Append a table; cells are converted by ``str``.

        ``wraps``: wrap the last column, which holds sentences; all other cells stay on one line.
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
        """Append an image, embedded in the page so that the page can be mailed alone."""
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
        text, kind = html.escape(caption), _FORMATS[Path(path).suffix]["format"]
        image = f'<img src="data:image/{kind};base64,{data}" alt="{text}">'
        return self._append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")

    def write(self, path: str | Path) -> Path:
        """Write the page atomically and return its path."""
        body = "\n".join(self._parts)
        write_text(
            Path(path),
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,">'  # else browsers request one from the server
            f"<title>{self._title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
        )
        return Path(path)

    def _append(self, *parts: str) -> Page:
        self._parts.extend(parts)
        return self


ENDS = ("value", "low", "high")
ends_of = itemgetter(*ENDS)  # a score and the ends of its interval; None if undefined


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write header and rows atomically; None becomes an empty cell."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def percent_of(value: float | None) -> float:
    """Return a fraction in percent for plotting; NaN, which leaves a gap, for None."""
    return float("nan") if value is None else 100 * float(value)


def plain(score: str) -> str:
    """Return a display name: no underscores, ``F1`` for ``f1``."""
    return re.sub(r"\bf1\b", "F1", score.replace("_", " "))


def interval(score: Result) -> tuple[float, NDArray[np.float64]]:
    """Return a value in percent and its distances (2, 1) to the interval ends, NaN if undefined.

    Clipped at 0: a percentile interval may exclude its value, and matplotlib rejects negatives.
    """
    value, low, high = map(percent_of, ends_of(score))
    return value, np.maximum([[value - low], [high - value]], 0)


def draw_band(
    axes: Axes, places: Sequence[float], scores: Sequence[Result], label: str, number: int
) -> None:
    """Draw scores as a line, their intervals as a band; ``number`` selects colour and marker."""
    value, low, high = ([percent_of(one[key]) for one in scores] for key in ENDS)
    color = COLORS[number % len(COLORS)]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(places, value, color=color, marker=MARKERS[number % len(MARKERS)], label=label)


def draw_fractions(path: Path, results: Sequence[Result], score: str) -> Path:
    """Plot a score against the share of labels, one panel per protocol, with 95 % bands.

    With a single share, plot one point with its interval per encoder instead of curves.
    """
    protocols = list(dict.fromkeys(one["protocol"] for one in results))
    encoders = list(dict.fromkeys(one["encoder"] for one in results))
    single = len({one["fraction"] for one in results}) == 1
    draw = _points if single else _curves
    with canvas(path, 3.2 + 3.2 * len(protocols), 4.2) as figure:
        panels = figure.subplots(1, len(protocols), squeeze=False, sharex=True, sharey=True)[0]
        for axes, protocol in zip(panels, protocols, strict=True):
            draw(axes, [one for one in results if one["protocol"] == protocol], encoders, score)
            axes.set_title(protocol)
            axes.grid(alpha=0.3)
        if not single:
            panels[0].set_ylabel(f"{plain(score)} (%)")
            # each name once: panels may lack some encoders
            marks: dict[str, Any] = {}
            for axes in panels:
                for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                    marks.setdefault(name, handle)
            figure.legend([*marks.values()], [*marks], loc="outside right center", fontsize=9)
    return path


def _curves(axes: Axes, results: Sequence[Result], encoders: Sequence[str], score: str) -> None:
    ordered = sorted(results, key=itemgetter("fraction"))
    for number, encoder in enumerate(encoders):
        if own := [one for one in ordered if one["encoder"] == encoder]:
            shares = [100 * one["fraction"] for one in own]
            draw_band(axes, shares, [one["scores"][score] for one in own], encoder, number)
    axes.set_xscale("log")
    ticks = sorted({100 * one["fraction"] for one in results})
    axes.set_xticks(ticks, [f"{share:g}" for share in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training labels (%)")


def _points(axes: Axes, results: Sequence[Result], encoders: Sequence[str], score: str) -> None:
    by_encoder = {one["encoder"]: one["scores"][score] for one in results}
    for row, encoder in enumerate(encoders):
        if encoder in by_encoder:
            value, ends = interval(by_encoder[encoder])
            color = COLORS[row % len(COLORS)]
            axes.errorbar(value, row, xerr=ends, fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(encoders)), encoders)
    axes.set(ylim=(len(encoders) - 0.5, -0.5), xlabel=f"{plain(score)} (%)")
