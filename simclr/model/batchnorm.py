"""BatchNorm whose statistics span all ranks: one all-reduce a layer, no host synchronisation.

``torch.nn.SyncBatchNorm`` exchanges counts, waits for them on the host in every layer, and does not
run on a CPU. Ranks bring equal batches here, so counts need not travel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from simclr.collectives import num_ranks, sum_over_ranks


class WorldBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Drop-in for ``BatchNorm1d`` and ``BatchNorm2d`` with equal parameter names."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"input has {input.dim()} dimensions, not 2 or 4")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C) or (B, C, H, W); in evaluation mode by the running statistics."""
        if not self.training or num_ranks() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        values = input if input.dtype == torch.float64 else input.float()
        # Means, not sums: equal counts on all ranks, and nothing that grows with the batch.
        local = torch.stack([values.mean(axes), values.square().mean(axes)])  # (2, C)
        mean, square = _MeanOverRanks.apply(local).unbind(0)
        variance = (square - mean.square()).clamp(min=0)  # rounding may go below zero
        self._track(mean.detach(), variance.detach(), input.numel() // input.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (input.dim() - 2))
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("WorldBatchNorm needs running statistics and a fixed momentum")
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        total = count * num_ranks()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (total / max(total - 1, 1)), self.momentum)


class _MeanOverRanks(torch.autograd.Function):
    """Average a tensor over ranks, in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over ranks."""
        return sum_over_ranks(values.clone()) / num_ranks()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the mean gradient: every rank's output depends on every rank's values."""
        return sum_over_ranks(gradient.clone()) / num_ranks()


def use_world_statistics(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below a module by its all-rank form, keeping names and values."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            world = WorldBatchNorm(child.num_features, child.eps, child.momentum)
            world.load_state_dict(child.state_dict())
            setattr(module, name, world)
        else:
            use_world_statistics(child)
    return module
