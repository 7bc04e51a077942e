"""Tasks and a cluster come in; a job of Slurm goes out, with the code that it will run."""

from __future__ import annotations

import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import slurm
from jobs.capacity import check_capacity, largest_array
from jobs.cluster import PLAIN_OPTIONS, ClusterConfig
from jobs.done import Marking
from jobs.runfolder import Submission, read_submission, write_submission
from jobs.snapshot import import_lines, take_snapshot
from jobs.staging import SCRATCH

_log = logging.getLogger("simclr")


def submit(tasks: Sequence[Marking], folder: Path, cluster: ClusterConfig) -> str:
    """Submit a job, or an array of one member a task, without waiting; return the job id.

    More members than Slurm takes in one array go into several; their ids are joined by colons, as
    dependencies of further jobs are written.

    Args:
        tasks: of one verb.
        folder: takes scripts, pickles and logs; the code lies beside it.
        cluster: what each member asks for.

    Raises:
        ValueError: the job cannot be, or one is at work there already; nothing was submitted.
        SlurmError: Slurm refused it.
    """
    untold = _check(tasks, cluster)
    code = take_snapshot(folder.parent / "code")
    arrays = _cut(tasks, largest_array())
    # as many at the same time as were asked for, in all arrays together
    abreast = replace(cluster, parallel_parts=max(1, cluster.parallel_parts // len(arrays)))
    jobs = [job for array in arrays for job in _sbatch(array, folder, abreast, code)]
    ids = list(dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs))
    for task, job in zip(tasks, jobs, strict=True):
        entry = Submission(job.job_id, task.verb, sys.argv, time.time(), str(job.paths.stderr))
        # members of a packing array share a folder; its record is that of the whole array
        shared = len(tasks) > 1 and all(other.folder == task.folder for other in tasks)
        write_submission(task.folder, entry if not shared else replace(entry, job_id=",".join(ids)))
        for folder_of_run in task.folders:
            write_submission(folder_of_run, entry)
    if untold:
        _log.warning("%s; the cluster's size was not checked", untold)
    job_id, log = ":".join(ids), jobs[0].paths.stderr
    _log.info("submitted job %s; simclr-status and squeue show how it fares, log %s", job_id, log)
    return job_id


def script(tasks: Sequence[Marking], folder: Path, cluster: ClusterConfig) -> str:
    """Return the script that ``submit`` would hand to sbatch; nothing is written."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _writable_in_script(folder.absolute())
    options = slurm_options(cluster, tasks[0].verb, folder.parent / "code" / "DIGEST")
    options |= {"map_count": len(tasks)} if len(tasks) > 1 else {}
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **options))


def slurm_options(cluster: ClusterConfig, verb: str, code: Path) -> dict[str, Any]:
    """Return what submitit's Slurm executor is asked for."""
    options: dict[str, Any] = {
        "job_name": f"simclr-{verb}",
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus_per_node,
        "mem": None if cluster.memory_gb is None else f"{round(cluster.memory_gb * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        # ours last: a module that sets PYTHONPATH must not come before the code of the job
        "setup": [*cluster.setup, *scratch_lines(cluster), *import_lines(code)],
        "array_parallelism": cluster.parallel_parts,
        "additional_parameters": _further(cluster),
        # A dead rank ends the others; srun of 22.05 to 23.02 does not take the cores from the job.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_task}"],
    }
    # None for wckey too: submitit's own default is refused where wckeys are checked
    return options | {name: getattr(cluster, name) for name in PLAIN_OPTIONS}


def scratch_lines(cluster: ClusterConfig) -> list[str]:
    """Return the shell line that hands on the name of the nodes' own disk, as it is given."""
    # each process fills them in: what the first node's shell makes of them need not suit the others
    return [f"export {SCRATCH}={shlex.quote(cluster.scratch)}"] if cluster.scratch else []


def python_command(cluster: ClusterConfig) -> str:
    """Return the command that runs Python on a node: wrapper, container, interpreter."""
    # The wrapper outside: what starts a container would die of a warning as well.
    parts = (cluster.wrapper, cluster.container, interpreter(cluster))
    return " ".join(part for part in parts if part)


def interpreter(cluster: ClusterConfig) -> str:
    """Return the Python that runs the work, quoted for a shell."""
    return shlex.quote(cluster.python or sys.executable)


def refuse_second(folder: Path, verb: str) -> None:
    """Refuse to submit for a folder in which a job of the verb is still at work, or waiting.

    Raises:
        ValueError: with the job and the cure.
    """
    job = live_job(folder, verb)
    if job:
        raise ValueError(
            f"job {job.job_id} ({verb}, {job.state}) is at work in {folder.parent}; wait for it, "
            f"or scancel {job.job_id} first"
        )


def live_job(folder: Path, verb: str) -> slurm.JobState | None:
    """Return the job that was submitted for a folder, if it has not ended."""
    earlier = read_submission(folder, verb)
    if earlier is None or not slurm.is_available():
        return None
    jobs = slurm.queue([earlier.job_id]).values()
    return next((job for job in jobs if not job.is_final), None)


def _check(tasks: Sequence[Marking], cluster: ClusterConfig) -> str:
    """Refuse what cannot be; return why the nodes could not be asked for, if so."""
    if not slurm.is_available():
        raise ValueError(
            "cluster.executor is slurm but this machine has no sbatch; go to a login node, or use "
            "cluster=laptop or cluster=here"
        )
    untold = check_capacity(cluster)
    for folder in {folder for task in tasks for folder in (task.folder, *task.folders)}:
        _writable_in_script(folder.absolute())
        refuse_second(folder, tasks[0].verb)
    return untold


def _writable_in_script(folder: Path) -> Path:
    """Refuse a folder whose name would end an ``#SBATCH`` line and begin a command."""
    if "\n" in str(folder) or "\r" in str(folder):
        raise ValueError(f"the folder {str(folder)!r} has a line break in it; Slurm takes none")
    return folder


def _cut(tasks: Sequence[Marking], limit: int | None) -> list[Sequence[Marking]]:
    """Cut tasks into arrays that Slurm takes."""
    size = limit or len(tasks)
    return [tasks[first : first + size] for first in range(0, len(tasks), size)]


def _sbatch(
    tasks: Sequence[Marking], folder: Path, cluster: ClusterConfig, code: Path
) -> list[Any]:
    import submitit
    from submitit.core.utils import FailedJobError

    with _outside_jobs():
        executor = submitit.SlurmExecutor(
            str(folder.absolute()), max_num_timeout=1000, python=python_command(cluster)
        )
        executor.update_parameters(**slurm_options(cluster, tasks[0].verb, code))
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints the error that it raises
                return list(executor.submit_array(tasks))
        except FailedJobError as error:
            said = slurm.in_a_line(str(error))
            away = ": fatal: " in str(error)
            raise slurm.SlurmError(
                f"Slurm cannot be reached from here ({said}); simclr-doctor looks for the cause"
                if away
                else f"sbatch refused the job: {said}"
            ) from error


def _further(cluster: ClusterConfig) -> dict[str, Any]:
    # submitit never writes requeue, and without it a preempted job is not started again
    options: dict[str, Any] = {"requeue": True} if cluster.requeue else {}
    if cluster.after:
        # A job whose forerunner has failed would wait for ever.
        options |= {"dependency": f"afterok:{cluster.after}", "kill-on-invalid-dep": "yes"}
    return options | cluster.extra


@contextmanager
def _outside_jobs() -> Iterator[None]:
    """Hide a surrounding job's variables: a job submitted from a job would inherit its size."""
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:  # no property of a job: it says where Slurm is
            os.environ["SLURM_CONF"] = configuration
        yield
