"""BatchNorm whose statistics span ranks: one all-reduce a layer, no host synchronisation.

``torch.nn.SyncBatchNorm`` exchanges counts, waits for them on the host in every layer, and does not
run on a CPU. Ranks bring equal batches here, so counts need not travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from simclr.distributed import Group, num_ranks, sum_over_ranks


class GroupBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Drop-in for ``BatchNorm1d`` and ``BatchNorm2d`` with equal parameter names.

    Attributes:
        group: ranks whose views are joined; None joins all.
    """

    group: Group = None

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"input has {input.dim()} dimensions, not 2 or 4")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C) or (B, C, H, W); in evaluation mode by the running statistics."""
        if not self.training or num_ranks(self.group) == 1:
            return super().forward(input)  # alone, torch's own kernel does the same, quicker
        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        # E[x^2] - E[x]^2 below cancels: in half precision little would be left of it.
        values = input if input.dtype == torch.float64 else input.float()
        # Means, not sums: equal counts on all ranks, and nothing that grows with the batch.
        local = torch.stack([values.mean(axes), values.square().mean(axes)])  # (2, C)
        mean, square = _MeanOverRanks.apply(local, self.group).unbind(0)
        variance = (square - mean.square()).clamp(min=0)  # rounding may go below zero
        self._track(mean.detach(), variance.detach(), input.numel() // input.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (input.dim() - 2))  # (1, C) or (1, C, 1, 1)
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("GroupBatchNorm needs running statistics and a fixed momentum")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # The running variance is the unbiased one, the variance that normalises is not: as torch's
        # own BatchNorm has it, so that weights go both ways.
        total = count * num_ranks(self.group)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (total / max(total - 1, 1)), self.momentum)


class _MeanOverRanks(torch.autograd.Function):
    """Average a tensor over the ranks of a group, in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, group: Group) -> torch.Tensor:
        """Return the mean over ranks."""
        ctx.group = group
        return sum_over_ranks(values.clone(), group) / num_ranks(group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the mean gradient: every rank's output depends on every rank's values."""
        return sum_over_ranks(gradient.clone(), ctx.group) / num_ranks(ctx.group), None


def join_statistics(module: nn.Module, group: Group = None) -> nn.Module:
    """Replace every BatchNorm below a module by one that spans ranks, keeping names and values."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            joined = GroupBatchNorm(child.num_features, child.eps, child.momentum)
            joined.load_state_dict(child.state_dict())
            joined.group = group
            setattr(module, name, joined)
        else:
            join_statistics(child, group)
    return module


def running_statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the running means and variances below a module, each (C,)."""
    return [
        statistic
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for statistic in (layer.running_mean, layer.running_var)
        if statistic is not None
    ]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are for the time of the block, in training mode too."""
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0  # new = old + 0 * (batch - old)
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
