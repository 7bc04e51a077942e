"""One optimizer step: a batch of patches in, the loss out, the weights moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from simclr.config import Precision
from simclr.loss import contrastive_loss
from simclr.model.batchnorm import running_statistics
from simclr.optim import set_rate, step_unless

if TYPE_CHECKING:
    from simclr.data.loader import Batch
    from simclr.trainer import Trainer


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


def train_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Make views, embed them in one forward pass, compare them, move the weights.

    Nothing here waits for the device: also whether the step counts is decided there.
    """
    with torch.no_grad():
        views = trainer.views.training_views(batch, batch.epoch)
    set_rate(trainer.optimizer, trainer.rate)
    trainer.optimizer.zero_grad(set_to_none=True)
    before = Statistics(trainer.network)
    half = trainer.config.precision is Precision.bfloat16
    with torch.autocast(trainer.context.device.type, dtype=torch.bfloat16, enabled=half):
        _, projections = trainer.model(views)
    loss = contrastive_loss(projections, trainer.config.loss)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm(trainer.network)
    # The averaged gradient is the same on all ranks, and so is this word: one rank's trouble has
    # reached the others through the average, or through the gathered projections before.
    skip = (~torch.isfinite(norm)).float()
    step_unless(trainer.optimizer, skip)
    before.restore_if(skip)
    trainer.step += 1
    return StepOutput(loss.detach(), norm, skip, projections.detach())


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
