"""What ranks do in tests; importable, so that new processes find it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import CPU, in_world
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr.augment.parameters import ViewParameters
from simclr.config import (
    BatchNormGroup,
    CheckpointConfig,
    DataConfig,
    EncoderName,
    HeadName,
    LossConfig,
    LossName,
    ModelConfig,
    TrainConfig,
)
from simclr.distributed import Launch, World, average_gradients, group_of_node
from simclr.loss import contrastive_loss
from simclr.model.batchnorm import join_statistics
from simclr.model.simclr import SimCLR
from simclr.optim import build_optimizer
from simclr.preemption import Preempted
from simclr.step import train_step
from simclr.train import train
from simclr.trainer import Run


def agreed_value(launch: Launch) -> int:
    """Rank r brings r; every rank gets the largest."""
    return in_world(lambda world: world.agree(world.rank), launch)


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
    return float(total) / world.size, [gradient.clone() for gradient in _gradients(model)]


def world_batchnorm(launch: Launch, values: torch.Tensor) -> dict[str, Any]:
    """Forward and backward of a BatchNorm over all ranks' shares of ``values``."""
    return in_world(_world_batchnorm, launch, values)


def _world_batchnorm(world: World, values: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = join_statistics(nn.Sequential(nn.BatchNorm2d(values.shape[1])))
    share = values.chunk(world.size)[world.rank].clone().requires_grad_()
    output = layer(share)
    (output**3).mean().backward()
    return {
        "output": output.detach(),
        "input_gradient": share.grad,
        "running_var": layer[0].running_var,
        "running_mean": layer[0].running_mean,
    }


def node_batchnorm(launch: Launch, values: torch.Tensor) -> torch.Tensor:
    """Return the output of a BatchNorm over pairs of ranks for this rank's share of ``values``."""
    return in_world(_node_batchnorm, launch, values)


def _node_batchnorm(world: World, values: torch.Tensor) -> torch.Tensor:
    # Ranks dealt to two nodes in turn, as some schedulers do it.
    group = group_of_node(f"node-{world.rank % 2}")
    layer = join_statistics(nn.Sequential(nn.BatchNorm2d(values.shape[1])), group)
    return layer(values.chunk(world.size)[world.rank]).detach().clone()


def averaged_gradient(launch: Launch, half: bool) -> torch.Tensor:
    """Return the gradient of a layer's weight after averaging, rank r bringing input r + 1/3."""
    return in_world(_averaged_gradient, launch, half)


def _averaged_gradient(world: World, half: bool) -> torch.Tensor:
    model = average_gradients(nn.Linear(1, 1, bias=False), half=half)
    model(torch.full((1, 1), world.rank + 1 / 3)).sum().backward()
    return _gradients(model)[0]


def small_run(shards: Path, run_dir: Path, **changes: Any) -> TrainConfig:
    """Settings of a run that takes seconds: ResNet-18 on tiny patches."""
    config = TrainConfig(
        shards=[str(shards)],
        run_dir=str(run_dir),
        epochs=4,
        log_every_steps=2,
        world=CPU,
        data=DataConfig(global_batch_size=8, splits=["train"]),
        model=ModelConfig(encoder=EncoderName.resnet18, head=HeadName.simclr2),
        checkpoint=CheckpointConfig(every_steps=3),
    )
    return replace(config, **changes)


def train_small(launch: Launch, config: TrainConfig) -> str:
    """Train and return the name of the last checkpoint, or what stopped the run."""
    try:
        return train(config, launch=launch).name
    except Preempted as stopped:
        return f"stopped at {stopped.step} by {stopped.stop.name}"


def first_losses(
    launch: Launch, config: TrainConfig, double: bool = False
) -> list[tuple[float, list[int]]]:
    """Return (mean loss over ranks, this rank's sample ids) of each step."""
    return in_world(_first_losses, launch, config, double)


class DoubledViews:
    """The views of another maker as float64."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    def two_views(self, *args: Any) -> torch.Tensor:
        return self._maker.two_views(*args).double()


def _in_double(run: Run) -> None:
    run.model = average_gradients(run.network.double())
    run.optimizer = build_optimizer(run.model, run.config.optim, run.config.optim.learning_rate)
    run.views = DoubledViews(run.views)


def _first_losses(world: World, config: TrainConfig, double: bool) -> list[tuple[float, list[int]]]:
    run = Run(config, world, ())
    run.resume()
    if double:
        _in_double(run)
    seen = []
    for batch in run.batches:
        ids = batch.sample_id.tolist()
        loss = train_step(run, batch).loss.clone()
        torch.distributed.all_reduce(loss)
        seen.append((float(loss) / world.size, ids))
    return seen


def gradients_with_world_statistics(launch: Launch, views: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of a whole SimCLR network on this rank's share of (2, B, C, H, W)."""
    return in_world(_gradients_with_world_statistics, launch, views)


def _gradients_with_world_statistics(world: World, views: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(encoder=EncoderName.resnet18, batchnorm=BatchNormGroup.world)
    model = average_gradients(SimCLR(config, views.shape[2]).double())
    mine = views.chunk(world.size, dim=1)[world.rank].flatten(0, 1)
    contrastive_loss(model(mine)[1], LossConfig()).backward()
    return [gradient.clone() for gradient in _gradients(model)]


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    # Views into DDP's buckets: pickled as they are, each would bring its whole bucket along.
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def order_and_draws(
    launch: Launch, config: TrainConfig
) -> list[tuple[torch.Tensor, ViewParameters]]:
    """Return this rank's sample ids and what is drawn for its views, of each step."""
    return in_world(_order_and_draws, launch, config)


def _order_and_draws(
    world: World, config: TrainConfig
) -> list[tuple[torch.Tensor, ViewParameters]]:
    run = Run(config, world, ())
    run.resume()
    return [
        (batch.sample_id.clone(), run.views.draw(batch, batch.epoch.clone()))
        for batch in run.batches
    ]
