"""A job on this machine comes in; its progress is shown, its result or reason goes out."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from jobs.tasks.task import StoppedError, Task
from simclr.metrics import METRICS_NAME, ProgressBar, read_metrics

POLL_S = 0.2
PEERS_S = 20.0  # how long the other ranks may take to notice that one has failed
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")
_EXCEPTION = re.compile(r"^(?P<name>[A-Za-z_][\w.]*): (?P<text>.*)", re.MULTILINE | re.DOTALL)


class JobError(RuntimeError):
    """A process of a job failed or vanished; the message is its own, with its log."""


def watch(job: Any, task: Task) -> str:
    """Show a local job's progress until it ends, and return its result.

    Ctrl-C lets the ranks save and stop; a second one ends them at once.

    Raises:
        ValueError: a process refused its settings.
        StoppedError: it was stopped and has saved.
        JobError: a process failed.
    """
    screen = _Screen(job, task)
    try:
        _until_done(job, screen)
    except KeyboardInterrupt:
        print("\nsaving; Ctrl-C again leaves at once", file=sys.stderr)  # noqa: T201
        _tell(job, signal.SIGTERM)
        try:
            _until_done(job, screen)
        except KeyboardInterrupt:
            _kill_ranks(job)
            raise
    finally:
        screen.close()
    return _result(job)


class _Screen:
    """A bar of a run's metrics on a terminal; elsewhere the main rank's log lines."""

    def __init__(self, job: Any, task: Task) -> None:
        self._log: Path = job.task(0).paths.stderr
        self._offset = self._log.stat().st_size if self._log.exists() else 0
        self._metrics = task.folder.parent / METRICS_NAME
        self._bar = ProgressBar() if sys.stderr.isatty() and task.verb == "pretrain" else None
        self._seen = time.time()

    def refresh(self) -> None:
        """Show what is new."""
        if self._bar:
            self._move_bar(self._bar)
        else:
            self._copy_log()

    def close(self) -> None:
        """Show the last of it."""
        self.refresh()

    def _move_bar(self, bar: ProgressBar) -> None:
        records = read_metrics(self._metrics) if self._metrics.exists() else []
        for record in records[-1:]:
            if record["time"] > self._seen:
                self._seen = record["time"]
                bar.write(record)

    def _copy_log(self) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]  # the rest of a line comes next time
        self._offset += len(text)
        sys.stderr.write(log_lines(text.decode(errors="replace")))
        sys.stderr.flush()


def _until_done(job: Any, screen: _Screen) -> None:
    complete, failed_at = False, None
    while not job.done():
        screen.refresh()
        complete = complete or len(_processes(job)) == job.num_tasks
        if failed_at is None and complete and _has_lost_a_rank(job):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > PEERS_S:
            _kill_ranks(job)
        time.sleep(POLL_S)


def _has_lost_a_rank(job: Any) -> bool:
    """Say whether a rank has failed, or has ended without leaving a result."""
    alive = len(_processes(job))  # first, as a rank leaves its result before it ends
    unfinished = sum(not rank.paths.result_pickle.exists() for rank in _ranks(job))
    return alive < unfinished or bool(_failures(job))


def _result(job: Any) -> str:
    failures = _failures(job)
    if failures:
        _raise_as_told(failures[0], _ranks(job)[0].paths.stderr)
    silent = [rank for rank in _ranks(job) if not rank.paths.result_pickle.exists()]
    if silent:
        log = silent[0].paths.stderr
        raise JobError(
            f"rank {silent[0].task_id} ended without a word: killed, or out of memory; log {log}"
        )
    return next((text for text in (rank.result() for rank in _ranks(job)) if text), "")


def _ranks(job: Any) -> list[Any]:
    return [job.task(k) for k in range(job.num_tasks)]


def _failures(job: Any) -> list[str]:
    """Return the traceback of each rank that failed, the first to fail first."""
    written = [rank for rank in _ranks(job) if rank.paths.result_pickle.exists()]
    written.sort(key=lambda rank: rank.paths.result_pickle.stat().st_mtime_ns)
    return [str(error) for error in (_exception(rank) for rank in written) if error]


def _exception(rank: Any) -> object:
    # submitit's own waits for the whole job; a rank that has written its result is at its end
    from submitit.core.utils import pickle_load

    outcome, result = pickle_load(rank.paths.result_pickle)
    return result if outcome == "error" else None


def _raise_as_told(trace: str, log: Path) -> None:
    """Raise what a rank raised, from the last lines of its traceback."""
    name, text = last_exception(trace)
    if name == "ValueError":
        raise ValueError(text)
    if name == StoppedError.__name__:
        raise StoppedError(text)
    raise JobError(f"{name}: {text} (log {log})")


def last_exception(trace: str) -> tuple[str, str]:
    """Return class name and message of the exception that a traceback ends with."""
    final = trace.rstrip().rpartition("\n  ")[2].partition("\n")[2] or trace.rstrip()
    found = _EXCEPTION.search(final)
    if not found:
        return "error", trace.strip().splitlines()[-1] if trace.strip() else "no traceback"
    return found["name"].rpartition(".")[2], found["text"].strip()


def log_lines(text: str) -> str:
    """Keep our log lines; tracebacks stay in the file, their last line is the reason given."""
    return "".join(line for line in text.splitlines(keepends=True) if _LOG_LINE.match(line))


def _tell(job: Any, number: int) -> None:
    """Send a signal to the controller, which hands SIGTERM down to the ranks."""
    if not job.done():
        os.kill(int(job.job_id), number)


def _kill_ranks(job: Any) -> None:
    for process in _processes(job):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(process, signal.SIGKILL)


def _processes(job: Any) -> list[int]:
    """Return the ids of the live ranks: the children of submitit's controller."""
    children = Path(f"/proc/{job.job_id}/task/{job.job_id}/children")
    try:
        return [int(child) for child in children.read_text(encoding="ascii").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # the controller has ended
