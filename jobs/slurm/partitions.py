"""Query Slurm's partitions: refuse a job that is too large, write a cluster file.

Called by ``submit`` before each submission, and by ``simclr-doctor`` to write a first cluster file
for one partition, if possible one with GPUs; values that Slurm does not know stay null.
"""

from __future__ import annotations

import getpass
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.config import ClusterConfig
from jobs.slurm import client as slurm
from preprocess.shards.atomic_io import write_text
from simclr.config import require

_DAY_MIN = 1440
_CPU_JOB_MIN = 240
_CPU_JOB_GB = 16
_MEMORY_SHARE = 0.9  # of a node; the rest is for the system
# partition (default marked by *), nodes, cores, MiB, generic resources, time limit
_FORMAT = "%P|%D|%c|%m|%G|%l"
# gpu:4, gpu:a100:4, gpu:a100:4(S:0-1), gpu:1g.5gb:7, gpu:tesla:2K does not occur for GPUs
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Identical nodes of a partition."""

    partition: str
    is_default: bool  # jobs that name no partition go there
    nodes: int  # number of nodes
    cores: int  # per node, as the next two
    memory_mib: int
    gpus: int
    limit_min: int | None  # time limit of jobs in minutes; None for no limit


def check_capacity(cluster: ClusterConfig) -> str:
    """Refuse more than the partition's nodes have; return why it could not be checked, if so."""
    try:
        kinds = node_kinds()
    except slurm.SlurmError as error:
        return str(error)
    if kinds:
        check_partition(cluster, kinds)
    return ""


def node_kinds() -> list[NodeKind]:
    """Ask Slurm for the nodes of all partitions; SlurmError: no answer."""
    return parse_nodes(slurm.call(["sinfo", "-h", "-o", _FORMAT]))


def largest_array() -> int | None:
    """Return the maximum number of tasks in a job array; None if unknown."""
    try:
        # one more than the highest index, and indices begin at 0
        size = slurm.parse_settings(slurm.call(["scontrol", "show", "config"])).get("MaxArraySize")
    except slurm.SlurmError:
        return None
    return int(size) if size and size.isdigit() else None


def parse_nodes(text: str) -> list[NodeKind]:
    """Parse lines of our own ``sinfo -o`` format; skip other lines."""
    kinds = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        numbers = [re.match(r"\d+", part) for part in parts[1:4]]  # 16+: nodes that differ
        if len(parts) == 6 and all(numbers):
            nodes, cores, memory = (int(number[0]) for number in numbers if number)
            name, gpus = parts[0], sum(map(int, _GPUS.findall(parts[4])))
            limit_s = slurm.seconds_of(parts[5])
            limit = None if limit_s is None else limit_s // 60
            described = (name.rstrip("*"), name.endswith("*"), nodes, cores, memory, gpus, limit)
            kinds.append(NodeKind(*described))
    return kinds


def check_partition(cluster: ClusterConfig, kinds: Sequence[NodeKind]) -> None:
    """Refuse more than any node of the partition has; ValueError: lists all that is too large."""
    names = sorted({kind.partition for kind in kinds})
    # sbatch accepts several partitions, and starts the job in the first one with room
    wanted = (cluster.partition or "").split(",") if cluster.partition else []
    unknown = [name for name in wanted if name not in names]
    require(
        not unknown,
        f"cluster.partition is {cluster.partition}, but there is no {', '.join(unknown)}; "
        f"choose one of {', '.join(names)}",
    )
    mine = [k for k in kinds if (k.partition in wanted if wanted else k.is_default)]
    if not mine:
        return
    gib = max(k.memory_mib for k in mine) / 1024
    where = f"partition {' or '.join(sorted({kind.partition for kind in mine}))}"
    cores = cluster.tasks_per_node * cluster.cpus_per_task
    needs = (
        ("gpus_per_node", cluster.gpus_per_node or 0, max(k.gpus for k in mine), "GPUs per node"),
        ("tasks_per_node x cpus_per_task", cores, max(k.cores for k in mine), "cores a node"),
        ("memory_gb", cluster.memory_gb or 0, gib, "GiB a node"),
        ("nodes", cluster.nodes, sum(k.nodes for k in mine), "nodes"),
    )
    problems = [
        f"cluster.{key} is {asked} but {where} has {there:g} {unit}; give at most {there:g}"
        for key, asked, there, unit in needs
        if asked > there
    ]
    longest = max(math.inf if kind.limit_min is None else kind.limit_min for kind in mine)
    if cluster.time_min > longest:
        problems.append(
            f"cluster.time_min is {cluster.time_min} but {where} ends jobs after {longest}; give "
            f"at most {longest}: the run is requeued at its limit and resumes"
        )
    require(not problems, "; ".join(problems))


@dataclass(frozen=True, slots=True)
class Site:
    """What Slurm reports for a cluster file."""

    kinds: Sequence[NodeKind]
    # fields of ``scontrol show partition``, by partition
    limits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    accounts: Sequence[str] = ()  # that this user may charge


