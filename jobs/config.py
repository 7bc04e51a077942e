"""Settings of the cluster and of the commands of jobs/, checked before anything starts."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from enum import Enum

from simclr.config import AugmentConfig, parse_choices, require

# Options that sbatch accepts under the same name.
PLAIN_OPTIONS = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "wckey")
# Further ones that a job always has, and their settings; sbatch would take either of two.
_TWICE = {
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "requeue": "requeue",
    "no-requeue": "requeue",
}


class Executor(Enum):
    """``here``: in this process; ``local``: processes of this machine; ``slurm``: a batch job."""

    here = "here"
    local = "local"
    slurm = "slurm"


@dataclass(kw_only=True, slots=True)
class CpuConfig:
    """What commands that use no GPU request: pack, verify, export, inspect, reports of studies.

    Attributes:
        partition: option of sbatch; null takes the general one.
        cpus_per_task: CPU cores of each process; null takes the general number.
        memory_gb: memory of a job; null leaves it to the partition.
        time_min: time limit in minutes; null takes the general one.
    """

    partition: str | None = None
    cpus_per_task: int | None = None
    memory_gb: float | None = None
    time_min: int | None = None


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where a command runs, and the resources it requests.

    Attributes:
        executor: here, local or slurm.
        nodes: machines of one job.
        tasks_per_node: processes on each node: in training one rank for each GPU; in packing on
            this machine, parts that run side by side.
        gpus_per_node: GPUs of each node; null requests none from Slurm, and takes all there are
            on this machine.
        cpus_per_task: CPU cores of each process.
        memory_gb: memory of a node; null leaves it to the partition.
        time_min: time limit in minutes; Slurm only.
        signal_delay_s: how long before the time limit the job is warned.
        partition: option of sbatch; null leaves it out, as with the next six.
        account: option of sbatch.
        qos: option of sbatch.
        constraint: option of sbatch.
        nodelist: option of sbatch.
        exclude: option of sbatch.
        wckey: option of sbatch.
        parts: number of array tasks used by simclr-pack.
        parallel_parts: array tasks that may run at the same time.
        requeue: let Slurm restart the job after preemption or the loss of a node.
        wrapper: command that starts each process; it must run its arguments.
        container: command that runs Python in a container, between wrapper and Python:
            ``apptainer exec --nv image.sif``; empty for none.
        python: interpreter on the nodes, or in the container; null takes this one.
        setup: shell lines before the processes start: modules, environment.
        scratch: folder on the disk of each node, which may hold variables of the job and of the
            node (``/tmp/$SLURM_JOB_ID``); shards are copied there.
        after: job, or jobs ``12:13``, that must have succeeded before this one starts.
        dry_run: print what would be submitted, and write nothing; also ``--dry-run``.
        extra: further sbatch options by name, without dashes; true is a flag: exclusive: true.
        cpu: what commands that use no GPU request instead.
    """

    executor: Executor = Executor.here
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int = 1
    memory_gb: float | None = None
    time_min: int = 1440
    signal_delay_s: int = 120
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    wckey: str | None = None
    parts: int = 1
    parallel_parts: int = 64
    requeue: bool = True
    # Signals may arrive before Python handles them. Unblocked, they would kill a rank that is still
    # importing, and a job whose rank has died is not requeued.
    wrapper: str = "env --block-signal=USR2,TERM"
    container: str = ""
    python: str | None = None
    setup: list[str] = field(default_factory=list)
    scratch: str | None = None
    after: str | None = None
    dry_run: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    cpu: CpuConfig = field(default_factory=CpuConfig)

    def __post_init__(self) -> None:
        parse_choices(self, "cluster")
        for name in ("nodes", "tasks_per_node", "cpus_per_task", "parts", "parallel_parts"):
            value = getattr(self, name)
            require(value >= 1, f"cluster.{name} is {value}; give 1 or more")
        for name in ("gpus_per_node", "memory_gb", "signal_delay_s"):
            least = getattr(self, name) or 0
            require(least >= 0, f"cluster.{name} is {least}; give 0 or more")
        _check_shell(self)
        if self.executor is Executor.slurm:
            _check_slurm(self)
        require(
            self.nodes == 1 or self.executor is Executor.slurm,
            f"cluster.nodes is {self.nodes} but cluster.executor is {self.executor.value}; "
            "only slurm reaches other machines",
        )
        require(
            self.executor is not Executor.here or self.tasks_per_node == 1,
            f"cluster.tasks_per_node is {self.tasks_per_node} but this process is one; "
            "use cluster=laptop for several processes on this machine",
        )

    @property
    def num_ranks(self) -> int:
        """Number of processes in a job."""
        return self.nodes * self.tasks_per_node

    @property
    def flags(self) -> dict[str, str | bool]:
        """Further sbatch options; flags without a value are True; false omits one."""
        wanted = {name: value for name, value in self.extra.items() if value.lower() != "false"}
        return {name: value.lower() == "true" or value for name, value in wanted.items()}

    def for_cpu(self) -> ClusterConfig:
        """Return the cluster for a command that uses no GPU: on Slurm, with what ``cpu`` sets."""
        if self.executor is not Executor.slurm:
            return self
        given = {name: value for name, value in asdict(self.cpu).items() if value is not None}
        return replace(self, **{"gpus_per_node": None, "memory_gb": None, **given})


