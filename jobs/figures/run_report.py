"""Write the report of a run: state, curves, attempts and evaluation on one HTML page.

Called by ``simclr-status --report``, and for curves.png at the end of training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.figures.canvas import COLORS, Axes, Page, canvas, percent_of
from jobs.figures.evaluation import PAGE_NAME as EVALUATION_PAGE
from jobs.run_dir import CONFIG_NAME
from jobs.status.causes import AttemptRecord
from jobs.status.records import RunRecord
from jobs.status.render import clock, duration, run_lines
from simclr.evaluation.report import JSON_NAME, read_report, title, verdict
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

CURVES_NAME = "curves.png"
_WINDOWS, _MIN_WINDOW = 30, 3  # running mean: windows per run, and fewest records per window

Records = Sequence[dict[str, Any]]
_Panel = Callable[[Axes, Records], None]


def draw_curves(run_dir: Path) -> Path | None:
    """Draw ``curves.png`` into a run folder and return its path; None if there are no records."""
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.is_file() else []
    if not records:
        return None
    path = run_dir / CURVES_NAME
    drawn = [draw for key, draw in _PANELS.items() if any(_has(one, key) for one in records)]
    rows = -(-len(drawn) // 2)
    with canvas(path, 10, 0.6 + 2.6 * rows) as figure:
        panels = figure.subplots(rows, 2, sharex=True, squeeze=False).ravel()
        for panel in panels[len(drawn) :]:
            panel.set_axis_off()
        for draw, panel in zip(drawn, panels, strict=False):
            draw(panel, records)
            panel.grid(alpha=0.3)
            panel.xaxis.set_tick_params(labelbottom=True)
        for panel in panels[max(0, len(drawn) - 2) : len(drawn)]:
            panel.set_xlabel("step")
    return path


def _has(record: dict[str, Any], key: str) -> bool:
    return any(name.startswith(key) and value is not None for name, value in record.items())


def _loss(axes: Axes, records: Records) -> None:
    _line(axes, records, "loss", 0)
    chance = records[-1]["chance_level"]
    axes.axhline(chance, color=COLORS[6], linestyle="--", linewidth=1)
    style: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": "small"}
    style |= {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(f"chance: {chance:.2f}", (1, chance), xytext=(-4, -3), **style)
    axes.set_title("contrastive loss (no measure of quality)")


def _gradient(axes: Axes, records: Records) -> None:
    _line(axes, records, "gradient_norm", 2)
    axes.set_yscale("log")
    skipped = records[-1].get("skipped_steps", 0)
    axes.set_title("gradient norm" + (f" ({skipped} steps skipped)" if skipped else ""))


def _spread(axes: Axes, records: Records) -> None:
    _line(axes, records, "deviation", 4, "deviation (healthy: 1)")
    _line(axes, records, "mean_cosine", 5, "mean cosine (healthy: 0)")
    axes.set(ylim=(-0.05, 1.1), title="spread of the projections")
    axes.legend(fontsize="small")


def _probe(axes: Axes, records: Records) -> None:
    """Draw the headline scores of probe and k-NN with the untrained controls."""
    probed = [record for record in records if _has(record, "probe/")]
    headline = next(key for key in probed[-1] if key.startswith("probe/")).partition("/")[2]
    _line(axes, probed, f"probe/{headline}", 0, "linear probe", scale=100)
    _line(axes, probed, f"knn/{headline}", 1, "k-NN", scale=100)
    for number, key in enumerate(key for key in probed[-1] if key.startswith("controls/")):
        value, style = percent_of(probed[-1][key]), (":", "--")[number % 2]
        label = f"linear probe: {key.partition('/')[2].replace('_', ' ')}"
        axes.axhline(value, color=COLORS[6], linestyle=style, linewidth=1, label=label)
    axes.set(ylim=(0, 102), ylabel=headline.replace("_", " "))
    axes.set_title("held-out validation labels (%)")
    axes.legend(fontsize="small")


def _from_0(key: str, color: int, title: str, top: int | None = None, *, scale: int = 1) -> _Panel:
    """Return a function that draws one metric on an axis that starts at 0."""

    def draw(axes: Axes, records: Records) -> None:
        """Draw one metric on its own axes."""
        _line(axes, records, key, color, scale=scale)
        axes.set(ylim=(0, top), title=title)

    return draw


# Panels by the metric that some record must have: its name, or a prefix.
_PANELS: dict[str, _Panel] = {
    "loss": _loss,
    "probe/": _probe,
    "learning_rate": _from_0("learning_rate", 1, "learning rate"),
    "gradient_norm": _gradient,
    "deviation": _spread,
    "patches_per_s": _from_0("patches_per_s", 3, "patches per second"),
    "data_wait_share": _from_0(
        "data_wait_share", 4, "time spent waiting for data (%)", 100, scale=100
    ),
}


def _line(
    axes: Axes, records: Records, key: str, color: int, label: str | None = None, *, scale: int = 1
) -> None:
    """Draw a metric as it is or, with many records, pale behind its running mean."""
    # None leaves a gap
    values = scale * np.array([record.get(key) for record in records], dtype=np.float64)
    steps = [record["step"] for record in records]
    style: dict[str, Any] = {"color": COLORS[color], "label": label}
    window = len(records) // _WINDOWS
    if window < _MIN_WINDOW:
        # a single record draws no line, so mark it
        marker = "o" if len(records) <= _WINDOWS else ""
        axes.plot(steps, values, marker=marker, markersize=4, **style)
        return
    axes.plot(steps, values, color=COLORS[color], alpha=0.3, linewidth=0.8)
    axes.plot(steps, _running_mean(values, window), linewidth=1.8, **style)


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of a window around each value, shorter at the ends; gaps are ignored."""
    known = np.isfinite(values)
    sums, counts = (
        np.convolve(part, np.ones(2 * (window // 2) + 1), "same")
        for part in (np.where(known, values, 0.0), known.astype(float))
    )
    means = np.full_like(sums, np.nan)
    np.divide(sums, counts, where=known, out=means)
    return means


_COLORS = {
    "finished": COLORS[2],
    "running": COLORS[0],
    "stopped": COLORS[4],
    "failed": COLORS[1],
    "lost": COLORS[6],
}


def draw_timeline(path: Path, attempts: Sequence[AttemptRecord], now: float) -> Path:
    """Draw one bar per attempt (at least one), from its start to its end.

    ``now``: seconds since 1970; a bar without an end extends to it, or to the next start.
    """
    following = [*(attempt.start for attempt in attempts[1:]), now]
    ends = [
        later if one.end is None else one.end
        for one, later in zip(attempts, following, strict=True)
    ]
    first = attempts[0].start
    total = ends[-1] - first
    # seconds for tests, minutes for trials, hours for real runs
    size, unit = (3600.0, "hours") if total >= 4 * 3600 else (60.0, "minutes")
    if total < 300:
        size, unit = 1.0, "seconds"
    with canvas(path, 9, 1.1 + 0.4 * len(attempts)) as figure:
        axes = figure.subplots()
        for row, (attempt, end) in enumerate(zip(attempts, ends, strict=True)):
            left, width = (attempt.start - first) / size, (end - attempt.start) / size
            axes.barh(row, width, left=left, color=_COLORS[attempt.outcome], height=0.3)
            steps = "" if attempt.last_step is None else f"to step {attempt.last_step}: "
            caption = f"{steps}{(attempt.cause or attempt.outcome)[:70]}"
            # Above the bar, from the left edge: beside a late bar the text would run off the page.
            axes.text(0, row - 0.2, caption, va="bottom", fontsize="small")
        axes.set_yticks(range(len(attempts)), [f"attempt {one.number}" for one in attempts])
        axes.set_ylim(len(attempts) - 0.5, -0.8)  # first attempt on top
        axes.set_xlabel(f"{unit} since the first start")
        axes.grid(axis="x", alpha=0.3)
    return path


REPORT_NAME = "report.html"
TIMELINE_NAME = "attempts.png"


def write_report(record: RunRecord, now: float | None = None) -> Path:
    """Write ``report.html`` into the run folder and return its path."""
    run_dir, now = Path(record.run), time.time() if now is None else now
    page = Page(f"Run {run_dir.resolve().name}").lead(_state(record)).text(f"As of {clock(now)}.")
    links = {name: at for name, at in record.trackers.items() if at.startswith("http")}
    _, *lines = run_lines(record)
    # attempts have their own table
    shown = [
        (name, text) for name, text in lines if name.partition(" ")[0] not in ("attempt", *links)
    ]
    page.table(("", ""), shown, wraps=True).links(links)
    page.heading("Curves")
    if curves := draw_curves(run_dir):
        caption = "Training, and the probe on held-out labels where there is one."
        page.picture(curves, caption)
    else:
        page.text("No metrics yet.")
    if record.attempts:
        picture = draw_timeline(run_dir / TIMELINE_NAME, record.attempts, now)
        page.heading("Attempts").picture(picture, "When each attempt ran, and how it ended.")
        header = ("attempt", "started", "lasted", "ranks", "nodes", "steps", "ended")
        page.table(header, [_row(attempt) for attempt in record.attempts], wraps=True)
    if (report := run_dir / JSON_NAME).exists():
        page.heading("Evaluation")
        page.bullets(*(f"{title(one)}: {verdict(one)}" for one in read_report(report)))
        page.links({EVALUATION_PAGE: EVALUATION_PAGE})
    page.heading("Settings")
    page.folded(CONFIG_NAME, (run_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    return page.write(run_dir / REPORT_NAME)


def _state(record: RunRecord) -> str:
    """Return state and progress as one sentence."""
    sentence = f"{record.state[:1].upper()}{record.state[1:]}"
    if record.num_steps:
        share = 100 * record.step / record.num_steps
        sentence += f": step {record.step} of {record.num_steps} ({share:.0f} %)"
    if record.expected_end is not None:
        left = duration(record.time_left_s)
        sentence += f", {left} of training left, done {clock(record.expected_end)}"
    return f"{sentence}."


def _row(attempt: AttemptRecord) -> tuple[object, ...]:
    lasted = duration(attempt.end - attempt.start) if attempt.end else "-"
    steps = [str(step) for step in (attempt.first_step, attempt.last_step) if step is not None]
    where = attempt.num_ranks, attempt.nodes, " to ".join(steps) or "-"
    return attempt.number, clock(attempt.start), lasted, *where, attempt.cause or attempt.outcome
