"""The record of a run comes in; one HTML page with curves, attempts and state goes out."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.figures.curves import draw_curves
from jobs.figures.page import Page
from jobs.figures.timeline import draw_timeline
from jobs.monitor.history import AttemptRecord
from jobs.monitor.records import RunRecord
from jobs.monitor.table import clock, duration, run_lines
from jobs.runfolder import CONFIG_NAME

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
