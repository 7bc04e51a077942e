"""The attempts of a run come in; a PNG of when each ran, and how it ended, goes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.figures.canvas import COLORS, canvas
from jobs.monitor.history import AttemptRecord

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
            # Above its bar and from the left edge: a late bar would push its words off the page.
            axes.text(0, row - 0.2, _words(attempt), va="bottom", fontsize="small")
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


def _words(attempt: AttemptRecord) -> str:
    steps = "" if attempt.last_step is None else f"to step {attempt.last_step}: "
    return f"{steps}{(attempt.cause or attempt.outcome)[:70]}"
