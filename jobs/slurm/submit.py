"""Submit commands to Slurm with a copy of their code; ``jobs.launch`` calls it."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from jobs.code_snapshot import import_lines, take_snapshot
from jobs.config import PLAIN_OPTIONS, ClusterConfig
from jobs.run_dir import Submission, read_submission, write_submission
from jobs.slurm import client as slurm
from jobs.slurm.environment import RANK_0_DONE
from jobs.staging import SCRATCH
from simclr.config import require

# partition (default marked by *), nodes, cores, MiB, generic resources, time limit
_FORMAT = "%P|%D|%c|%m|%G|%l"
# gpu:4, gpu:a100:4, gpu:a100:4(S:0-1), gpu:1g.5gb:7, gpu:tesla:2K does not occur for GPUs
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Equal nodes of a partition.

    Attributes:
        partition: its name.
        is_default: jobs that name no partition go there.
        nodes: how many there are.
        cores: of each node.
        memory_mib: of each node.
        gpus: of each node.
        limit_min: longest job, minutes; none for no limit.
    """

    partition: str
    is_default: bool
    nodes: int
    cores: int
    memory_mib: int
    gpus: int
    limit_min: int | None


def check_capacity(cluster: ClusterConfig) -> str:
    """Refuse what the nodes of the partition do not have; return why it could not be checked.

    Raises:
        ValueError: with the setting, its value, and what there is.
    """
    try:
        kinds = node_kinds()
    except slurm.SlurmError as error:
        return str(error)
    if kinds:
        _check_partition(cluster, kinds)
    return ""


def node_kinds() -> list[NodeKind]:
    """Ask Slurm for the nodes of all partitions.

    Raises:
        SlurmError: no answer.
    """
    return parse_nodes(slurm.call(["sinfo", "-h", "-o", _FORMAT]))


def largest_array() -> int | None:
    """Return how many members Slurm takes in one job array; None if it does not say."""
    try:
        settings = slurm.call(["scontrol", "show", "config"])
    except slurm.SlurmError:
        return None
    # The setting is one more than the highest index, and indices begin at 0.
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings, re.MULTILINE)
    return int(found[1]) if found else None


def parse_nodes(text: str) -> list[NodeKind]:
    """Parse lines of our own ``sinfo -o`` format; lines of another form are left out."""
    kinds = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        numbers = [re.match(r"\d+", part) for part in parts[1:4]]  # 16+: nodes that differ
        if len(parts) == 6 and all(numbers):
            nodes, cores, memory = (int(number[0]) for number in numbers if number)
            name, gpus = parts[0], sum(map(int, _GPUS.findall(parts[4])))
            kinds.append(
                NodeKind(
                    name.rstrip("*"),
                    name.endswith("*"),
                    nodes,
                    cores,
                    memory,
                    gpus,
                    None if (limit_s := slurm.seconds_of(parts[5])) is None else limit_s // 60,
                )
            )
    return kinds


def _check_partition(cluster: ClusterConfig, kinds: Sequence[NodeKind]) -> None:
    names = sorted({kind.partition for kind in kinds})
    # sbatch takes several partitions, and starts the job in the first that has room
    wanted = (cluster.partition or "").split(",") if cluster.partition else []
    unknown = [name for name in wanted if name not in names]
    require(
        not unknown,
        f"cluster.partition is {cluster.partition}, but there is no {', '.join(unknown)}; "
        f"choose one of {', '.join(names)}",
    )
    mine = [k for k in kinds if (k.partition in wanted if wanted else k.is_default)]
    if mine:
        _check_nodes(cluster, mine)


