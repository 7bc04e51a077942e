"""A task and a cluster come in; it is run here, watched on this machine, or submitted to Slurm."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import slurm
from jobs.cluster import ClusterConfig, Executor
from jobs.place import Kind, current_place
from jobs.runfolder import Submission, read_submission, write_submission
from jobs.tasks.task import Task
from jobs.watch import watch

# submitit ends local jobs after this; a training has its own end.
_LOCAL_LIMIT_MIN = 60 * 24 * 365
_PLAIN_OPTIONS = "partition account qos constraint nodelist exclude wckey".split()  # noqa: SIM905
_log = logging.getLogger("simclr")


def dispatch(task: Task, cluster: ClusterConfig, *, in_sweep: bool = False) -> str:
    """Run a task where the cluster says, and return what stdout shall say.

    Args:
        task: the work.
        cluster: where, and with what.
        in_sweep: a member of a sweep is already where it belongs when Slurm runs it.

    Raises:
        ValueError: the task cannot be done there; nothing has been started.
        RuntimeError: it was started and failed.
    """
    task.prepare(cluster)
    inside = in_sweep and current_place().kind is Kind.slurm
    if cluster.executor is Executor.here or inside:
        return task()
    members, needs = task.members(cluster)
    if cluster.executor is Executor.local:
        return _run_local(members[0], needs)
    return _submit(task, members, needs)


def slurm_options(cluster: ClusterConfig, name: str) -> dict[str, Any]:
    """Return what submitit's Slurm executor is asked for."""
    options: dict[str, Any] = {
        "job_name": name,
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": None if cluster.memory_gb is None else f"{round(cluster.memory_gb * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        "setup": cluster.setup or None,
        "array_parallelism": cluster.parallel_parts,
        # submitit never writes it, and without it a preempted job is not started again
        "additional_parameters": {
            **({"requeue": True} if cluster.requeue else {}),
            **cluster.extra,
        },
        # A dead rank ends the others; srun of 22.05 to 23.02 does not take the cores from the job.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_task}"],
    }
    # None for wckey too: submitit's own default is refused where wckeys are checked
    return options | {name: getattr(cluster, name) for name in _PLAIN_OPTIONS}


def _submit(task: Task, members: list[Any], cluster: ClusterConfig) -> str:
    """Submit without waiting; return the job id."""
    import submitit
    from submitit.core.utils import FailedJobError

    if not slurm.is_available():
        raise ValueError(
            "cluster.executor is slurm but this machine has no sbatch; go to a login node, or use "
            "cluster=laptop or cluster=here"
        )
    _refuse_second(task.folder)
    with _outside_jobs():
        executor = submitit.SlurmExecutor(
            str(task.folder.absolute()), max_num_timeout=1000, python=_python(cluster)
        )
        executor.update_parameters(**slurm_options(cluster, f"simclr-{task.verb}"))
        try:
            with executor.batch():
                jobs = [executor.submit(member) for member in members]
        except FailedJobError as error:
            raise slurm.SlurmError(f"sbatch refused the job: {error}") from error
    job_id = jobs[0].job_id.partition("_")[0]
    log = str(jobs[0].paths.stderr)
    write_submission(task.folder, Submission(job_id, task.verb, sys.argv, time.time(), log))
    _log.info("submitted job %s; simclr-status and squeue show how it fares, log %s", job_id, log)
    return job_id


def _refuse_second(folder: Path) -> None:
    """Refuse to submit for a folder in which a job is still at work, or waiting."""
    earlier = read_submission(folder)
    if earlier is None:
        return
    alive = [job for job in slurm.queue([earlier.job_id]).values() if not job.is_final]
    if alive:
        raise ValueError(
            f"job {earlier.job_id} ({earlier.verb}, {alive[0].state}) is at work in "
            f"{folder.parent}; wait for it, or scancel {earlier.job_id} first"
        )


def _run_local(task: Task, cluster: ClusterConfig) -> str:
    import submitit

    executor = submitit.LocalExecutor(
        str(task.folder.absolute()), python=f"{_devices(cluster)} {_interpreter(cluster)}"
    )
    executor.update_parameters(
        tasks_per_node=cluster.tasks_per_node, timeout_min=_LOCAL_LIMIT_MIN, setup=cluster.setup
    )
    with _uninterrupted():
        job = executor.submit(task)
    return watch(job, task)


def _python(cluster: ClusterConfig) -> str:
    return f"{cluster.wrapper} {_interpreter(cluster)}".strip()


def _interpreter(cluster: ClusterConfig) -> str:
    return shlex.quote(cluster.python or sys.executable)


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
def _outside_jobs() -> Iterator[None]:
    """Hide a surrounding job's variables: a job submitted from a job would inherit its size."""
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:  # no property of a job: it says where Slurm is
            os.environ["SLURM_CONF"] = configuration
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: it is the watcher who tells them to save and stop."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
