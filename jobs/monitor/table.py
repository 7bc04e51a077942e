"""Records of runs come in, a table for a terminal goes out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jobs.monitor.records import RunRecord

_WIDE = 160  # columns where there is no terminal: nothing is cut in a log


def print_table(records: Sequence[RunRecord]) -> None:
    """Print one line a run, and below the table what a person should do."""
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "step", "patches/s", "left", "checkpoint", "attempt", "heartbeat"):
        table.add_column(name, overflow="fold")
    for record in records:
        table.add_row(*_cells(record))
    console.print(table)
    for record in records:
        job = f"job {record.job_id}, " if record.job_id else ""
        if record.log:
            console.print(f"{record.run}: {job}log {record.log}", soft_wrap=True)
        if record.action:
            console.print(f"{record.run}: next: {record.action}", soft_wrap=True)


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _cells(record: RunRecord) -> tuple[str, ...]:
    checkpoint = "-"
    if record.checkpoint_step is not None:
        checkpoint = f"{record.checkpoint_step}, {duration(record.checkpoint_age_s)} ago"
    rate = record.patches_per_s
    return (
        record.run,
        record.state,
        f"{record.step} of {record.num_steps}" if record.num_steps else "-",
        "-" if rate is None else f"{rate:.1f}",
        duration(record.time_left_s),
        checkpoint,
        str(record.attempt or "-"),
        duration(record.heartbeat_age_s),
    )
