"""BatchNorm over the views of several ranks: one collective per layer and pass, no host sync.

``torch.nn.SyncBatchNorm`` exchanges counts, waits for them on the host in every layer, and does not
run on CPUs. Here every rank has the same number of views, so counts need not be exchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simclr.distributed import Group, gather_rows, num_ranks, sum_over_ranks


class GroupBatchNorm(_BatchNorm):
    """Drop-in replacement for ``BatchNorm1d`` and ``BatchNorm2d`` with the same parameter names."""

    group: Group = None  # ranks that share statistics; None: all ranks

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"input has {input.dim()} dimensions, not 2 or 4")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); in evaluation mode with the running statistics."""
        if not self.training or num_ranks(self.group) == 1:
            return super().forward(input)  # on one rank, torch's own kernel is equal and faster
        self._check_input_dim(input)
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("GroupBatchNorm needs running statistics and a fixed momentum")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # In eager mode, the formula below moves 3.6 times the bytes of the kernels; compiled, it
        # is fused, while an autograd function with kernels would break the graph in every layer.
        if input.is_cuda and not torch.compiler.is_compiling():
            output: Tensor = _NativeBatchNorm.apply(input, self.weight, self.bias, self)
            return output
        axes = [0, *range(2, input.dim())]
        # E[x^2] - E[x]^2 below cancels: half precision would lose most digits.
        values = input if input.dtype == torch.float64 else input.float()
        # Means, not sums: counts are equal on all ranks, and nothing grows with the batch.
        local = torch.stack([values.mean(axes), values.square().mean(axes)])  # (2, C)
        mean, square = _MeanOverRanks.apply(local, self.group).unbind(0)
        variance = (square - mean.square()).clamp(min=0)  # rounding may give less than zero
        with torch.no_grad():
            # The running variance is unbiased, the one that normalises is not: as in torch's own
            # BatchNorm, so that weights are interchangeable.
            total = input.numel() // input.shape[1] * num_ranks(self.group)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / max(total - 1, 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (input.dim() - 2))  # (1, C) or (1, C, 1, 1)
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)


class _MeanOverRanks(torch.autograd.Function):
    """Average a tensor over the ranks of a group, in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        """See torch.autograd.Function."""
        ctx.group = group
        return sum_over_ranks(values.clone(), group) / num_ranks(group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """See torch.autograd.Function."""
        # every rank's output depends on every rank's values
        return sum_over_ranks(gradient.clone(), ctx.group) / num_ranks(ctx.group), None


class _NativeBatchNorm(torch.autograd.Function):
    """The kernels of ``torch.nn.SyncBatchNorm``, with counts known in advance."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, layer: GroupBatchNorm
    ) -> Tensor:
        """See torch.autograd.Function."""
        input = _dense(input)
        num, group = input.shape[1], layer.group
        statistics = torch.cat(torch.batch_norm_stats(input, layer.eps))  # (2C,) float32
        means, inverse_deviations = gather_rows(statistics[None], group).chunk(2, 1)
        counts = _counts(input.numel() // num, num_ranks(group), torch.float32, input.device)
        mean, inverse_deviation = torch.batch_norm_gather_stats_with_counts(
            input,
            means,
            inverse_deviations,
            layer.running_mean,
            layer.running_var,
            layer.momentum or 0.0,  # None is refused in forward
            layer.eps,
            counts,
        )
        ctx.save_for_backward(input, weight, mean, inverse_deviation)
        ctx.group = group
        return torch.batch_norm_elemt(input, weight, bias, mean, inverse_deviation, layer.eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """See torch.autograd.Function."""
        # gradients of input, weight and bias; DDP averages the latter two
        input, weight, mean, inverse_deviation = ctx.saved_tensors
        gradient, num = _dense(gradient), input.shape[1]
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, input, mean, inverse_deviation, weight, True, True, True
        )
        over_ranks = sum_over_ranks(torch.cat(sums), ctx.group).chunk(2)
        counts = _counts(input.numel() // num, num_ranks(ctx.group), torch.int32, input.device)
        # torch's stub has only seven of its eight arguments.
        of_input = torch.batch_norm_backward_elemt(  # type: ignore[call-arg]
            gradient, input, mean, inverse_deviation, weight, *over_ranks, counts
        )
        return of_input, of_weight, of_bias, None


def _dense(values: Tensor) -> Tensor:
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values
    return values.contiguous()


@functools.cache
def _counts(count: int, ranks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((ranks,), count, dtype=dtype, device=device)


def join_statistics(module: nn.Module, group: Group = None) -> nn.Module:
    """Replace every BatchNorm in a module by one over ranks, in place, keeping names and values."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            joined = GroupBatchNorm(child.num_features, child.eps, child.momentum)
            joined.load_state_dict(child.state_dict())
            joined.group = group
            setattr(module, name, joined)
        else:
            join_statistics(child, group)
    return module


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all BatchNorms in a module, each (C,)."""
    return [
        statistic
        for layer in module.modules()
        if isinstance(layer, _BatchNorm)
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged for the duration of the block, even in training mode."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # new = old + 0 * (batch - old)
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
