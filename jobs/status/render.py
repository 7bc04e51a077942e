"""Records of runs and packings as text for a terminal or a log; called by simclr-status."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs.status.records import PackingRecord, RunRecord

_WIDE = 160  # columns if there is no terminal: nothing is cut in a log
_LABEL = 11  # columns of the labels
_LONGEST_NAME = 24  # columns of a run's name in a table; runs of a sweep differ at the end

Records = Sequence[RunRecord]
Packings = Sequence[PackingRecord]


def print_records(runs: Records, packings: Packings, *, short: bool = False) -> None:
    """Print records once; ``short`` prints one line per run."""
    console = _console()
    for part in _parts(console, runs, packings, short=short):
        console.print(part, soft_wrap=isinstance(part, Text))


class LiveRecords:
    """Shows records in place on a terminal; in a log, updates follow one another.

    A context manager; the last update stays on the screen. ``short`` shows one line per run.
    """

    def __init__(self, *, short: bool) -> None:
        self._short, self._console = short, _console()
        self._live = Live(console=self._console, auto_refresh=False, screen=True)
        self._last: tuple[Records, Packings] | None = None

    def __enter__(self) -> Self:
        """Take over the screen, if there is one."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def update(self, runs: Records, packings: Packings) -> None:
        """Replace the shown records."""
        self._last = runs, packings
        if not self._console.is_terminal:
            print_records(runs, packings, short=self._short)
            return
        when = Text(f"{clock(time.time(), seconds=True)}, Ctrl-C ends", style="dim")
        parts = _parts(self._console, runs, packings, short=self._short)
        self._live.update(Group(when, Text(), *parts), refresh=True)

    def __exit__(self, *_: object) -> None:
        """Restore the screen, and leave the last records on it."""
        if self._console.is_terminal:
            self._live.stop()
            if self._last:
                print_records(*self._last, short=self._short)


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
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def clock(moment: float, *, seconds: bool = False) -> str:
    """Return seconds since 1970 as local date and time of day."""
    return time.strftime(f"%a %d %b %H:%M{':%S' * seconds}", time.localtime(moment))


def _progress_lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    if record.num_steps:
        share = 100 * record.step / record.num_steps
        rate = f", {record.patches_per_s:.1f} patches/s" if record.patches_per_s else ""
        yield "step", f"{record.step} of {record.num_steps} ({share:.0f} %){rate}"
    if record.expected_end is not None:
        left, limit = record.time_left_s, record.limit_left_s
        text = f"{duration(left)} of training left, done {clock(record.expected_end)}"
        if limit is not None and left is not None:
            soon = duration(limit)
            text += (
                f"; within the time limit of its job, {soon} from now"
                if left < limit
                else f"; its job reaches the time limit in {soon}, is requeued and continues"
            )
        yield "time", text
    if record.checkpoint_step is not None:
        age = duration(record.checkpoint_age_s)
        yield "checkpoint", f"step {record.checkpoint_step}, {age} old, {record.checkpoint_state}"
    if record.at_risk_steps is not None:
        since = f", {duration(record.at_risk_s)} of work" if record.at_risk_s is not None else ""
        yield "at risk", f"{record.at_risk_steps} steps{since}, if it were killed without a warning"
    if record.heartbeat_age_s is not None:
        yield "heartbeat", f"{duration(record.heartbeat_age_s)} ago ({record.heartbeat_of})"
    if record.metrics:
        known = [(key.replace("_", " "), value) for key, value in record.metrics.items()]
        numbers = [
            f"{k} {v if isinstance(v, int) else f'{v:.4g}'}" for k, v in known if v is not None
        ]
        yield "metrics", ", ".join(numbers)


def _attempt_lines(record: RunRecord) -> Iterator[tuple[str, str]]:
    for attempt in record.attempts:
        steps = [str(s) for s in (attempt.first_step, attempt.last_step) if s is not None]
        # an attempt that died early has only a first step, or none
        span = {0: "", 1: "from step {}, ", 2: "steps {} to {}, "}[len(steps)].format(*steps)
        where = f"{attempt.num_ranks} rank{'s' * (attempt.num_ranks != 1)} on {attempt.nodes}"
        lasted = f" for {duration(attempt.end - attempt.start)}" if attempt.end else ""
        how = attempt.cause or attempt.outcome
        if attempt.lost_steps:
            how += f"; {attempt.lost_steps} steps were trained again"
        label = f"attempt {attempt.number}"
        yield label, f"{clock(attempt.start)}{lasted}, {where}: {span}{how}"


def _console() -> Console:
    width = None if sys.stdout.isatty() else _WIDE
    # a path may look like markup or emoji, and is shown verbatim
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def _parts(
    console: Console, runs: Records, packings: Packings, *, short: bool
) -> Iterator[RenderableType]:
    """Yield a block for a single run, else a table followed by the next actions."""
    errors = [*(run.slurm_error for run in runs), *(each.slurm_error for each in packings)]
    if any(errors):
        yield Text(max(errors), "yellow")  # the same for all jobs of a query
    if len(runs) == 1 and not short:
        yield from _block(run_lines(runs[0]), _style(runs[0]))
    elif runs:
        yield _table(runs, console)
    for record in runs if len(runs) > 1 and not short else ():
        job = f"job {record.job_id}, " if record.job_id else ""
        # the log of a healthy run is named only when that run is shown alone
        if record.log and record.needs_person:
            yield Text(f"{record.run}: {job}log {record.log}")
        if record.action:
            yield Text(f"{record.run}: next: {record.action}")
    for packing in packings:
        lines = list(packing_lines(packing))
        yield from _block(lines[: 1 if short else None], _style(packing))


def _block(lines: Iterable[tuple[str, str]], style: str) -> Iterator[Text]:
    title, *rest = lines
    yield Text.assemble(f"{title[0]}: ", (title[1], style))
    for label, text in rest:
        yield Text.assemble((f"  {label:<{_LABEL}} ", "dim"), text)


def _style(record: RunRecord | PackingRecord) -> str:
    """Return a state's colour: red needs a person, green is done, cyan is running, else yellow."""
    if record.needs_person:
        return "bold red"
    if record.state in ("finished", "packed"):
        return "green"
    return "cyan" if record.state.startswith(("training", "packing")) else "yellow"


def _table(records: Records, console: Console) -> Table:
    """Return a table with one row per run; long texts are cut on a terminal, but not in a log."""
    in_full = not console.is_terminal
    names = [
        name if in_full or len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
        for name in (record.run for record in records)
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("job", no_wrap=True)
    table.add_column("run", no_wrap=True, min_width=max(map(len, names)))
    table.add_column("state", overflow="fold" if in_full else "ellipsis", no_wrap=not in_full)
    for heading in ("step", "left", "saved", "try"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record, name in zip(records, names, strict=True):
        table.add_row(
            record.job_id or "-",
            name,
            Text(record.state, _style(record)),
            f"{record.step}/{record.num_steps}" if record.num_steps else "-",
            duration(record.time_left_s),
            duration(record.checkpoint_age_s),
            str(record.attempt or "-"),
        )
    return table
