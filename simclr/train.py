"""The training loop, its step, and the state of a run on one rank.

``train`` is called by the launcher on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from simclr.augment.views import ViewMaker
from simclr.checkpoint.manager import Best, CheckpointError, Saver, agreed_checkpoint, load_state
from simclr.checkpoint.manifest import (
    CheckpointManifest,
    config_hash,
    folder_name,
    newest_checkpoint,
    read_checkpoint_manifest,
    refuse_other_run,
    saved_precision,
    step_of,
)
from simclr.config import Positives, Precision, Stem, TrainConfig, require, to_plain
from simclr.data.dataset import open_dataset
from simclr.data.loader import Batch, training_batches
from simclr.data.sampler import DeterministicBatchSampler, TemporalPairSampler, draws_per_source
from simclr.distributed import (
    DistributedContext,
    StopAgreement,
    distributed_context,
    from_main_rank,
    is_fast_in_bfloat16,
)
from simclr.loss import chance_level, contrastive_loss
from simclr.model.batchnorm import running_statistics
from simclr.model.pretrained import start_from
from simclr.model.simclr import SimCLR, build_model
from simclr.monitoring.health import StepOutput
from simclr.monitoring.metrics import MetricsLogger, Sink
from simclr.optim import build_optimizer, learning_rate, peak_rate, set_rate, step_unless
from simclr.preemption import Preempted, StopReason, StopSignal, TrainerHooks
from simclr.rendezvous import Rendezvous

# between attempts to save; in total less than the 30 s that Slurm grants after SIGTERM
SAVE_PAUSES_S = (1, 2, 4, 8)
_log = logging.getLogger("simclr")


def train(
    config: TrainConfig,
    sinks: Sequence[Sink] = (),
    rendezvous: Rendezvous | None = None,
    hooks: TrainerHooks | None = None,
    copies: Sequence[str] = (),
    stop: StopSignal | None = None,
) -> Path:
    """Pretrain an encoder, or resume its run, and return the folder of the last checkpoint.

    Every rank must call it with the same settings.

    Args:
        config: settings.
        sinks: receive the metric records on the main rank.
        rendezvous: how this process was started; None: by torchrun's variables, or as a single
            process if they are not set.
        hooks: callbacks of the launcher, on every rank; on the main rank they may veto checkpoints.
        copies: folders with the same contents as ``config.shards``, read in their place.
        stop: signal handler installed by the launcher; None: signals are handled here.

    Raises:
        ValueError: settings, shards or run folder do not fit; the message has the reason and fix.
        Preempted: a stop signal was received; all ranks have stopped at the same step, and saved
            it if possible.
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
            if trainer.checkpoint_is_due(failed=bool(reason)):
                trainer.save()
        return trainer.finish()


def train_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Make views, embed them in one forward pass, compute the loss, update the weights.

    No host sync: the decision to skip the update is made on the device.
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
    # Gradients are all-reduced, so every rank computes the same skip flag: a non-finite value on
    # one rank has spread to the others through the average, or earlier the gathered projections.
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
    """A copy of the running statistics of BatchNorm, taken before a forward pass.

    A non-finite pass would corrupt them too, and they would never recover.
    """

    def __init__(self, network: nn.Module) -> None:
        self._live = running_statistics(network)
        self._sizes = [len(statistic) for statistic in self._live]
        self._before = torch.cat(self._live)

    @torch.no_grad()
    def restore_if(self, skip: torch.Tensor) -> None:
        """Restore them if ``skip`` is 1."""
        kept = torch.where(skip > 0, self._before, torch.cat(self._live))
        # One call for all layers; ResNet-152 has 310 of these tensors.
        torch._foreach_copy_(self._live, torch.split(kept, self._sizes))


