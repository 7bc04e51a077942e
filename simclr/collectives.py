"""The collectives of the suite, one name each, whatever torch calls them in its releases."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# all_gather_into_tensor became an alias of all_gather_single after torch 2.13.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# broadcast_buffers was renamed in torch 2.15.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def average_gradients(network: nn.Module) -> DistributedDataParallel:
    """Wrap a network so that backward leaves the mean gradient of all ranks on each of them.

    Running statistics are left to each rank: only rank 0's are saved, and they decide no weight.
    """
    buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(
        network, gradient_as_bucket_view=True, static_graph=True, **buffers
    )


def num_ranks() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate the rows of all ranks in rank order: (R, ...) to (W * R, ...).

    Every rank must bring the same shape. No gradient flows through this call.
    """
    if num_ranks() == 1:
        return rows
    gathered = rows.new_empty((num_ranks() * rows.shape[0], *rows.shape[1:]))
    _gather_single(gathered, rows.contiguous())
    return gathered


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add a tensor over all ranks in place and return it."""
    if num_ranks() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Take the elementwise maximum over all ranks in place and return it."""
    if num_ranks() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def from_main_rank(text: str) -> str:
    """Return rank 0's text on every rank."""
    if num_ranks() == 1:
        return text
    box = [text]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until every rank has come here."""
    max_over_ranks(torch.zeros(1, dtype=torch.int32))
