"""Rank, node and job of this process, from the variables of Slurm, submitit or torchrun.

``simclr`` knows no scheduler: it receives the ``Rendezvous`` created here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.slurm import client as slurm

if TYPE_CHECKING:
    from simclr.rendezvous import Rendezvous

# Below the ports that Linux assigns to outgoing connections (from 32768).
_FIRST_PORT, _NUM_PORTS = 15000, 16000
_ATTEMPTS_APART = 1009  # prime: neighbouring jobs, with many attempts each, do not collide
_PORTS_APART = 4  # simclr tries this many, as one may be in use
RANK_0_DONE = "SIMCLR_RANK_0_DONE"  # names the file that ends the batch script even if srun hangs
ORIGIN_NAME = "origin.json"  # beside the packages in a job's copy of the code

_log = logging.getLogger("simclr")


class Launcher(Enum):
    """Who started this process: a person or torchrun, submitit on this machine, or Slurm."""

    here = "here"
    local = "local"
    slurm = "slurm"


@dataclass(frozen=True, slots=True)
class RankEnvironment:
    """The place of this process among those started together."""

    launcher: Launcher = Launcher.here
    job_id: str = ""  # of Slurm (12 or 12_3) or submitit; empty for neither
    restarts: int = 0  # how often Slurm has requeued the job
    rank: int = 0  # of this process, from 0
    local_rank: int = 0  # on its node, from 0
    num_ranks: int = 1
    ranks_on_node: int = 1
    cores: int = 0  # allotted to this process, bound to them or not; 0 if unknown
    # as the scheduler names it; else the host name
    node: str = field(default_factory=socket.gethostname)
    node_list: str = ""  # in Slurm's abbreviation
    log: str = ""  # file of standard error, if known
    array_index: int = 0  # of this job in its array, from 0
    array_size: int = 1  # number of jobs in the array

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes everything that is written once."""
        return self.rank == 0

    @property
    def start(self) -> dict[str, object]:
        """The job, and the number of this start of it."""
        return {"job_id": self.job_id, "restarts": self.restarts}

    def describe(self) -> dict[str, object]:
        """Return what ``attempts.jsonl`` records about a start."""
        root = Path(__file__).parents[2]
        return {
            "launcher": self.launcher.value,
            **self.start,
            "num_ranks": self.num_ranks,
            "nodes": self.node_list or socket.gethostname(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "log": self.log,
            "code": root.name if (root / ORIGIN_NAME).exists() else "",  # digest of the snapshot
        }


def current_rank(environment: Mapping[str, str] = os.environ) -> RankEnvironment:
    """Return the rank, node and job of this process from its environment variables."""
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        job_id, rank = environment["SUBMITIT_LOCAL_JOB_ID"], environment["SUBMITIT_LOCAL_GLOBALID"]
        size, log = int(environment["SUBMITIT_LOCAL_NTASKS"]), _submitit_log(environment, job_id)
        return RankEnvironment(Launcher.local, job_id, 0, int(rank), int(rank), size, size, log=log)
    # A step, not just a job: a batch script or a shell of salloc is not a rank.
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        return _slurm_rank(environment)
    if "RANK" not in environment:
        return RankEnvironment()
    # set by torchrun; simclr reads the rest
    return RankEnvironment(
        rank=int(environment["RANK"]), num_ranks=int(environment.get("WORLD_SIZE", 1))
    )


def rendezvous_of(env: RankEnvironment, token: str) -> Rendezvous | None:
    """Return where the ranks of a job meet; None without Slurm or submitit, as with torchrun.

    The token is common to all processes that were started together, and to no others.
    SlurmError: Slurm does not return the address of the first node.
    """
    from simclr.rendezvous import Rendezvous

    if env.launcher is Launcher.here:
        return None
    if env.launcher is Launcher.local:
        # Not in the run folder: network file systems may lack the locks that this file needs.
        meeting = f"file://{Path(tempfile.gettempdir(), f'simclr-{token}')}"
    else:
        host = _address(slurm.host_names(env.node_list)[0]) if env.num_ranks > 1 else ""
        meeting = f"tcp://{host}:{port_of(env.job_id, env.restarts)}"
    return Rendezvous(
        rank=env.rank,
        local_rank=env.local_rank,
        world_size=env.num_ranks,
        local_world_size=env.ranks_on_node,
        init_method=meeting,
        cores=env.cores,
        token=f"{env.job_id}-{env.restarts}",
    )


def port_of(job_id: str, restarts: int) -> int:
    """Return the port where the ranks of one attempt meet; other attempts have other ports."""
    # a rank of an earlier attempt may still be alive, and must not join
    number = int(re.sub(r"\D", "", job_id) or 0)
    return _FIRST_PORT + (number * _ATTEMPTS_APART + restarts) * _PORTS_APART % _NUM_PORTS


def remove_stale_results(env: RankEnvironment) -> None:
    """Remove the result files that an earlier start of this job left for this rank."""
    # submitit would use an existing result as the new one, and cannot replace a partial one
    if env.log:
        for left in Path(env.log).parent.glob(f"{env.job_id}_{env.rank}_result.pkl*"):
            left.unlink()


def expand_counts(text: str) -> list[int]:
    """Expand Slurm's ``2(x3),1`` to ``[2, 2, 2, 1]``."""
    counts: list[int] = []
    for part in text.split(","):
        number, _, times = part.strip(")").partition("(x")
        counts += [int(number)] * int(times or 1)
    return counts


def _slurm_rank(environment: Mapping[str, str]) -> RankEnvironment:
    array, index = (environment.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    # The raw job id of an array's last task is that of the entire array.
    job_id = f"{array}_{index}" if array else environment["SLURM_JOB_ID"]
    counts = expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    node = int(environment.get("SLURM_NODEID", 0))
    return RankEnvironment(
        launcher=Launcher.slurm,
        job_id=job_id,
        restarts=int(environment.get("SLURM_RESTART_COUNT", 0)),
        rank=int(environment["SLURM_PROCID"]),
        local_rank=int(environment.get("SLURM_LOCALID", 0)),
        num_ranks=int(environment.get("SLURM_STEP_NUM_TASKS", sum(counts))),
        ranks_on_node=counts[node] if node < len(counts) else 1,
        cores=int(environment.get("SLURM_CPUS_PER_TASK", 0)),
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        node_list=environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")),
        log=_submitit_log(environment, job_id),
        array_index=int(index or 0),
        array_size=int(environment.get("SLURM_ARRAY_TASK_MAX", 0)) + 1,
    )


def _submitit_log(environment: Mapping[str, str], job_id: str) -> str:
    folder = environment.get("SUBMITIT_FOLDER")
    return str(Path(folder, f"{job_id}_0_log.err")) if folder else ""


def _address(host: str) -> str:
    """Return the name of a node if it can be resolved, else the address that Slurm uses."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        return slurm.node_address(host)  # cloud nodes often have no resolvable name
    return host


def mark_rank_0_done() -> None:
    """Signal the batch script of a Slurm job that rank 0 has done all its work; see ``submit``."""
    path, env = os.environ.get(RANK_0_DONE), current_rank()
    if path and env.launcher is Launcher.slurm and env.is_main:
        try:
            Path(path).touch()
        except OSError as error:  # except in rare cases, srun ends the script
            _log.warning("%s cannot be written: %s", path, error)


LOG_NAME = "logs/pretrain.log"  # of a run without a scheduler, which would keep one


def configure_logging(env: RankEnvironment, run_dir: Path | None = None) -> None:
    """Log to stderr: everything on the main rank, warnings on the others.

    Without a scheduler, which would keep the log, lines also go to a file in the run folder.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if run_dir and env.launcher is Launcher.here and env.is_main:
        (run_dir / LOG_NAME).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(run_dir / LOG_NAME))
    logging.basicConfig(
        level=logging.INFO if env.is_main else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    # submitit has its own handler, and its messages are not about the work
    logging.getLogger("submitit").propagate = False
