"""What ranks do in tests; importable, so that new processes find it."""

from __future__ import annotations

from typing import Any

import torch
from ranks import in_world
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr.config import LossConfig, LossName
from simclr.loss import contrastive_loss
from simclr.model.batchnorm import use_world_statistics
from simclr.world import Launch, World


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small network without batch statistics, equal on every rank."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)


def joined_views(pairs: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Inputs of a global batch: (2, pairs, 12), views of a pair close to each other."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, pairs, 12, generator=generator, dtype=dtype)
    return base + 0.3 * torch.randn(2, pairs, 12, generator=generator, dtype=dtype)


def loss_and_gradient(
    launch: Launch, pairs: int, loss: str, temperature: float
) -> tuple[float, list[torch.Tensor]]:
    """Return the mean loss over ranks and the parameter gradients after DDP."""
    config = LossConfig(name=LossName(loss), temperature=temperature)
    return in_world(_loss_and_gradient, launch, pairs, config)


def _loss_and_gradient(
    world: World, pairs: int, config: LossConfig
) -> tuple[float, list[torch.Tensor]]:
    model = DistributedDataParallel(network())
    views = joined_views(pairs)
    share = pairs // world.size
    mine = views[:, world.rank * share : (world.rank + 1) * share].flatten(0, 1)
    # A non-contiguous output: some gathers have returned wrong gradients for those.
    loss = contrastive_loss(model(mine).T.contiguous().T, config)
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    gradients = [parameter.grad for parameter in model.parameters()]
    return float(total) / world.size, [g for g in gradients if g is not None]


def world_batchnorm(launch: Launch, values: torch.Tensor) -> dict[str, Any]:
    """Forward and backward of a BatchNorm over all ranks' shares of ``values``."""
    return in_world(_world_batchnorm, launch, values)


def _world_batchnorm(world: World, values: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = use_world_statistics(nn.Sequential(nn.BatchNorm2d(values.shape[1])))
    share = values.chunk(world.size)[world.rank].clone().requires_grad_()
    output = layer(share)
    (output**3).mean().backward()
    return {
        "output": output.detach(),
        "input_gradient": share.grad,
        "running_var": layer[0].running_var,
        "running_mean": layer[0].running_mean,
    }
