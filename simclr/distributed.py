"""The ranks of a run: process group, device, collectives, and classification of their errors.

The trainer and the evaluation run inside ``distributed_context``; without a process group, every
collective here acts as on a single rank.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils import deterministic

from simclr.config import Device, WorldConfig, require
from simclr.preemption import DeviceFaultError, LostPeerError, Preempted
from simclr.rendezvous import (
    Rendezvous,
    join_process_group,
    leave_process_group,
    rendezvous_from_environment,
)

Group = dist.ProcessGroup | None

# all_gather_into_tensor became an alias of all_gather_single after torch 2.13.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# broadcast_buffers was renamed in torch 2.15.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def average_gradients(network: nn.Module, *, half: bool = False) -> DistributedDataParallel:
    """Wrap a network so that backward averages the gradients over all ranks.

    Running statistics are not synchronised: only rank 0's are saved, and they affect no weights.
    With ``half``, gradients are reduced in bfloat16: half the bytes, 8 significant bits.
    """
    options: dict[str, Any] = {_SYNC_BUFFERS: False, "static_graph": True}
    model = DistributedDataParallel(network, gradient_as_bucket_view=True, **options)
    if half and num_ranks() > 1:
        model.register_comm_hook(None, bf16_compress_hook)
    return model


def num_ranks(group: Group = None) -> int:
    """Return the number of ranks in a group (None: in all); 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def group_of_node(node: str, timeout: timedelta | None = None) -> Group:
    """Return the group of the ranks on a node; every rank must call it.

    Ranks are grouped by node name, not by number: a scheduler may distribute them round-robin.
    """
    if num_ranks() == 1:
        return None
    nodes: list[str] = [""] * num_ranks()
    dist.all_gather_object(nodes, node)
    # new_group must be called by all ranks, including those outside the group.
    groups: dict[str, Any] = {}
    for name in sorted(set(nodes)):
        ranks = [number for number, other in enumerate(nodes) if other == name]
        groups[name] = dist.new_group(ranks, timeout=timeout)
    mine: Group = groups[node]
    return mine