class Trainer:
    """State of a pretraining run on one rank.

    Attributes:
        pair_sampler: samples by place and date, if the two views of a pair show two dates.
        sampler: samples, or places, of each step.
        model: encoder and head, wrapped for gradient averaging.
        step: number of steps done.
        num_steps: total number of steps: those of all epochs, or ``max_steps`` if lower.
        agreement: stop reason agreed by all ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: DistributedContext,
        sinks: Sequence[Sink],
        hooks: TrainerHooks | None = None,
        copies: Sequence[str] = (),
        stop: StopSignal | None = None,
    ) -> None:
        self.context, self.run_dir = context, Path(config.run_dir)
        data = config.data
        self.dataset = open_dataset(
            copies or config.shards,
            data.bands,
            data.splits,
            data.fraction,
            config.seed,
            whole_places=data.positives is Positives.season,
        )
        side_px = config.augment.view_size_px or self.dataset.size_px
        self.config = config = with_precision(config, context, side_px)
        self.pair_sampler = None
        if data.positives is Positives.season:
            weighted = bool(data.weights)
            self.pair_sampler = TemporalPairSampler(self.dataset, config.seed, weighted=weighted)
        sizes = self.pair_sampler.sizes if self.pair_sampler else self.dataset.sizes
        self.sampler = DeterministicBatchSampler(
            sum(sizes),
            data.global_batch_size,
            config.seed,
            context.rank,
            context.size,
            sizes,
            draws_per_source(sizes, data.weights) if data.weights else (),
            "places" if self.pair_sampler else "patches",
        )
        self.views = ViewMaker(
            self.dataset,
            config.augment,
            config.seed,
            context.device,
            # On a CPU, threads are faster. bfloat16 keeps fewer bits of a view than TF32.
            compiled=config.model.compile and context.device.type == "cuda",
            tf32=config.precision is Precision.bfloat16,
        )
        self.model = build_model(config, len(data.bands), side_px, context)
        self._peak_rate = peak_rate(config.optim, data.global_batch_size)
        self.optimizer = build_optimizer(self.model, config.optim, self._peak_rate)
        self.step = 0
        self._schedule_steps = config.epochs * self.sampler.steps_per_epoch
        self.num_steps = min(self._schedule_steps, config.max_steps or self._schedule_steps)
        self._warmup_steps = round(config.optim.warmup_epochs * self.sampler.steps_per_epoch)
        self._metrics = MetricsLogger(config, context, side_px, self._warmup_steps, sinks)
        self._hooks = hooks or TrainerHooks()
        self._saver = Saver(self.run_dir, context, config.checkpoint, self._hooks)
        self._stop = stop
        self.agreement = StopAgreement(context.device, self._stop_reason)
        self._saved: Path | None = None
        self._is_best = self._is_due = False

    @property
    def network(self) -> SimCLR:
        """Encoder and head without the wrapper."""
        network: SimCLR = self.model.module
        return network

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        optim = self.config.optim
        share = learning_rate(self.step, self._schedule_steps, self._warmup_steps, optim)
        return self._peak_rate * share

    def resume(self) -> None:
        """Resume from the newest valid checkpoint, or start at step 0 if there is none.

        Raises:
            ValueError: the checkpoint is of other settings or shards, or initial weights misfit.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        folder = agreed_checkpoint(self.run_dir, self.context)
        model, data, encoder = self.config.model, self.config.data, self.network.encoder
        if folder:
            manifest = read_checkpoint_manifest(folder)
            refuse_other_run(self.config, self.dataset.fingerprint, manifest)
            state = load_state(folder, self.context.device)
            encoder.load_state_dict(state["encoder"])
            self.network.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._metrics.load_state(state["metrics"], manifest.config["monitor"])
            self.step, self._saved = manifest.step, folder
            _log.info("resumed at step %d of %d from %s", self.step, self.num_steps, folder.name)
        elif model.weights:
            start_from(encoder, Path(model.weights), self.dataset.bands, model.weights_bands)
        if self.context.is_main:
            if self._metrics.rewind(self.step):  # a kill may have come before the pin
                score = self._metrics.best_score, self._metrics.headline
                Best(self.step, *score).pin(self.run_dir)
            if pairs := self.pair_sampler:
                text = "positives are seasons: %d of %d places have two dates"
                _log.info(text, pairs.num_seasonal, pairs.num_places)
            self._hooks.on_start(self.step)
        self.loader = training_batches(
            self.dataset,
            self.sampler,
            self.pair_sampler,
            start_step=self.step,
            num_steps=self.num_steps,
            device=self.context.device,
            num_threads=data.num_threads,
            num_slots=data.num_slots,
        )
        self.batches: Iterator[Batch] = iter(self.loader)
        self._hooks.on_step(self.step)

    def observe(self, outcome: StepOutput) -> None:
        """Record the outcome of a step; at the end of an interval, report to the sinks.

        Raises:
            ValueError: too many consecutive steps had no finite gradient.
        """
        self._metrics.add(outcome)
        self._hooks.on_step(self.step)
        if self._metrics.is_due(self.step, self.num_steps):
            place = {
                "step": self.step,
                "num_steps": self.num_steps,
                "epoch": self.sampler.epoch(self.step - 1),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "chance_level": chance_level(self.sampler.global_batch_size, self.config.loss),
            }
            self._is_best = self._metrics.report(place, self.loader.wait_s, self.network.encoder)

    def checkpoint_is_due(self, *, failed: bool = False) -> bool:
        """Return whether to save now: as set, at a new best score, or after a ``failed`` save.

        A skipped step is not saved, but the next one that is not: its weights may be the cause of
        the non-finite loss, and would displace the last good ones.
        """
        every_steps = self.config.checkpoint.every_steps
        self._is_due |= failed or self._is_best or self.step % every_steps == 0
        return self._is_due and self._metrics.is_sound()

    def save(self, *, wait: bool = False) -> None:
        """Save this step on all ranks, unless it is saved already.

        ``wait`` also waits for an asynchronous save. All ranks see the same failures, and try
        again: a disk may be full for only a few seconds.

        Raises:
            CheckpointError: all attempts to save failed.
        """
        if self.context.is_main and (gone := self.dataset.missing_shards()):
            # Open files can still be read after deletion, so nothing else would reveal it.
            text = "%d shards were deleted while training, %s is one; bring them back to resume"
            _log.warning(text, len(gone), gone[0])
        for pause_s in (*SAVE_PAUSES_S, None):
            try:
                if self._saved is None or self._saved.name != folder_name(self.step):
                    state = {
                        "encoder": self.network.encoder.state_dict(),
                        "head": self.network.head.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "metrics": self._metrics.state(),
                    }
                    score = self._metrics.best_score, self._metrics.headline
                    best = Best(self.step, *score) if self._is_best else None
                    self._saved = self._saver.save(state, self._manifest(), best)
                if wait:
                    self._saver.wait()
                break
            except CheckpointError as error:
                self._saved = None  # all of it again, even if only the best was not pinned
                if pause_s is None:
                    raise
                _log.warning("%s; trying again in %d s", error, pause_s)
                time.sleep(pause_s)
        self._is_best = self._is_due = False

    def _save_last(self) -> None:
        """Save this step and wait for it; after a skipped step, for an earlier save alone."""
        if self._metrics.is_sound():
            self.save(wait=True)
        else:
            _log.warning("step %d had no finite gradient and is not saved", self.step)
            self.close()

    def finish(self) -> Path:
        """Save the last step unless it was skipped; return the newest checkpoint.

        Raises:
            ValueError: the last step was skipped, and there is no earlier checkpoint.
            CheckpointError: all attempts to save failed.
        """
        self._save_last()
        if self._saved is None:
            raise ValueError(
                f"step {self.step} had no finite gradient and nothing was saved before; lower "
                f"optim.learning_rate ({self.config.optim.learning_rate})"
            )
        return self._saved

    def preempted(self, reason: StopReason) -> Preempted:
        """Save this step unless it was skipped, and return the exception to raise.

        Its step is the one to resume from: an earlier one if the last step was skipped or the save
        kept failing, 0 if nothing was saved. Neither is an error: the next attempt repeats them.
        """
        error = ""
        try:
            self._save_last()  # nothing to resume from until the save is complete
        except CheckpointError as failure:
            error = str(failure)
            _log.error("%s", error)
            self._saved = newest_checkpoint(self.run_dir)
        return Preempted(step_of(self._saved) if self._saved else 0, reason, error)

    def close(self) -> None:
        """Wait for an asynchronous save, which uses the process group; it may raise its error."""
        self._saver.wait()

    def _stop_reason(self) -> StopReason:
        asked = self._stop.reason if self._stop else StopReason.NONE
        return max(asked, StopReason.SAVE_FAILED) if self._saver.has_failed else asked

    def _manifest(self) -> CheckpointManifest:
        dataset = self.dataset
        return CheckpointManifest(
            step=self.step,
            num_steps=self.num_steps,
            world_size=self.context.size,
            config=to_plain(self.config),
            config_hash=config_hash(self.config),
            dataset={
                "sources": list(dataset.sources),
                "simulated": dataset.simulated,
                "fingerprint": dataset.fingerprint,
                "num_samples": dataset.num_samples,
                "bands": list(dataset.bands),
                "view_size_px": self.views.view_size_px,
                "normalisation": dataset.normalisation,
                "processing_level": {one.source: one.processing_level for one in dataset.manifests},
            },
            torch=torch.__version__,
            files={},
        )


