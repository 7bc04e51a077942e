"""The training loop and its step; ``train`` is called by the launcher on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from simclr.config import Precision, TrainConfig, require
from simclr.data.loader import Batch
from simclr.distributed import distributed_context
from simclr.loss import contrastive_loss
from simclr.model.batchnorm import running_statistics
from simclr.monitoring.health import StepOutput
from simclr.monitoring.metrics import Sink
from simclr.optim import set_rate, step_unless
from simclr.preemption import StopReason, StopSignal, TrainerHooks
from simclr.rendezvous import Rendezvous
from simclr.trainer import Trainer


def train(
    config: TrainConfig,
    sinks: Sequence[Sink] = (),
    rendezvous: Rendezvous | None = None,
    hooks: TrainerHooks | None = None,
    copies: Sequence[str] = (),
    stop: StopSignal | None = None,
) -> Path:
    """Pretrain an encoder, or go on with it, and return the last checkpoint's folder.

    Every rank calls it with the same settings. Without a ``rendezvous`` the ranks are found through
    torchrun's variables; without those the world is this process alone.

    Args:
        config: settings, the same on every rank.
        sinks: take the metric records of the main rank.
        rendezvous: how this process was started.
        hooks: of the launcher, on every rank; on the main one they may refuse checkpoints.
        copies: folders that hold the same as ``config.shards`` and are read in their place.
        stop: installed by the launcher; without it signals are received here.

    Raises:
        ValueError: settings, shards or run folder do not fit; the message says what and the cure.
        Preempted: a stop signal came; all ranks have stopped at the same step, and saved it if
            they could.
        LostPeerError: another rank is gone, or too late.
        CheckpointError: a checkpoint could not be saved; older ones are untouched.
    """
    require(bool(config.run_dir), "run_dir is empty; give a folder for the run, run_dir=DIR")
    with (
        (stop or StopSignal()).deferred() as stop,
        distributed_context(config.world, rendezvous) as context,
        closing(Trainer(config, context, sinks, hooks, copies, stop)) as trainer,
    ):
        trainer.resume()
        while trainer.step < trainer.num_steps:
            trainer.observe(train_step(trainer, next(trainer.batches)))
            # all ranks leave at the same step
            reason = StopReason(trainer.agreement.largest())
            if reason > StopReason.SAVE_FAILED:
                raise trainer.preempted(reason)
            if reason or trainer.checkpoint_is_due():
                trainer.save()
        return trainer.save(wait=True)


def train_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Make views, embed them in one forward pass, compare them, move the weights.

    No host sync: the decision to skip the step is made on the device.
    """
    with torch.no_grad():
        views = trainer.views.training_views(batch, batch.epoch)
    set_rate(trainer.optimizer, trainer.rate)
    trainer.optimizer.zero_grad(set_to_none=True)
    before = Statistics(trainer.network)
    half = trainer.config.precision is Precision.bfloat16
    with torch.autocast(trainer.context.device.type, dtype=torch.bfloat16, enabled=half):
        _, projections = trainer.model(views)
    loss = contrastive_loss(projections, trainer.config.loss, trainer.agreement.gather_rows)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm(trainer.network)
    # Gradients are all-reduced, so every rank computes the same skip flag: a non-finite value of
    # one rank has reached the others through the average, or the gathered projections before it.
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
