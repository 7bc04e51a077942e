"""The report of a run: state, curves, attempts and evaluation on one HTML page.

Called by ``simclr-status --report``, and for curves.png at the end of a training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.figures.canvas import COLORS, Axes, Page, canvas
from jobs.run_dir import CONFIG_NAME
from jobs.status.causes import AttemptRecord
from jobs.status.render import clock, duration, run_lines
from jobs.status.run_status import RunRecord
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

CURVES_NAME = "curves.png"

Records = Sequence[dict[str, Any]]


def draw_curves(run_dir: Path) -> Path | None:
    """Draw ``curves.png`` into a run folder and return its path; None without any record."""
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.is_file() else []
    if not records:
        return None
    path = run_dir / CURVES_NAME
    with canvas(path, 10, 8.5) as figure:
        axes = figure.subplots(3, 2, sharex=True)
        panels = (_loss, _rate, _gradient, _speed, _spread, _probe)
        for draw, panel in zip(panels, axes.flat, strict=True):
            draw(panel, records)
            panel.grid(alpha=0.3)
        for panel in axes[-1]:
            panel.set_xlabel("step")
        figure.suptitle(run_dir.resolve().name)
    return path


def _loss(axes: Axes, records: Records) -> None:
    _line(axes, records, "loss", 0)
    chance = records[-1]["chance_level"]
    axes.axhline(chance, color=COLORS[6], linestyle="--", linewidth=1)
    _note(axes, chance, f"chance: {chance:.2f}")
    axes.set_title("contrastive loss (no measure of quality)")


def _rate(axes: Axes, records: Records) -> None:
    _line(axes, records, "learning_rate", 1)
    axes.set_ylim(bottom=0)
    axes.set_title("learning rate")


def _gradient(axes: Axes, records: Records) -> None:
    _line(axes, records, "gradient_norm", 2)
    axes.set_yscale("log")
    skipped = records[-1].get("skipped_steps", 0)
    axes.set_title("gradient norm" + (f" ({skipped} steps skipped)" if skipped else ""))


def _speed(axes: Axes, records: Records) -> None:
    _line(axes, records, "patches_per_s", 3)
    axes.set_ylim(bottom=0)
    axes.set_title("patches per second")


def _spread(axes: Axes, records: Records) -> None:
    _line(axes, records, "deviation", 4, "deviation (healthy: 1)")
    _line(axes, records, "mean_cosine", 5, "mean cosine (healthy: 0)")
    axes.set_ylim(-0.05, 1.1)
    axes.set_title("spread of the projections")
    axes.legend(fontsize="small")


def _probe(axes: Axes, records: Records) -> None:
    """Draw the headlines of probe and k-NN beside the untrained controls."""
    probed = [record for record in records if any(key.startswith("probe/") for key in record)]
    axes.set_title("held-out validation labels")
    if not probed:
        axes.text(0.5, 0.5, "not probed: monitor.shards", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    headline = next(key for key in probed[-1] if key.startswith("probe/")).partition("/")[2]
    for number, name in enumerate(("probe", "knn")):
        label = {"probe": "linear probe", "knn": "k-NN"}[name]
        _line(axes, probed, f"{name}/{headline}", number, label, marker="o")
    for number, key in enumerate(key for key in probed[-1] if key.startswith("controls/")):
        value, style = probed[-1][key], (":", "--")[number % 2]
        label = f"linear probe: {key.partition('/')[2].replace('_', ' ')}"
        axes.axhline(value, color=COLORS[6], linestyle=style, linewidth=1, label=label)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(headline.replace("_", " "))
    axes.legend(fontsize="small")


def _line(
    axes: Axes, records: Records, key: str, color: int, label: str = "", marker: str = ""
) -> None:
    # null stands where a number did not exist; matplotlib leaves a gap at NaN
    values = [float("nan") if record.get(key) is None else record[key] for record in records]
    steps = [record["step"] for record in records]
    axes.plot(
        steps,
        values,
        color=COLORS[color],
        label=label or None,
        # a single record would draw no line at all
        marker=marker or ("o" if len(records) == 1 else ""),
        markersize=4,
    )


def _note(axes: Axes, height: float, text: str) -> None:
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
    )


_COLORS = {
    "finished": COLORS[2],
    "running": COLORS[0],
    "stopped": COLORS[4],
    "failed": COLORS[1],
    "lost": COLORS[6],
}


def draw_timeline(path: Path, attempts: Sequence[AttemptRecord], now: float) -> Path:
    """Draw one bar an attempt, from its start to its end.

    Args:
        path: of the PNG.
        attempts: at least one.
        now: seconds since 1970; a bar without an end reaches to it, or to the next start.
    """
    first = attempts[0].start
    spans = _spans(attempts, now)
    # seconds for tests, minutes for trials, hours for real runs
    size, unit = _scale(spans[-1][1] - first)
    with canvas(path, 9, 1.1 + 0.4 * len(attempts)) as figure:
        axes = figure.subplots()
        for row, (attempt, (start, end)) in enumerate(zip(attempts, spans, strict=True)):
            left, width = (start - first) / size, (end - start) / size
            axes.barh(row, width, left=left, color=_COLORS[attempt.outcome], height=0.3)
            # Above its bar and from the left edge: a late bar would push its text off the page.
            axes.text(0, row - 0.2, _caption(attempt), va="bottom", fontsize="small")
        axes.set_yticks(range(len(attempts)), [f"attempt {one.number}" for one in attempts])
        axes.set_ylim(len(attempts) - 0.5, -0.8)  # the first on top
        axes.set_xlabel(f"{unit} since the first start")
        axes.grid(axis="x", alpha=0.3)
    return path


def _spans(attempts: Sequence[AttemptRecord], now: float) -> list[tuple[float, float]]:
    following = [*(attempt.start for attempt in attempts[1:]), now]
    return [
        (attempt.start, following[k] if attempt.end is None else attempt.end)
        for k, attempt in enumerate(attempts)
    ]


def _scale(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 4 * 3600 else (3600.0, "hours")


def _caption(attempt: AttemptRecord) -> str:
    steps = "" if attempt.last_step is None else f"to step {attempt.last_step}: "
    return f"{steps}{(attempt.cause or attempt.outcome)[:70]}"


REPORT_NAME = "report.html"
TIMELINE_NAME = "attempts.png"


def write_report(record: RunRecord, now: float | None = None) -> Path:
    """Write ``report.html`` into the run folder and return its path."""
    run_dir, now = Path(record.run), time.time() if now is None else now
    title, *lines = run_lines(record)
    page = Page(run_dir.resolve().name).text(f"{title[1]}; as of {clock(now)}")
    page.table(("", ""), lines)
    _add_curves(page, run_dir)
    if record.attempts:
        picture = draw_timeline(run_dir / TIMELINE_NAME, record.attempts, now)
        page.heading("Attempts").picture(picture, "When each attempt ran, and how it ended.")
        header = ("attempt", "started", "lasted", "ranks", "nodes", "steps", "ended")
        page.table(header, [_row(attempt) for attempt in record.attempts])
    _add_evaluation(page, run_dir)
    page.heading("Settings").command((run_dir / CONFIG_NAME).read_text(encoding="utf-8"))
    return page.write(run_dir / REPORT_NAME)


def _add_curves(page: Page, run_dir: Path) -> None:
    curves = draw_curves(run_dir)
    page.heading("Curves")
    if curves is None:
        page.text("No metrics yet.")
        return
    page.picture(curves, "Training, and the probe on held-out labels where there is one.")


def _add_evaluation(page: Page, run_dir: Path) -> None:
    table = run_dir / "evaluation.md"
    if table.exists():
        page.heading("Evaluation").command(table.read_text(encoding="utf-8"))


def _row(attempt: AttemptRecord) -> tuple[object, ...]:
    lasted = duration(attempt.end - attempt.start) if attempt.end else "-"
    steps = [str(step) for step in (attempt.first_step, attempt.last_step) if step is not None]
    return (
        attempt.number,
        clock(attempt.start),
        lasted,
        attempt.num_ranks,
        attempt.nodes,
        " to ".join(steps) or "-",
        attempt.cause or attempt.outcome,
    )