def with_precision(config: TrainConfig, context: DistributedContext, side_px: int) -> TrainConfig:
    """Replace ``precision=auto`` by the run's initial one, or by the one that suits all devices.

    Raises:
        ValueError: the precision is bfloat16, in which torch computes wrong gradients for views of
            ``side_px`` on this device.
    """
    # oneDNN with torch 2.15: in bfloat16, the weight gradient of a 3 x 3 convolution of stride 2
    # on a single pixel, as in the last stage, contains stale bytes of earlier tensors.
    largest_wrong_px = 16 if config.model.stem is Stem.standard else 4
    is_wrong = context.device.type == "cpu" and side_px <= largest_wrong_px
    wrong = (
        f"a view has {side_px} px: on CPUs torch computes wrong gradients in bfloat16 for views of "
        f"{largest_wrong_px} px and less"
    )
    if config.precision is not Precision.auto:
        require(
            not (is_wrong and config.precision is Precision.bfloat16),
            f"precision is bfloat16 and {wrong}; set precision=float32 or "
            f"augment.view_size_px={largest_wrong_px + 1} or more",
        )
        return config
    is_slow = is_wrong or not is_fast_in_bfloat16(context.device)
    slow = context.all_reduce_max(int(is_slow))
    suited = Precision.float32 if slow else Precision.bfloat16
    begun = from_main_rank(saved_precision(Path(config.run_dir)) if context.is_main else "")
    chosen = Precision(begun) if begun else suited
    require(
        not (is_wrong and chosen is Precision.bfloat16),
        f"the run began in bfloat16 and {wrong}; continue it on GPUs, or start another one here",
    )
    if context.is_main:
        _log.info("precision is %s", chosen.value)
        if chosen is not suited:
            text = "the run began in %s and keeps it; these devices are faster in %s"
            _log.warning(text, chosen.value, suited.value)
    return replace(config, precision=chosen)
