"""Submit commands to Slurm with a copy of their code; ``jobs.launch`` calls it.

A job may wait for days and be requeued many times. It imports from its copy, so that editing the
checkout, or switching the branch, changes neither queued nor requeued jobs.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from jobs.config import PLAIN_OPTIONS, ClusterConfig
from jobs.run_dir import Submission, changes, code_version, read_submission, write_submission
from jobs.slurm import client as slurm
from jobs.slurm.environment import ORIGIN_NAME, RANK_0_DONE
from jobs.slurm.partitions import check_capacity, largest_array
from jobs.staging import SCRATCH
from preprocess.shards.atomic_io import publish, temporary_path, write_json, write_text

PACKAGES = ("jobs", "simclr", "preprocess")
CHANGES_NAME = "changes.diff"
_ROOT = Path(__file__).parents[2]  # that contains the packages
_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache"}
# Ranks end within seconds of each other; the main one may still draw curves.
LAST_RANK_S = 300
# srun waits forever for a task whose slurmstepd is lost. --wait does not help if it is the only
# task, so the batch script ends half a minute after rank 0 has done its work.
SRUN_UNTIL_RANK_0_IS_DONE = f"""\
srun() {{
    rm -f "${RANK_0_DONE}"
    command srun "$@" & local step=$! code=0
    (until [ -e "${RANK_0_DONE}" ]; do sleep 5; done; sleep 30) &> /dev/null & local watch=$!
    wait -n $step $watch || code=$?
    # the second only where srun has not ended by itself
    kill $watch 2> /dev/null || kill -KILL $step 2> /dev/null || true
    rm -f "${RANK_0_DONE}"
    return $code
}}"""
_log = logging.getLogger("simclr")


class Task(Protocol):
    """What each process of a job calls: a command, or a part of one."""

    name: ClassVar[str]  # of the command

    @property
    def settings(self) -> str:
        """The settings of the command, which are recorded."""

    @property
    def job_dir(self) -> Path:
        """Where the submission is recorded."""

    def __call__(self) -> str:
        """Do the work."""


def take_snapshot(folder: Path) -> Path:
    """Copy the packages to ``folder/<digest>`` and return that path.

    Identical code is stored once; each version has its own folder, so that earlier jobs find the
    code they were submitted with. The commit, and the diff against it, are stored in the copy.
    """
    files = {
        str(path.relative_to(_ROOT)): path.read_bytes()
        for package in PACKAGES
        for path in sorted((_ROOT / package).rglob("*"))
        if path.is_file() and not _LEFT_OUT & set(path.parts)
    }
    total = hashlib.sha256()
    for name, content in files.items():
        # Lengths separate the end of one file from the start of the next.
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    target = folder.absolute() / total.hexdigest()[:16]
    if target.exists():
        return target
    partial = temporary_path(target)
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted submission
    for name, content in files.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(content)
    write_json(partial / ORIGIN_NAME, {"folder": str(_ROOT), **code_version(_ROOT)})
    write_text(partial / CHANGES_NAME, changes(_ROOT))
    try:
        publish(partial, target)
    except OSError:
        # Another submission published the same code first; a folder is not replaced.
        shutil.rmtree(partial)
        if not target.exists():
            raise
    return target


def import_lines(code: Path) -> list[str]:
    """Return shell lines that make Python import the packages only from a snapshot."""
    return [
        # If it was empty, no trailing colon may remain: it would name the current folder.
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # ``python -m`` searches the current folder first, which may be the checkout itself.
        "export PYTHONSAFEPATH=1",
    ]


def submit(tasks: Sequence[Task], folder: Path, cluster: ClusterConfig) -> str:
    """Submit a job, or an array with one member per task, without waiting; return the job id.

    All tasks are of one command; ``folder`` receives scripts, pickles and logs, and the code goes
    beside it. More tasks than Slurm allows in an array are split into several, whose ids are
    joined by colons, as in dependencies of later jobs. SlurmError: Slurm refused the job.
    """
    code = take_snapshot(folder.parent / "code")
    size = largest_array() or len(tasks)
    arrays = [tasks[first : first + size] for first in range(0, len(tasks), size)]
    # the limit applies to all arrays together
    limited = replace(cluster, parallel_parts=max(1, cluster.parallel_parts // len(arrays)))
    # members of a packing array share a folder, whose record is that of the entire array
    shared = len(tasks) > 1 and len({task.job_dir for task in tasks}) == 1
    jobs: list[Any] = []
    ids: list[str] = []
    for array in arrays:  # recorded at once: Slurm may refuse the next one
        members = _sbatch(array, folder, limited, code)
        jobs += members
        ids.append(str(members[0].job_id).partition("_")[0])
        for task, job in zip(array[: 1 if shared else None], members, strict=not shared):
            number, log = ",".join(ids) if shared else job.job_id, str(job.paths.stderr)
            entry = Submission(number, task.name, sys.argv, time.time(), log, task.settings)
            write_submission(task.job_dir, entry)
    job_id, log = ":".join(ids), jobs[0].paths.stderr
    _log.info("submitted job %s; simclr-status and squeue show its state, log %s", job_id, log)
    return job_id


def script(tasks: Sequence[Task], folder: Path, cluster: ClusterConfig) -> str:
    """Return the script that ``submit`` would pass to sbatch; write nothing."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _checked_folder(folder.absolute())
    options = slurm_options(cluster, tasks[0].name, folder, folder.parent / "code" / "DIGEST")
    options |= {"map_count": len(tasks)} if len(tasks) > 1 else {}
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **options))


