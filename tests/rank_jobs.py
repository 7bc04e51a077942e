"""What ranks do in tests; importable, so that new processes find it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from ranks import CPU, in_process_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr.augment.parameters import ViewParameters
from simclr.checkpoint.manager import Best
from simclr.config import (
    BatchNormGroup,
    CheckpointConfig,
    DataConfig,
    Device,
    EncoderName,
    HeadName,
    LossConfig,
    LossName,
    ModelConfig,
    TrainConfig,
    WorldConfig,
)
from simclr.distributed import (
    DistributedContext,
    StopAgreement,
    average_gradients,
    distributed_context,
    gather_rows,
    group_of_node,
    sum_over_ranks,
)
from simclr.loss import contrastive_loss
from simclr.model.batchnorm import GroupBatchNorm, _NativeBatchNorm, join_statistics
from simclr.model.simclr import SimCLR
from simclr.optim import build_optimizer
from simclr.preemption import Preempted
from simclr.rendezvous import Rendezvous, rendezvous_from_environment
from simclr.train import Trainer, train, train_step


def agreed_value(rendezvous: Rendezvous) -> int:
    """Rank r brings r; every rank gets the largest."""
    return in_process_group(lambda context: context.all_reduce_max(context.rank), rendezvous)


def agreed_reasons(rendezvous: Rendezvous, reasons: Sequence[int], delay: int) -> list[int]:
    """Return what each step learns where only the last rank has these reasons, one a step."""
    return in_process_group(_agreed_reasons, rendezvous, reasons, delay)


def joined_twice(rendezvous: Rendezvous, port: int) -> list[int]:
    """Agree in two process groups, one after the other, as a process of torchrun."""
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rendezvous.rank),
        "LOCAL_RANK": str(rendezvous.rank),
        "WORLD_SIZE": str(rendezvous.world_size),
    }
    return [agreed_value(rendezvous_from_environment()) for _ in range(2)]


def on_first_gpu(rendezvous: Rendezvous, checked: bool = True) -> str:
    """Return what ranks that share a GPU are told, by our own check or by NCCL."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    checking = nullcontext() if checked else mock.patch("simclr.distributed._refuse_shared_gpus")
    config = WorldConfig(device=Device.cuda, timeout_s=60)
    try:
        with checking, distributed_context(config, rendezvous) as context:
            sum_over_ranks(torch.ones(1, device=context.device))
            torch.cuda.synchronize()
    except ValueError as error:
        return str(error)
    return "nothing"


def hidden_reductions(rendezvous: Rendezvous, config: TrainConfig) -> tuple[int, int]:
    """Return how many all-reduces a step has on a GPU, and beside how many of them it computes."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with (
        distributed_context(config.world, rendezvous) as context,
        closing(Trainer(config, context, [])) as run,
    ):
        run.resume()
        for _ in range(3):
            train_step(run, next(run.batches))
        with torch.profiler.profile(activities=activities) as profile:
            train_step(run, next(run.batches))
            torch.cuda.synchronize()
    spans = [
        ("AllReduce" in event.name, "nccl" in event.name, event.time_range)
        for event in profile.events()
        if event.device_type is torch.autograd.DeviceType.CUDA
    ]
    computing = [span for _, is_nccl, span in spans if not is_nccl]
    reducing = [span for is_reduction, _, span in spans if is_reduction]
    hidden = sum(
        any(one.start < other.end and other.start < one.end for other in computing)
        for one in reducing
    )
    return len(reducing), hidden


def _agreed_reasons(context: DistributedContext, reasons: Sequence[int], delay: int) -> list[int]:
    is_last = context.rank == context.size - 1
    own = iter(reasons if is_last else [0] * len(reasons))
    agreement = StopAgreement(context.device, lambda: next(own), delay)
    rows = torch.arange(3.0) + 10 * context.rank
    learnt = []
    for _ in reasons:
        assert torch.equal(agreement.gather_rows(rows), gather_rows(rows))
        learnt.append(agreement.largest())
    return learnt


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
    rendezvous: Rendezvous, pairs: int, loss: str, temperature: float
) -> tuple[float, list[torch.Tensor]]:
    """Return the mean loss over ranks and the parameter gradients after DDP."""
    config = LossConfig(name=LossName(loss), temperature=temperature)
    return in_process_group(_loss_and_gradient, rendezvous, pairs, config)


def _loss_and_gradient(
    context: DistributedContext, pairs: int, config: LossConfig
) -> tuple[float, list[torch.Tensor]]:
    model = DistributedDataParallel(network())
    views = joined_views(pairs)
    share = pairs // context.size
    mine = views[:, context.rank * share : (context.rank + 1) * share].flatten(0, 1)
    # A non-contiguous output: some gathers have returned wrong gradients for those.
    loss = contrastive_loss(model(mine).T.contiguous().T, config)
    loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return float(total) / context.size, [gradient.clone() for gradient in _gradients(model)]


def world_batchnorm(
    rendezvous: Rendezvous, values: torch.Tensor, device: Device = Device.cpu
) -> dict[str, Any]:
    """Forward and backward of a BatchNorm over all ranks' shares of ``values``."""
    with distributed_context(replace(CPU, device=device), rendezvous) as context:
        results = _world_batchnorm(context, values.to(context.device))
        return {name: result.cpu() for name, result in results.items()}


