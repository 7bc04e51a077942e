"""Records of runs and packings as text for a terminal or a log; called by simclr-status."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from jobs.status.packing import PackingRecord
from jobs.status.run_status import RunRecord

_WIDE = 160  # columns where there is no terminal: nothing is cut in a log
_COLUMNS = ("run", "state", "step", "patches/s", "left", "checkpoint", "attempt", "heartbeat")
_LABEL = 11  # columns of the labels


def print_records(runs: Sequence[RunRecord], packings: Sequence[PackingRecord]) -> None:
    """Print a block for a single run, else a table and below it the next actions."""
    width = None if sys.stdout.isatty() else _WIDE
    # a path may look like markup or emoji: it is shown as it is
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    if len(runs) == 1:
        _print_lines(console, run_lines(runs[0]))
    elif runs:
        _print_table(console, runs)
    for packing in packings:
        _print_lines(console, packing_lines(packing))


def run_lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line that describes one run."""
    yield record.run, record.state
    yield from _progress_lines(record)
    yield from _attempt_lines(record)
    if record.job_id:
        yield "job", f"{record.job_id}{f' on {record.nodes}' if record.nodes else ''}"
    yield from record.others.items()
    yield from record.trackers.items()
    if record.log:
        yield "log", record.log
    if record.action:
        yield "next", record.action


def packing_lines(record: PackingRecord) -> Iterator[tuple[str, str]]:
    """Yield label and text of each line that describes a packing."""
    yield record.shards, record.state
    yield "shards", f"{record.num_done} of {record.num_shards}"
    if record.members:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(record.members.items()))
        yield "array", f"job {record.job_id}: {counts}"
    if record.failed:
        yield "failed", " ".join(record.failed)
    if record.log:
        yield "log", record.log
    if record.action:
        yield "next", record.action


def duration(seconds: float | None) -> str:
    """Format seconds: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((100, 1, "s"), (6000, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"


def clock(seconds: float) -> str:
    """Return seconds since 1970 as local date and time of day."""
    return time.strftime("%a %d %b %H:%M", time.localtime(seconds))


def _progress_lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    if record.num_steps:
        share = 100 * record.step / record.num_steps
        rate = f", {record.patches_per_s:.1f} patches/s" if record.patches_per_s else ""
        yield "step", f"{record.step} of {record.num_steps} ({share:.0f} %){rate}"
    if record.expected_end is not None:
        end = f"{duration(record.time_left_s)} of training left, done {clock(record.expected_end)}"
        yield "time", f"{end}{_against_limit(record)}"
    if record.checkpoint_step is not None:
        age = duration(record.checkpoint_age_s)
        yield "checkpoint", f"step {record.checkpoint_step}, {age} old, {record.checkpoint_state}"
    if record.at_risk_steps is not None:
        since = f", {duration(record.at_risk_s)} of work" if record.at_risk_s is not None else ""
        yield "at risk", f"{record.at_risk_steps} steps{since}, if it were killed without a warning"
    if record.heartbeat_age_s is not None:
        yield "heartbeat", f"{duration(record.heartbeat_age_s)} ago ({record.heartbeat_of})"
    if record.metrics:
        known = {key: value for key, value in record.metrics.items() if value is not None}
        yield "metrics", ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in known.items())


def _against_limit(record: RunRecord) -> str:
    """Return which comes first, the end of the run or the time limit of its job."""
    limit, left = record.limit_left_s, record.time_left_s
    if limit is None or left is None:
        return ""
    if left < limit:
        return f"; within the time limit of its job, {duration(limit)} from now"
    return f"; its job reaches the time limit in {duration(limit)}, is requeued and continues"


def _attempt_lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    for attempt in record.attempts:
        steps = [str(s) for s in (attempt.first_step, attempt.last_step) if s is not None]
        # an attempt that died before its first step has a start alone
        span = {0: "", 1: "from step {}, ", 2: "steps {} to {}, "}[len(steps)].format(*steps)
        where = f"{attempt.num_ranks} rank{'s' * (attempt.num_ranks != 1)} on {attempt.nodes}"
        lasted = f" for {duration(attempt.end - attempt.start)}" if attempt.end else ""
        how = attempt.cause or attempt.outcome
        if attempt.lost_steps:
            how += f"; {attempt.lost_steps} steps were trained again"
        label = f"attempt {attempt.number}"
        yield label, f"{clock(attempt.start)}{lasted}, {where}: {span}{how}"


def _print_lines(console: Console, lines: Iterator[tuple[str, str]]) -> None:
    title, state = next(lines)
    console.print(f"{title}: {state}", soft_wrap=True)
    for label, text in lines:
        console.print(f"  {label:<{_LABEL}} {text}", soft_wrap=True)


def _print_table(console: Console, records: Sequence[RunRecord]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
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