def ask_site() -> Site:
    """Ask Slurm for partitions and accounts; SlurmError: not installed, or no answer."""
    limits = slurm.partitions()
    try:
        command = ["sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}"]
        accounts = set(slurm.call([*command, "format=account"]).split())
    except slurm.SlurmError:
        accounts = set()  # sites without accounting have none
    return Site(node_kinds(), limits, sorted(accounts))


def write_cluster_file(target: Path, site: Site, partition: str = "") -> Path:
    """Write a cluster file, in a folder ``cluster`` as ``--config-dir`` expects; return its path.

    The target is FOLDER/NAME.yaml or FOLDER/cluster/NAME.yaml; the default partition has the
    most GPUs. ValueError: the file already exists, or there is no such partition.
    """
    require(target.suffix == ".yaml", f"--write-cluster is {target}; give NAME.yaml")
    folder = target.parent if target.parent.name == "cluster" else target.parent / "cluster"
    path = folder / target.name
    require(not path.exists(), f"{path} already exists; remove it, or give another name")
    write_text(path, cluster_yaml(site, partition))
    return path


def cluster_yaml(site: Site, partition: str = "") -> str:
    """Return the text of a cluster file; ValueError: no such partition, or none that is up."""
    largest: dict[str, NodeKind] = {}
    for kind in site.kinds:
        most = largest.setdefault(kind.partition, kind)
        if (kind.gpus > 0, kind.nodes) > (most.gpus > 0, most.nodes):
            largest[kind.partition] = kind
    usable = [name for name in largest if site.limits.get(name, {}).get("State", "UP") == "UP"]
    require(bool(usable), "sinfo shows no partition that is up; ask the site which one to use")
    require(
        not partition or partition in largest,
        f"partition is {partition!r}; choose one of {', '.join(largest)}",
    )
    trained_on = partition or max(
        usable,
        key=lambda name: (largest[name].gpus * largest[name].nodes, largest[name].is_default),
    )
    without_gpus = [name for name in usable if not largest[name].gpus] or [trained_on]
    for_cpu = max(without_gpus, key=lambda name: (largest[name].is_default, largest[name].cores))
    return _text(site, largest, trained_on, for_cpu)


def _text(site: Site, largest: Mapping[str, NodeKind], trained_on: str, for_cpu: str) -> str:
    node, small = largest[trained_on], largest[for_cpu]
    tasks = max(1, node.gpus)
    others = "; ".join(_described(kind) for name, kind in largest.items() if name != trained_on)
    account = json.dumps(site.accounts[0]) if len(site.accounts) == 1 else "null"
    known = ", ".join(site.accounts) or "none known; sacctmgr show assoc user=$USER"
    time_min = min(node.limit_min or _DAY_MIN, _DAY_MIN)
    # how the partition preempts jobs, and their grace time
    limits = site.limits.get(trained_on, {})
    mode, grace = limits.get("PreemptMode", "OFF"), limits.get("GraceTime", "0")
    lines = [
        "# @package _global_",
        "# Written by simclr-doctor from what Slurm says; check it against the guide of your site.",
        "cluster:",
        "  executor: slurm",
        f"  partition: {json.dumps(trained_on)} # {_described(node)}",
        *([f"  # others: {others}"] if others else []),
        f"  account: {account} # {known}",
        "  qos: null",
        "  constraint: null",
        f"  nodes: 1 # of {node.nodes}",
        f"  tasks_per_node: {tasks} # one rank for each GPU",
        f"  gpus_per_node: {node.gpus or 'null'}",
        f"  cpus_per_task: {max(1, node.cores // tasks) if node.gpus else min(2, node.cores)}",
        f"  memory_gb: {_memory(node)} # of each node",
        f"  time_min: {time_min} # the job is requeued at the limit and continues",
        f"  signal_delay_s: {120 if time_min > 3 else 30} # warning before the limit: one save",
        *([] if mode in ("OFF", "N/A") else [f"  # PreemptMode={mode}, GraceTime={grace} s"]),
        "  requeue: true",
        "  parts: 16 # array tasks used by simclr-pack",
        "  parallel_parts: 8 # as many as the file system can serve",
        "  setup: # shell lines on each node, before Python: module load ..., source ...",
        "    - export OMP_NUM_THREADS=1",
        "  scratch: null # the nodes' own disk, /tmp/$SLURM_JOB_ID for example",
        "  cpu: # pack, verify, export and inspect",
        f"    partition: {json.dumps(for_cpu)} # {_described(small)}",
        f"    cpus_per_task: {min(2, small.cores)}",
        f"    memory_gb: {min(_CPU_JOB_GB, _memory(small))}",
        f"    time_min: {min(small.limit_min or _CPU_JOB_MIN, _CPU_JOB_MIN)}",
    ]
    return "\n".join(lines) + "\n"


def _memory(node: NodeKind) -> int:
    return max(1, int(node.memory_mib / 1024 * _MEMORY_SHARE))


def _described(node: NodeKind) -> str:
    gpus = f", {node.gpus} GPUs" if node.gpus else ""
    return (
        f"{node.partition}: {node.nodes} nodes of {node.cores} cores, "
        f"{node.memory_mib / 1024:.0f} GiB{gpus}"
    )
