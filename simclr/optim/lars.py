"""LARS: layer-wise adaptive rates for large batches (You et al. 2017, arXiv 1708.03888)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step in each tensor follows the ratio of norms.

    For each tensor, with u = gradient + weight_decay * w and q = trust * |w| / |u| (1 if either
    norm is 0, or if the group is not adapted): v = momentum * v + q * u; w -= lr * v. The rate is
    outside the momentum, as in SimCLR's reference. Every operation runs over all tensors of a
    group at once, and q never leaves the device.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust": trust,
            "weight_decay": 0.0,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; none if ``found_inf`` is set to 1."""
        if closure is not None:  # it would run the collectives of the loss once more
            raise ValueError("LARS takes no closure")
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(group, weights)

    def _update(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        updates = [weight.grad for weight in weights if weight.grad is not None]
        if group["weight_decay"]:
            updates = list(torch._foreach_add(updates, weights, alpha=group["weight_decay"]))
        # Not for biases and weights of BatchNorm, whose norms say nothing of a layer's scale.
        if group["adapt"]:
            updates = list(
                torch._foreach_mul(updates, _trust_ratios(weights, updates, group["trust"]))
            )
        # The kernel of SGD does the rest in one pass over memory, and looks at found_inf there.
        torch._fused_sgd_(
            weights,
            updates,
            [self._momentum(weight) for weight in weights],
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )

    def _momentum(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: torch.Tensor = state["momentum"]
        return momentum


def _trust_ratios(
    weights: list[torch.Tensor], updates: list[torch.Tensor], trust: float
) -> list[torch.Tensor]:
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(updates))
    # With weights of zero the ratio would be 0, and they would stay so for ever.
    usable = (weight_norms > 0) & (update_norms > 0)
    ratios = torch.where(usable, trust * weight_norms / update_norms, 1.0)
    return list(ratios.unbind(0))
