"""What a partition's nodes have: Slurm's word comes in, requests that no node can fill are refused.

Without this a job waits for ever with the reason BadConstraints, or sbatch refuses it in words
that do not name the setting. Slurm that gives no answer refuses nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jobs import slurm
from jobs.cluster import ClusterConfig
from simclr.config import require

# partition (default marked by *), nodes, cores, MiB, generic resources, time limit
_FORMAT = "%P|%D|%c|%m|%G|%l"
# gpu:4, gpu:a100:4, gpu:a100:4(S:0-1), gpu:1g.5gb:7, gpu:tesla:2K does not occur for GPUs
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_log = logging.getLogger("simclr")


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
    """Refuse what the nodes of the partition do not have; return why if Slurm did not tell.

    Raises:
        ValueError: with the setting, its value, and what there is.
    """
    try:
        kinds = parse_nodes(slurm.call(["sinfo", "-h", "-o", _FORMAT]))
    except slurm.SlurmError as error:
        return str(error)
    if kinds:
        _check_partition(cluster, kinds)
    return ""


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
                    _minutes(slurm.seconds_of(parts[5])),
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
        (
            "memory_gb",
            cluster.memory_gb or 0,
            gib,
            "GiB a node",
        ),
        ("nodes", cluster.nodes, sum(k.nodes for k in kinds), "nodes"),
    )
    for key, asked, there, unit in needs:
        require(
            asked <= there,
            f"cluster.{key} is {asked} but {where} has {there:g} {unit}; give at most {there:g}",
        )
    limits = [kind.limit_min for kind in kinds]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    require(
        longest is None or cluster.time_min <= longest,
        f"cluster.time_min is {cluster.time_min} but {where} ends jobs after {longest}; give at "
        f"most {longest}: the run is requeued at its limit and goes on",
    )


def _minutes(seconds: int | None) -> int | None:
    return None if seconds is None else seconds // 60
