"""The collectives of the suite, one name each, whatever torch calls them in its releases."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

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
    """Wrap a network so that backward leaves the mean gradient of all ranks on each of them.

    Running statistics are left to each rank: only rank 0's are saved, and they decide no weight.

    Args:
        network: equal on every rank.
        half: let gradients travel as bfloat16, half the bytes and eight bits of each number.
    """
    buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    model = DistributedDataParallel(
        network, gradient_as_bucket_view=True, static_graph=True, **buffers
    )
    if half and num_ranks() > 1:
        model.register_comm_hook(None, bf16_compress_hook)
    return model


def num_ranks(group: Group = None) -> int:
    """Return the number of ranks in a group; of all without one; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def group_of_node(node: str) -> Group:
    """Return the group of the ranks that share a node; every rank must call it.

    Nodes are told apart by name, not by counting ranks: a scheduler may deal ranks to nodes in
    turn.
    """
    if num_ranks() == 1:
        return None
    nodes: list[str] = [""] * num_ranks()
    dist.all_gather_object(nodes, node)
    # A group is made by all ranks together, also by those that stay outside.
    groups: dict[str, Any] = {
        name: dist.new_group([rank for rank, other in enumerate(nodes) if other == name])
        for name in sorted(set(nodes))
    }
    mine: Group = groups[node]
    return mine


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


def sum_over_ranks(values: torch.Tensor, group: Group = None) -> torch.Tensor:
    """Add a tensor over the ranks of a group, of all without one, in place and return it."""
    if num_ranks(group) > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
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


def copy_from_main_rank(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite tensors on every other rank by rank 0's."""
    if num_ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def barrier() -> None:
    """Wait until every rank has come here."""
    max_over_ranks(torch.zeros(1, dtype=torch.int32))