def _world_batchnorm(context: DistributedContext, values: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = join_statistics(nn.Sequential(nn.BatchNorm2d(values.shape[1]))).to(values.device)
    share = values.chunk(context.size)[context.rank].clone().requires_grad_()
    output = layer(share)
    (output**3).mean().backward()
    return {
        "output": output.detach(),
        "input_gradient": share.grad,
        "running_var": layer[0].running_var,
        "running_mean": layer[0].running_mean,
    }


def native_batchnorm(rendezvous: Rendezvous, values: torch.Tensor) -> Any:
    """Return the results of BatchNorm over ranks by the kernels' way and by the CPU's."""
    return in_process_group(_native_batchnorm, rendezvous, values)


def _native_batchnorm(context: DistributedContext, values: torch.Tensor) -> Any:
    results = []
    for native in (True, False):
        torch.manual_seed(0)
        layer = GroupBatchNorm(values.shape[1])
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
        share = values.chunk(context.size)[context.rank].clone().requires_grad_()
        if native:
            with documented_kernels():
                output = _NativeBatchNorm.apply(share, layer.weight, layer.bias, layer)
                (output**3).mean().backward()
        else:
            output = layer(share)
            (output**3).mean().backward()
        results.append(
            {
                "output": output.detach(),
                "input": share.grad,
                "weight": layer.weight.grad,
                "bias": layer.bias.grad,
                "running_mean": layer.running_mean,
                "running_var": layer.running_var,
            }
        )
    return results


def _axes(x):
    return [axis for axis in range(x.dim()) if axis != 1]


def _wide(per_channel, x):
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


class DocumentedKernels:
    """What torch's SyncBatchNorm kernels, which only CUDA has, are to return, for a CPU."""

    @staticmethod
    def stats(x, eps):
        return x.mean(_axes(x)), (x.var(_axes(x), unbiased=False) + eps).rsqrt()

    @staticmethod
    def gather_stats_with_counts(
        x, means, invstds, running_mean, running_var, momentum, eps, counts
    ):
        shares = (counts / counts.sum())[:, None]
        mean = (means * shares).sum(0)
        square = ((invstds**-2 - eps + means**2) * shares).sum(0)
        variance, total = square - mean**2, counts.sum()
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * total / (total - 1), momentum)
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def elemt(x, weight, bias, mean, invstd, eps):
        return (x - _wide(mean, x)) * _wide(invstd * weight, x) + _wide(bias, x)

    @staticmethod
    def backward_reduce(dy, x, mean, invstd, weight, *_):
        sum_dy, centred = dy.sum(_axes(x)), x - _wide(mean, x)
        sum_dy_xmu = (dy * centred).sum(_axes(x))
        return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy

    @staticmethod
    def backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
        assert counts.dtype is torch.int32
        total = counts.sum()
        projected = (x - _wide(mean, x)) * _wide(invstd**2 * sum_dy_xmu / total, x)
        return (dy - _wide(sum_dy / total, x) - projected) * _wide(invstd * weight, x)


@contextmanager
def documented_kernels() -> Iterator[None]:
    """Let a CPU compute by ``DocumentedKernels``."""
    with ExitStack() as stack:
        for name, kernel in vars(DocumentedKernels).items():
            if isinstance(kernel, staticmethod):
                patched = mock.patch.object(torch, f"batch_norm_{name}", kernel.__func__)
                stack.enter_context(patched)
        yield


def node_batchnorm(rendezvous: Rendezvous, values: torch.Tensor) -> torch.Tensor:
    """Return the output of a BatchNorm over pairs of ranks for this rank's share of ``values``."""
    return in_process_group(_node_batchnorm, rendezvous, values)


