"""A task and a cluster come in; it is run here, watched on this machine, or submitted to Slurm."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.command import StoppedError, Task
from jobs.config import ClusterConfig, Executor
from jobs.run_dir import JOB_FOLDER, Marking, is_done
from jobs.slurm.submit import interpreter, scratch_lines, script, submit
from jobs.staging import SCRATCH
from simclr.config import require
from simclr.monitoring.metrics import METRICS_NAME, ProgressBar, read_metrics

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


# submitit ends local jobs after this; a training has its own end.
_LOCAL_LIMIT_MIN = 60 * 24 * 365
_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class Request:
    """A job that a sweep collects instead of submitting it.

    Attributes:
        task: its work.
        needs: what it asks for.
    """

    task: Task
    needs: ClusterConfig


_collected: ContextVar[list[Request]] = ContextVar("collected")


def dispatch(task: Task, cluster: ClusterConfig, *, in_sweep: bool = False) -> str:
    """Run a task where the cluster says, and return what stdout shall say.

    Args:
        task: the work.
        cluster: where, and with what.
        in_sweep: leave out what has been done, as a sweep is started again after a failure; and
            let ``collecting`` have what goes to Slurm.

    Raises:
        ValueError: the task cannot be done there; nothing has been started.
        RuntimeError: it was started and failed.
    """
    # All that can be refused is refused before the first file is written.
    _check_interpreter(cluster)
    task.prepare(cluster)
    if in_sweep and is_done(task):
        return f"{task.folder.parent}: done before, with the same settings"
    if cluster.executor is Executor.here:
        return _run_here(task, cluster)
    members, needs = task.members(cluster)
    if cluster.executor is Executor.local:
        return _run_local(members[0], needs)
    if in_sweep:
        _collected.get().extend(Request(member, needs) for member in members)
        return ""
    return submit_all(members, task.folder, needs)


def _check_interpreter(cluster: ClusterConfig) -> None:
    """Refuse a Python that is not there; of other machines and of images nothing is known here."""
    if cluster.executor is Executor.local and cluster.python and not cluster.container:
        require(
            shutil.which(cluster.python) is not None,
            f"cluster.python is {cluster.python}, which is no program of this machine; leave it "
            "out to take this interpreter",
        )


def submit_all(members: list[Task], folder: Path, needs: ClusterConfig) -> str:
    """Submit a job or an array, or only show what would be submitted; return id or script.

    Raises:
        ValueError: it cannot be; nothing was submitted.
        SlurmError: Slurm refused it.
    """
    marked = [Marking(member) for member in members]
    if needs.dry_run:
        return script(marked, folder, needs)
    return submit(marked, folder, needs)


@contextmanager
def collecting() -> Iterator[list[Request]]:
    """Yield the list to which ``dispatch`` adds the members of a sweep for Slurm in the block."""
    requests: list[Request] = []
    token = _collected.set(requests)
    try:
        yield requests
    finally:
        _collected.reset(token)


def _run_here(task: Task, cluster: ClusterConfig) -> str:
    if cluster.dry_run:
        return f"{task.verb} would run in this process"
    if cluster.scratch:
        os.environ[SCRATCH] = cluster.scratch
    return Marking(task)()


def _run_local(task: Task, cluster: ClusterConfig) -> str:
    import submitit

    command = " ".join(filter(None, (_devices(cluster), cluster.container, interpreter(cluster))))
    if cluster.dry_run:
        return f"{task.verb} would run as {cluster.tasks_per_node} processes of: {command}"
    executor = submitit.LocalExecutor(str(task.folder.absolute()), python=command)
    executor.update_parameters(
        tasks_per_node=cluster.tasks_per_node,
        timeout_min=_LOCAL_LIMIT_MIN,
        setup=[*cluster.setup, *scratch_lines(cluster)],
    )
    with _uninterrupted():
        job = executor.submit(Marking(task))
    return watch(job, task)


def _devices(cluster: ClusterConfig) -> str:
    """Return the command that shows the ranks their GPUs; submitit alone would hide them all."""
    wanted, there = cluster.gpus_per_node, num_gpus()
    if wanted is None and 0 < there < cluster.tasks_per_node:
        _log.warning(
            "%d GPU for %d ranks: they run on the CPU; cluster.tasks_per_node=%d uses it",
            there,
            cluster.tasks_per_node,
            there,
        )
        wanted = 0
    if wanted == 0:
        return "env CUDA_VISIBLE_DEVICES="
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "env -u CUDA_VISIBLE_DEVICES" if chosen is None else f"env CUDA_VISIBLE_DEVICES={chosen}"


def num_gpus() -> int:
    """Count the NVIDIA GPUs that this process may use, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip()])
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: it is the watcher who tells them to save and stop."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def submit_members(requests: Sequence[Request]) -> list[str]:
    """Submit members as one array for each kind of need; return the job ids, or the scripts.

    Scripts and logs of all members lie beside the members' own folders.
    """
    folders = [str(request.task.folder.parent.parent.absolute()) for request in requests]
    folder = Path(os.path.commonpath(folders)) if folders else Path()
    # a sweep over nodes or partitions asks for different things, an array for the same
    groups = itertools.groupby(requests, lambda request: request.needs)
    return [
        submit_all([request.task for request in group], folder / JOB_FOLDER, needs)
        for needs, group in groups
    ]