def _check_shell(cluster: ClusterConfig) -> None:
    """Refuse values that would be executed in a batch script."""
    scratch = cluster.scratch or ""
    require(
        # plain characters, variables as $NAME or ${NAME}; nothing that a shell would execute
        re.fullmatch(r"([^$`\"\\\n]|\$\w+|\$\{\w+\})*", scratch) is not None,
        f"cluster.scratch is {scratch!r}; give a path, in which only $NAME and ${{NAME}} stand "
        "for something else",
    )
    for key, values in (("setup", cluster.setup), ("extra", cluster.extra.values())):
        for value in values:
            require(isinstance(value, str), f"cluster.{key} holds {value!r}; give text in quotes")
    options = {name: getattr(cluster, name) or "" for name in PLAIN_OPTIONS} | cluster.extra
    for name, value in options.items():
        # A second line would be outside the #SBATCH comment, and be executed.
        require(
            bool(re.fullmatch(r"[\w-]+", name)) and str(value).isprintable(),
            f"cluster option {name!r} is {str(value)!r}; give one line of plain characters",
        )


def _check_slurm(cluster: ClusterConfig) -> None:
    after = cluster.after or ""
    require(
        re.fullmatch(r"(\w+(:\w+)*)?", after) is not None,
        f"cluster.after is {after!r}; give job numbers: cluster.after=12, or 12:13",
    )
    delay, limit = cluster.signal_delay_s, cluster.time_min * 60
    # Slurm checks time limits every 30 s and may warn up to 60 s early: too near the limit, a
    # job would be warned as soon as it starts, and be requeued forever.
    require(
        delay + 60 < limit,
        f"cluster.signal_delay_s is {delay} and the time limit {limit} s; give a limit more than "
        f"60 s above the delay: cluster.time_min={delay // 60 + 3}",
    )
    gpus = cluster.gpus_per_node
    for name in cluster.extra:
        key = _TWICE.get(name.replace("_", "-"), "")
        require(
            not key or (key == "gpus_per_node" and not gpus),
            f"cluster.extra has {name}, which would be given twice; set cluster.{key} instead",
        )
    require(
        not gpus or cluster.tasks_per_node <= gpus,
        f"cluster.tasks_per_node is {cluster.tasks_per_node} but a node has {gpus} GPUs; "
        f"one process per GPU: cluster.tasks_per_node={gpus}",
    )


class InspectionKind(Enum):
    """``shards``: what was packed; ``augment``: what training makes of it."""

    shards = "shards"
    augment = "augment"


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    """Settings of ``simclr-inspect``.

    Attributes:
        what: ``shards`` draws what was packed, ``augment`` the views that training makes of it.
        shards: packed folder.
        output: folder for pictures and page; empty takes ``SHARDS/inspection``.
        patches: number of patches, evenly spread over the shards.
        seed: seed of the augmentations, for ``what=augment``.
        augment: as in simclr-pretrain; its preset is shown beside each single operation.
    """

    what: InspectionKind = InspectionKind.shards
    shards: str = ""
    output: str = ""
    patches: int = 24
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        parse_choices(self)
        require(1 <= self.patches <= 400, f"patches is {self.patches}; give 1 to 400")