def _node_batchnorm(context: DistributedContext, values: torch.Tensor) -> torch.Tensor:
    # Ranks dealt to two nodes in turn, as some schedulers do it.
    group = group_of_node(f"node-{context.rank % 2}")
    layer = join_statistics(nn.Sequential(nn.BatchNorm2d(values.shape[1])), group)
    return layer(values.chunk(context.size)[context.rank]).detach().clone()


def averaged_gradient(rendezvous: Rendezvous, half: bool) -> torch.Tensor:
    """Return the gradient of a layer's weight after averaging, rank r bringing input r + 1/3."""
    return in_process_group(_averaged_gradient, rendezvous, half)


def _averaged_gradient(context: DistributedContext, half: bool) -> torch.Tensor:
    model = average_gradients(nn.Linear(1, 1, bias=False), half=half)
    model(torch.full((1, 1), context.rank + 1 / 3)).sum().backward()
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


def train_small(rendezvous: Rendezvous, config: TrainConfig) -> str:
    """Train and return the name of the last checkpoint, or what stopped the run."""
    try:
        return train(config, rendezvous=rendezvous).name
    except Preempted as stopped:
        return f"stopped at {stopped.step} by {stopped.reason.name}"


def failing_once(monkeypatch: Any) -> list[int]:
    """Let the disk be full when a checkpoint is first pinned; return the steps of all attempts."""
    pin, steps = Best.pin, []

    def full(best: Best, run_dir: Path) -> None:
        steps.append(best.step)
        if len(steps) == 1:
            raise OSError(28, "No space left on device")
        pin(best, run_dir)

    monkeypatch.setattr(Best, "pin", full)
    return steps


def train_beside_a_stale_folder(rendezvous: Rendezvous, config: TrainConfig) -> str:
    """Train where one save fails after its checkpoint is there, which only rank 0 sees in time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simclr.train.SAVE_PAUSES_S", (0.1,))
        failing_once(patch)
        if rendezvous.rank:
            patch.setattr("simclr.train.newest_checkpoint", lambda _: None)
        return train_small(rendezvous, config)


def first_losses(
    rendezvous: Rendezvous, config: TrainConfig, double: bool = False
) -> list[tuple[float, list[int]]]:
    """Return (mean loss over ranks, this rank's sample ids) of each step."""
    return in_process_group(_first_losses, rendezvous, config, double)


class DoubledViews:
    """The views of another maker as float64."""

    def __init__(self, maker: Any) -> None:
        self._maker = maker

    def training_views(self, *args: Any) -> torch.Tensor:
        return self._maker.training_views(*args).double()


def _in_double(run: Trainer) -> None:
    run.model = average_gradients(run.network.double())
    run.optimizer = build_optimizer(run.model, run.config.optim, run.config.optim.learning_rate)
    run.views = DoubledViews(run.views)


def _first_losses(
    context: DistributedContext, config: TrainConfig, double: bool
) -> list[tuple[float, list[int]]]:
    run = Trainer(config, context, ())
    run.resume()
    if double:
        _in_double(run)
    seen = []
    for batch in run.batches:
        ids = batch.sample_id.tolist()
        loss = train_step(run, batch).loss.clone()
        torch.distributed.all_reduce(loss)
        seen.append((float(loss) / context.size, ids))
    return seen


def gradients_with_world_statistics(
    rendezvous: Rendezvous, views: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradients of a whole SimCLR network on this rank's share of (2, B, C, H, W)."""
    return in_process_group(_gradients_with_world_statistics, rendezvous, views)


def _gradients_with_world_statistics(
    context: DistributedContext, views: torch.Tensor
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(encoder=EncoderName.resnet18, batchnorm=BatchNormGroup.world)
    model = average_gradients(SimCLR(config, views.shape[2]).double())
    mine = views.chunk(context.size, dim=1)[context.rank].flatten(0, 1)
    contrastive_loss(model(mine)[1], LossConfig()).backward()
    return [gradient.clone() for gradient in _gradients(model)]


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    # Views into DDP's buckets: pickled as they are, each would bring its whole bucket along.
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def order_and_draws(
    rendezvous: Rendezvous, config: TrainConfig
) -> list[tuple[torch.Tensor, ViewParameters]]:
    """Return this rank's sample ids and what is drawn for its views, of each step."""
    return in_process_group(_order_and_draws, rendezvous, config)


def _order_and_draws(
    context: DistributedContext, config: TrainConfig
) -> list[tuple[torch.Tensor, ViewParameters]]:
    run = Trainer(config, context, ())
    run.resume()
    return [
        (batch.sample_id.clone(), run.views.draw(batch, batch.epoch.clone()))
        for batch in run.batches
    ]
