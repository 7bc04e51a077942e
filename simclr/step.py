"""Parts of a training step: what it leaves on the device, gradient norm, BatchNorm statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from simclr.model.batchnorm import running_statistics


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step leaves on the device.

    Attributes:
        loss: scalar, of this rank's rows.
        gradient_norm: scalar, of the gradient averaged over ranks.
        skip: float32 scalar, 1 if the weights were left as they were.
        projections: (2B, D) of this rank.
    """

    loss: torch.Tensor
    gradient_norm: torch.Tensor
    skip: torch.Tensor
    projections: torch.Tensor


def gradient_norm(network: nn.Module) -> torch.Tensor:
    """Return the Euclidean norm over all gradients, as a scalar on the device."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


class Statistics:
    """Running statistics of BatchNorm as they were before a forward pass.

    A pass that is not finite leaves its mark on them too; they would never recover.
    """

    def __init__(self, network: nn.Module) -> None:
        self._live = running_statistics(network)
        self._sizes = [len(statistic) for statistic in self._live]
        self._before = torch.cat(self._live)

    @torch.no_grad()
    def restore_if(self, skip: torch.Tensor) -> None:
        """Bring them back where ``skip`` is 1."""
        kept = torch.where(skip > 0, self._before, torch.cat(self._live))
        # One call for all layers; ResNet-152 has 310 of these tensors.
        torch._foreach_copy_(self._live, torch.split(kept, self._sizes))