def rank() -> int:
    """Return the number of this rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(rows: torch.Tensor, group: Group = None) -> torch.Tensor:
    """Concatenate the rows of the ranks of a group (None: of all): (R, ...) to (W * R, ...).

    Every rank must pass the same shape. No gradient flows through this call.
    """
    if num_ranks(group) == 1:
        return rows
    gathered = rows.new_empty((num_ranks(group) * rows.shape[0], *rows.shape[1:]))
    _gather_single(gathered, rows.contiguous(), group=group)
    return gathered


def sum_over_ranks(values: torch.Tensor, group: Group = None) -> torch.Tensor:
    """Sum a tensor over the ranks of a group (None: over all), in place, and return it."""
    if num_ranks(group) > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
    return values


def from_main_rank(text: str) -> str:
    """Return rank 0's text on every rank."""
    if num_ranks() == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def copy_from_main_rank(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite tensors on all other ranks with rank 0's."""
    if num_ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


class StopAgreement:
    """The largest stop reason of all ranks, piggybacked on a gather that each step needs anyway.

    A separate collective would cost a round trip per step. On a GPU, the result of a step is read
    ``delay`` steps later, by default one, when it has long arrived: the host never waits for the
    device, and all ranks read the same result after the same step. ``reason`` is called once per
    step.
    """

    def __init__(
        self, device: torch.device, reason: Callable[[], int], delay: int | None = None
    ) -> None:
        self._reason = reason
        self._delay = int(device.type == "cuda") if delay is None else delay
        self._answers = deque[tuple[torch.Tensor, torch.cuda.Event | None]](maxlen=self._delay + 1)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Concatenate all ranks' rows, (R,) to (W * R,), and send this rank's reason along."""
        if num_ranks() == 1:
            return rows
        brought = torch.cat([rows, rows.new_full((1,), self._reason())])
        gathered = gather_rows(brought).view(num_ranks(), -1)
        answer = gathered[:, -1].max()
        arrived: torch.cuda.Event | None = None
        if answer.is_cuda:
            largest, answer = answer, torch.empty_like(answer, device="cpu", pin_memory=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            answer.copy_(largest, non_blocking=True)
            arrived.record()
        self._answers.append((answer, arrived))
        return gathered[:, :-1].flatten()

    def largest(self) -> int:
        """Return the result that is due, the same on every rank; call it once per step."""
        if num_ranks() == 1:
            return self._reason()
        if len(self._answers) <= self._delay:
            return 0
        answer, arrived = self._answers.popleft()
        if arrived is not None:
            arrived.synchronize()
        return int(answer)


# Messages of gloo and its sockets when a peer has died or does not answer.
_PEER = re.compile(r"gloo|by peer|Broken pipe|[Tt]imed out|[Tt]imeout")
# Misuse of NCCL: every attempt would fail in the same way.
_MISUSE = re.compile(r"Duplicate GPU|invalid usage|ncclInvalid(?:Usage|Argument)", re.IGNORECASE)
# Messages of CUDA about hardware: the cause is the driver or the card, not the program.
_DEVICE = re.compile(
    r"ECC error|launch timed out|GPU is lost|fallen off the bus|hardware (?:stack )?error|"
    r"device is not ready|unspecified launch failure|Xid",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among the ranks of a run."""

    rank: int
    local_rank: int  # rank within its node
    size: int  # number of ranks
    device: torch.device  # device of its tensors
    node: str  # host name
    timeout: timedelta = timedelta(minutes=10)  # of every collective in every group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes all files."""
        return self.rank == 0

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value of all ranks; every rank must call it at the same step."""
        box = torch.tensor([value])  # uses the CPU group, so that it never waits for a GPU
        if self.size > 1:
            dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box)


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device is fast in bfloat16: GPUs from Ampere on, CPUs by their flags."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return bool(re.search(r"\b(amx_bf16|avx512_bf16)\b", flags))


@contextmanager
def distributed_context(
    config: WorldConfig, rendezvous: Rendezvous | None = None
) -> Iterator[DistributedContext]:
    """Join the process group for the duration of the block; GPU faults raise DeviceFaultError.

    Raises:
        LostPeerError: another rank did not join, or was lost in the block.
    """
    rendezvous = rendezvous or rendezvous_from_environment()
    device = _device(config.device, rendezvous)
    _share_cores(config.threads_per_rank, rendezvous)
    try:
        timeout = timedelta(seconds=config.timeout_s)
        join_process_group(rendezvous, device, timeout)
        try:
            own, size = (rendezvous.rank, rendezvous.local_rank), rendezvous.world_size
            context = DistributedContext(*own, size, device, socket.gethostname(), timeout)
            _refuse_shared_gpus(context)
            with _deterministic_kernels(config.deterministic):
                yield context
        except Preempted:
            leave_process_group(rendezvous)  # all ranks have stopped at the same step
            raise
        except BaseException:
            _abort()
            raise
        leave_process_group(rendezvous)
    except RuntimeError as error:
        # not our own errors, whose text may contain paths and the words of a file system
        foreign = type(error).__module__.partition(".")[0] in ("builtins", "torch")
        if foreign and (known := _classified(error, rendezvous.world_size)):
            raise known from error
        raise


@contextmanager
def _deterministic_kernels(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        # cuBLAS reads it on start.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Filling new memory costs time, and nothing here reads memory before writing it.
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _refuse_shared_gpus(context: DistributedContext) -> None:
    if context.device.type == "cuda" and context.size > 1:
        uuid = str(torch.cuda.get_device_properties(context.device).uuid)
        # Some virtual GPUs have an all-zero identity; fall back to their device numbers.
        gpu = uuid if uuid.strip("0-") else str(context.device)
        gpus: list[str] = [""] * context.size
        dist.all_gather_object(gpus, f"{gpu} on {context.node}")
        refuse_shared_gpus(gpus)


def refuse_shared_gpus(gpus: Sequence[str]) -> None:
    """Raise ValueError if two ranks share a GPU, for which NCCL has only an obscure error.

    ``gpus`` holds the identity of each rank's GPU, in rank order.
    """
    for gpu in gpus:
        ranks = [str(rank) for rank, other in enumerate(gpus) if other == gpu]
        require(
            len(ranks) == 1,
            f"ranks {', '.join(ranks)} share one GPU ({gpu}); start one rank for each GPU: "
            "lower cluster.tasks_per_node, or ask for more with cluster.gpus_per_node",
        )


def _abort() -> None:
    # Immediately: an orderly shutdown of NCCL waits for lost peers. The public function aborts no
    # group; if the private one is removed, use its successor. gloo has nothing to abort.
    if "nccl" in str(dist.get_backend_config()):
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()


def _plain(error: RuntimeError) -> str:
    # without gloo's source file at the start and its advice at the end
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0]


def _classified(error: RuntimeError, world_size: int) -> Exception | None:
    # Classify an error of CUDA or a collective; gloo's can only be recognised by message. Misuse
    # first: NCCL reports it with the class of lost peers, and a requeue would not help.
    text = str(error)
    if "Duplicate GPU" in text:
        return ValueError(
            "two ranks of a node use the same GPU; start one process per GPU: "
            "cluster.tasks_per_node is at most cluster.gpus_per_node"
        )
    if _MISUSE.search(text):
        return None
    if _DEVICE.search(text):
        return DeviceFaultError(_plain(error))
    if world_size > 1 and (isinstance(error, dist.DistError) or _PEER.search(text)):
        return LostPeerError(f"another rank is gone, or too late: {_plain(error)}")
    return None


def _device(wanted: Device, rendezvous: Rendezvous) -> torch.device:
    if wanted is Device.cpu or (wanted is Device.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    has_gpu, num = torch.cuda.is_available(), torch.cuda.device_count()
    require(has_gpu, "world.device is cuda but torch sees no GPU; use world.device=cpu")
    # A scheduler may expose all GPUs of the node to each task, or only its own.
    index = rendezvous.local_rank if num > 1 else 0
    require(
        index < num,
        f"local rank {rendezvous.local_rank} has no GPU of its own: torch sees {num}; start one "
        "process per GPU",
    )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _share_cores(threads: int, rendezvous: Rendezvous) -> None:
    # Ranks of a node that each use all cores slow each other down. The limits are the job's cores,
    # which a scheduler that does not bind processes only reports, and OMP_NUM_THREADS.
    usable, own = len(os.sched_getaffinity(0)), rendezvous.cores
    limits = [usable if own else usable // rendezvous.local_world_size, own]
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limits.append(int(wanted) if wanted.isdecimal() else 0)
    torch.set_num_threads(threads or min((limit for limit in limits if limit > 0), default=1))


# Ranks wait for the slowest of many classifiers, not for a step: a day.
TIMEOUT_S = 24 * 3600

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_over_ranks(
    items: Sequence[_Item], work: Callable[[_Item], _Result], context: DistributedContext
) -> list[_Result]:
    """Return ``work(item)`` for all items, on all ranks; each rank does every ``size``-th."""
    own = [work(item) for item in items[context.rank :: context.size]]
    if context.size == 1:
        return own
    parts: list[Any] = [None] * context.size
    dist.all_gather_object(parts, own)
    return [parts[number % context.size][number // context.size] for number in range(len(items))]


def barrier(context: DistributedContext) -> None:
    """Wait until all ranks have called this."""
    context.all_reduce_max(0)
