"""Optimisers, their parameter groups and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from simclr.config import OptimConfig, OptimizerName, RateScaling, Schedule


class LARS(Optimizer):
    """SGD with momentum whose step is scaled for each tensor by a ratio of norms.

    For each tensor, with u = gradient + weight_decay * w and q = trust * |w| / |u| (1 if either
    norm is 0, or if the group is not adapted): v = momentum * v + q * u; w -= lr * v (You et al.
    2017). The rate is outside the momentum, as in VICReg's LARS; SimCLR's reference code has it
    inside, which differs while the rate changes. Operations run on all tensors of a group at once,
    and q never leaves the device.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9) -> None:
        kept = {"lr": lr, "momentum": momentum, "trust": 1e-3}
        super().__init__(params, {**kept, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; none if ``found_inf`` is 1."""
        if closure is not None:  # it would run the collectives of the loss again
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(group, weights)

    def _update(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        updates = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
        # Not for biases and BatchNorm weights, whose norms say nothing about a layer's scale.
        if group["adapt"]:
            weight_norms = torch.stack(torch._foreach_norm(weights))
            update_norms = torch.stack(torch._foreach_norm(updates))
            # For zero weights the ratio would be 0, and they would stay zero forever.
            usable = (weight_norms > 0) & (update_norms > 0)
            ratios = torch.where(usable, group["trust"] * weight_norms / update_norms, 1.0)
            # One launch per tensor: torch has no kernel that scales a list by numbers on the
            # device, and a pass over a concatenated copy would cost more than the launches.
            updates = list(torch._foreach_mul(updates, ratios.unbind(0)))
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        # The SGD kernel does the rest in one pass over memory, and respects found_inf.
        torch._fused_sgd_(
            weights,
            updates,
            [self.state[weight]["momentum"] for weight in weights],
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices and kernels with weight decay; biases and norms without.

    ``adapt=False`` makes LARS leave the second group's rate unscaled.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wide = [parameter for parameter in trained if parameter.ndim > 1]
    flat = [parameter for parameter in trained if parameter.ndim <= 1]
    return [
        {"params": wide, "weight_decay": weight_decay, "adapt": True},
        {"params": flat, "weight_decay": 0.0, "adapt": False},
    ]


def build_optimizer(model: nn.Module, config: OptimConfig, rate: float) -> torch.optim.Optimizer:
    """Return the configured optimiser at a peak rate, suitable for ``step_unless``."""
    groups = parameter_groups(model, config.weight_decay)
    if config.name is OptimizerName.lars:
        return LARS(groups, lr=rate, momentum=config.momentum)
    if config.name is OptimizerName.adamw:
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if config.name is OptimizerName.adam:
        return torch.optim.Adam(groups, lr=rate, fused=True)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    if config.momentum:
        # torch leaves them uninitialised until the first step, which might be skipped.
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_unless(optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
    """Update the weights, or leave them and all moments unchanged if ``skip`` is 1.

    ``skip`` is a float32 scalar on the device of the weights. Fused kernels honour ``found_inf``,
    so no host sync is needed, as in ``torch.amp.GradScaler``.
    """
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def peak_rate(config: OptimConfig, global_batch_size: int) -> float:
    """Return the peak rate, scaled to the global batch size in pairs."""
    ratio = global_batch_size / config.reference_batch_size
    factors = {RateScaling.none: 1.0, RateScaling.sqrt: math.sqrt(ratio), RateScaling.linear: ratio}
    return config.learning_rate * factors[config.scaling]


def learning_rate(step: int, num_steps: int, warmup_steps: int, config: OptimConfig) -> float:
    """Return the rate as a fraction of the peak in [0, 1] for a step in [0, num_steps).

    Linear warm-up reaches 1 at the last warm-up step; without ``decay_steps``, the cosine would
    reach 0 one step after the last (Loshchilov and Hutter 2017, without restarts).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule is Schedule.constant:
        return 1.0
    decay_steps = config.decay_steps or max(1, num_steps - warmup_steps)
    # clamp: a cosine would rise again after its end
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    return (1 + math.cos(math.pi * progress)) / 2