def _check_nodes(cluster: ClusterConfig, kinds: Sequence[NodeKind]) -> None:
    gib = max(k.memory_mib for k in kinds) / 1024
    where = f"partition {' or '.join(sorted({kind.partition for kind in kinds}))}"
    cores = cluster.tasks_per_node * cluster.cpus_per_task
    needs = (
        ("gpus_per_node", cluster.gpus_per_node or 0, max(k.gpus for k in kinds), "GPUs a node"),
        ("tasks_per_node x cpus_per_task", cores, max(k.cores for k in kinds), "cores a node"),
        ("memory_gb", cluster.memory_gb or 0, gib, "GiB a node"),
        ("nodes", cluster.nodes, sum(k.nodes for k in kinds), "nodes"),
    )
    problems = [
        f"cluster.{key} is {asked} but {where} has {there:g} {unit}; give at most {there:g}"
        for key, asked, there, unit in needs
        if asked > there
    ]
    limits = [kind.limit_min for kind in kinds]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and cluster.time_min > longest:
        problems.append(
            f"cluster.time_min is {cluster.time_min} but {where} ends jobs after {longest}; give "
            f"at most {longest}: the run is requeued at its limit and goes on"
        )
    require(not problems, "; ".join(problems))


# Ranks end within seconds of each other; the main one may still draw curves.
LAST_RANK_S = 300
# srun waits for ever for a task whose slurmstepd is lost. --wait does not help where that is the
# only one, so the batch script ends half a minute after rank 0 has done its work.
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
    """What each process of a job calls: a command, or its share of one."""

    @property
    def name(self) -> str:
        """The command's."""

    @property
    def job_dir(self) -> Path:
        """Where the submission is recorded."""

    def __call__(self) -> str:
        """Do the work."""


