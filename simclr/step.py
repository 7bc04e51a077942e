"""One optimizer step: a batch of patches in, the loss out, the weights moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from simclr.choices import Precision
from simclr.loss import contrastive_loss
from simclr.optim.build import set_rate

if TYPE_CHECKING:
    from simclr.loader import Batch
    from simclr.run import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step leaves on the device.

    Attributes:
        loss: scalar, of this rank's rows.
        projections: (2B, D) of this rank.
    """

    loss: torch.Tensor
    projections: torch.Tensor


def train_step(run: Run, batch: Batch) -> Outcome:
    """Make views, embed them in one forward pass, compare them, move the weights."""
    with torch.no_grad():
        views = run.views.two_views(batch, run.order.epoch(run.step))
    set_rate(run.optimizer, run.rate)
    run.optimizer.zero_grad(set_to_none=True)
    half = run.config.precision is Precision.bfloat16
    with torch.autocast(run.world.device.type, dtype=torch.bfloat16, enabled=half):
        _, projections = run.model(views)
    loss = contrastive_loss(projections, run.config.loss)
    loss.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.step += 1
    return Outcome(loss.detach(), projections.detach())
