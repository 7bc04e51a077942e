"""A task and a cluster come in; it is run here, watched on this machine, or submitted to Slurm."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import ClusterConfig, Executor
from jobs.done import Marking, is_done
from jobs.staging import SCRATCH
from jobs.submit import interpreter, scratch_lines, script, submit
from jobs.tasks.task import Task
from jobs.watch import watch
from simclr.config import require

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