def submit(tasks: Sequence[Task], folder: Path, cluster: ClusterConfig) -> str:
    """Submit a job, or an array of one member a task, without waiting; return the job id.

    More members than Slurm takes in one array go into several; their ids are joined by colons, as
    dependencies of further jobs are written.

    Args:
        tasks: of one command.
        folder: takes scripts, pickles and logs; the code lies beside it.
        cluster: what each member asks for.

    Raises:
        SlurmError: Slurm refused it.
    """
    code = take_snapshot(folder.parent / "code")
    size = largest_array() or len(tasks)
    arrays = [tasks[first : first + size] for first in range(0, len(tasks), size)]
    # the limit holds for all arrays together
    limited = replace(cluster, parallel_parts=max(1, cluster.parallel_parts // len(arrays)))
    jobs = [job for array in arrays for job in _sbatch(array, folder, limited, code)]
    ids = list(dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs))
    for task, job in zip(tasks, jobs, strict=True):
        entry = Submission(job.job_id, task.name, sys.argv, time.time(), str(job.paths.stderr))
        # members of a packing array share a folder; its record is that of the whole array
        shared = len(tasks) > 1 and all(other.job_dir == task.job_dir for other in tasks)
        write_submission(
            task.job_dir, entry if not shared else replace(entry, job_id=",".join(ids))
        )
    job_id, log = ":".join(ids), jobs[0].paths.stderr
    _log.info("submitted job %s; simclr-status and squeue show its state, log %s", job_id, log)
    return job_id


def script(tasks: Sequence[Task], folder: Path, cluster: ClusterConfig) -> str:
    """Return the script that ``submit`` would hand to sbatch; nothing is written."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = _checked_folder(folder.absolute())
    options = slurm_options(cluster, tasks[0].name, folder, folder.parent / "code" / "DIGEST")
    options |= {"map_count": len(tasks)} if len(tasks) > 1 else {}
    command = f"{python_command(cluster)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **options))


def slurm_options(cluster: ClusterConfig, name: str, folder: Path, code: Path) -> dict[str, Any]:
    """Return what submitit's Slurm executor is asked for, with logs in a folder and its code."""
    mark = f"export {RANK_0_DONE}={shlex.quote(str(folder))}/$SLURM_JOB_ID.done"
    options: dict[str, Any] = {
        "job_name": f"simclr-{name}",
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "ntasks_per_node": cluster.tasks_per_node,
        "cpus_per_task": cluster.cpus_per_task,
        "gpus_per_node": cluster.gpus_per_node or None,  # 0 beside --gpus would contradict it
        "mem": None if cluster.memory_gb is None else f"{round(cluster.memory_gb * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        # ours last: a module that sets PYTHONPATH must not come before the code of the job
        "setup": [
            *cluster.setup,
            *scratch_lines(cluster),
            *import_lines(code),
            mark,
            SRUN_UNTIL_RANK_0_IS_DONE,
        ],
        "array_parallelism": cluster.parallel_parts,
        "additional_parameters": _additional_parameters(cluster),
        "srun_args": [
            "--kill-on-bad-exit=1",  # a dead rank ends the others
            f"--wait={LAST_RANK_S}",  # one that Slurm has lost would keep the nodes for ever
            "--export=ALL",  # sbatch --export=NONE would keep the setup from the ranks as well
            # srun of 22.05 to 23.02 does not take the cores from the job
            f"--cpus-per-task={cluster.cpus_per_task}",
        ],
    }
    # None for wckey too: submitit's own default is refused where wckeys are checked
    return options | {name: getattr(cluster, name) for name in PLAIN_OPTIONS}


def scratch_lines(cluster: ClusterConfig) -> list[str]:
    """Return the shell line that passes on the name of the nodes' own disk, unexpanded."""
    # each process expands it: the values of the first node need not be those of the others
    return [f"export {SCRATCH}={shlex.quote(cluster.scratch)}"] if cluster.scratch else []


def python_command(cluster: ClusterConfig) -> str:
    """Return the command that runs Python on a node: wrapper, container, interpreter."""
    # The wrapper comes first: a signal would kill what starts a container as well.
    parts = (cluster.wrapper, cluster.container, interpreter(cluster))
    return " ".join(part for part in parts if part)


def interpreter(cluster: ClusterConfig) -> str:
    """Return the Python that runs the work, quoted for a shell."""
    return shlex.quote(cluster.python or sys.executable)


def refuse_second(folder: Path, name: str) -> None:
    """Refuse a second job of a command in a folder while the first waits or runs.

    Raises:
        ValueError: with the job and the fix.
    """
    job = live_job(folder, name)
    if job:
        raise ValueError(
            f"job {job.job_id} ({name}, {job.state}) is at work in {folder.parent}; wait for it, "
            f"or scancel {job.job_id} first"
        )


def live_job(folder: Path, name: str) -> slurm.JobState | None:
    """Return the job that was submitted for a folder, if it has not ended."""
    earlier = read_submission(folder, name)
    if earlier is None or not slurm.is_available():
        return None
    jobs = slurm.queue([earlier.job_id]).values()
    return next((job for job in jobs if not job.is_final), None)


def check_submission(tasks: Sequence[Task], cluster: ClusterConfig) -> str:
    """Refuse a job that cannot run; return why its size could not be checked, or nothing.

    Raises:
        ValueError: it cannot run, or a job of the command is active in its folder.
    """
    if not slurm.is_available():
        raise ValueError(
            "cluster.executor is slurm but this machine has no sbatch; go to a login node, or use "
            "cluster=laptop or cluster=here"
        )
    capacity_error = check_capacity(cluster)
    for folder in {task.job_dir for task in tasks}:
        _checked_folder(folder.absolute())
        refuse_second(folder, tasks[0].name)
    return capacity_error


def _checked_folder(folder: Path) -> Path:
    """Refuse a folder whose name an ``#SBATCH`` line would change."""
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

    with _without_job_variables():
        executor = submitit.SlurmExecutor(
            str(folder.absolute()), max_num_timeout=1000, python=python_command(cluster)
        )
        executor.update_parameters(**slurm_options(cluster, tasks[0].name, folder.absolute(), code))
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints the error that it raises
                return list(executor.submit_array(tasks))
        except FailedJobError as error:
            said = slurm.one_line(str(error))
            away = ": fatal: " in str(error)
            raise slurm.SlurmError(
                f"Slurm cannot be reached from here ({said}); simclr-doctor looks for the cause"
                if away
                else f"sbatch refused the job: {said}"
            ) from error


def _additional_parameters(cluster: ClusterConfig) -> dict[str, Any]:
    # submitit writes neither, and the default is the site's (JobRequeue)
    options: dict[str, Any] = {"requeue" if cluster.requeue else "no-requeue": True}
    if cluster.after:
        # Else it would wait for ever when the job before it has failed.
        options |= {"dependency": f"afterok:{cluster.after}", "kill-on-invalid-dep": "yes"}
    return options | cluster.flags


@contextmanager
def _without_job_variables() -> Iterator[None]:
    """Hide the variables of a surrounding job, whose size a job submitted from it would inherit."""
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:  # no property of a job: it says where Slurm is
            os.environ["SLURM_CONF"] = configuration
        yield