def slurm_options(cluster: ClusterConfig, name: str, folder: Path, code: Path) -> dict[str, Any]:
    """Return the options for submitit's Slurm executor, given the folders of logs and code."""
    mark = f"export {RANK_0_DONE}={shlex.quote(str(folder))}/$SLURM_JOB_ID.done"
    ours = [*scratch_lines(cluster), *import_lines(code), mark, SRUN_UNTIL_RANK_0_IS_DONE]
    options: dict[str, Any] = {
        "job_name": f"simclr-{name}",
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus_per_node or None,  # 0 would contradict a --gpus beside it
        "mem": None if cluster.memory_gb is None else f"{round(cluster.memory_gb * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        # ours last: a module that sets PYTHONPATH must not precede the job's code
        "setup": [*cluster.setup, *ours],
        "array_parallelism": cluster.parallel_parts,
        "additional_parameters": _additional_parameters(cluster),
        "srun_args": [
            "--kill-on-bad-exit=1",  # a dead rank ends the others
            f"--wait={LAST_RANK_S}",  # one that Slurm has lost would keep the nodes forever
            "--export=ALL",  # sbatch --export=NONE would also hide the setup from the ranks
            # srun of 22.05 to 23.02 does not inherit the cores from the job
            f"--cpus-per-task={cluster.cpus_per_task}",
        ],
    }
    # wckey too, even if None: sites that check wckeys refuse submitit's own default
    return options | {name: getattr(cluster, name) for name in PLAIN_OPTIONS}


def scratch_lines(cluster: ClusterConfig) -> list[str]:
    """Return the shell line that passes on the path of the nodes' local disk, unexpanded."""
    # each process expands it: values may differ between nodes
    return [f"export {SCRATCH}={shlex.quote(cluster.scratch)}"] if cluster.scratch else []


def python_command(cluster: ClusterConfig) -> str:
    """Return the command that runs Python on a node: wrapper, container, interpreter."""
    # The wrapper comes first: a signal would also kill the container's launcher.
    return " ".join(filter(None, (cluster.wrapper, cluster.container, interpreter(cluster))))


def interpreter(cluster: ClusterConfig) -> str:
    """Return the Python interpreter for the work, quoted for a shell."""
    return shlex.quote(cluster.python or sys.executable)


def live_job(folder: Path, name: str) -> slurm.JobState | None:
    """Return the job that was submitted for a folder by a command, if it has not ended."""
    earlier = read_submission(folder, name)
    if earlier is None or not slurm.is_available():
        return None
    jobs = slurm.queue([earlier.job_id]).values()
    # one that waits in vain is about to be cancelled
    in_vain = "DependencyNeverSatisfied"
    return next((job for job in jobs if not job.is_final and job.reason != in_vain), None)


def check_submission(tasks: Sequence[Task], cluster: ClusterConfig) -> str:
    """Refuse a job that cannot run, or whose folder has an active job of the same command.

    Returns why its size could not be checked, or an empty string.
    """
    if not slurm.is_available():
        raise ValueError(
            "cluster.executor is slurm but this machine has no sbatch; go to a login node, or use "
            "cluster=laptop or cluster=here"
        )
    capacity_error, name = check_capacity(cluster), tasks[0].name
    for folder in {task.job_dir for task in tasks}:
        _checked_folder(folder.absolute())
        if job := live_job(folder, name):
            raise ValueError(
                f"job {job.job_id} ({name}, {job.state}) is at work in {folder.parent}; wait for "
                f"it, or scancel {job.job_id} first"
            )
    return capacity_error


def _checked_folder(folder: Path) -> Path:
    """Refuse a folder name that an ``#SBATCH`` line would alter."""
    if "\n" in str(folder) or "\r" in str(folder):
        raise ValueError(f"the folder {str(folder)!r} has a line break in it; Slurm takes none")
    if "%" in str(folder):
        raise ValueError(
            f"the folder {str(folder)!r} has a % in its name, which Slurm would replace by a job "
            "number or the like; rename it"
        )
    return folder


def _sbatch(tasks: Sequence[Task], folder: Path, cluster: ClusterConfig, code: Path) -> list[Any]:
    import submitit
    from submitit.core.utils import FailedJobError
    from submitit.helpers import clean_env

    # not a property of a job: it locates Slurm's configuration
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if os.environ.get(name)}
    folder = folder.absolute()
    with clean_env():  # a job submitted from another one would inherit its size
        os.environ.update(kept)
        executor = submitit.SlurmExecutor(
            str(folder), max_num_timeout=1000, python=python_command(cluster)
        )
        executor.update_parameters(**slurm_options(cluster, tasks[0].name, folder, code))
        try:
            with redirect_stderr(io.StringIO()):  # submitit also prints the error that it raises
                return list(executor.submit_array(tasks))
        except FailedJobError as error:
            said = slurm.one_line(str(error))
            away = f"Slurm cannot be reached from here ({said}); simclr-doctor looks for the cause"
            refused = f"sbatch refused the job: {said}"
            raise slurm.SlurmError(away if ": fatal: " in str(error) else refused) from error


def _additional_parameters(cluster: ClusterConfig) -> dict[str, Any]:
    # submitit writes neither, and the default depends on the site (JobRequeue)
    options = {"requeue" if cluster.requeue else "no-requeue": True, **cluster.flags}
    named = str(options.get("dependency", ""))
    if cluster.after and not named.endswith(f":{cluster.after}"):  # else it says how to wait
        options["dependency"] = ",".join(filter(None, (f"afterok:{cluster.after}", named)))
        # otherwise it would wait forever after the previous job has failed
        options.setdefault("kill-on-invalid-dep", "yes")
    return options
