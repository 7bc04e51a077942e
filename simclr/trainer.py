"""Trainer: builds data, model, optimizer and checkpointing from a TrainConfig.

It holds the state of one rank; ``simclr.train`` runs its steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from simclr.augment.views import ViewMaker
from simclr.checkpoint.manager import Best, CheckpointError, Saver, agreed_checkpoint, load_state
from simclr.checkpoint.manifest import (
    CheckpointManifest,
    binding_settings,
    config_hash,
    differing_settings,
    folder_name,
    newest_checkpoint,
    read_checkpoint_manifest,
    saved_precision,
    step_of,
)
from simclr.config import Positives, Precision, Stem, TrainConfig, from_plain, require, to_plain
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.data.loader import Batch, training_batches
from simclr.data.sampler import (
    DeterministicBatchSampler,
    TemporalPairSampler,
    draws_per_source,
    temporal_pairs_of,
)
from simclr.distributed import (
    DistributedContext,
    StopAgreement,
    from_main_rank,
    is_fast_in_bfloat16,
)
from simclr.loss import chance_level
from simclr.model.pretrained import start_from
from simclr.model.simclr import SimCLR, build_model
from simclr.monitoring.health import StepOutput
from simclr.monitoring.metrics import MetricsLogger, Sink
from simclr.optim import build_optimizer, learning_rate, peak_rate
from simclr.preemption import Preempted, StopReason, StopSignal, TrainerHooks


def refuse_other_run(
    config: TrainConfig, dataset: ShardDataset, manifest: CheckpointManifest
) -> None:
    """Let a run go on from a checkpoint of its own only.

    Raises:
        ValueError: the checkpoint has other settings or other shards; the message says which.
    """
    if manifest.config_hash != config_hash(config):
        # A checkpoint from before a setting was introduced has its default, and another hash.
        before = binding_settings(from_plain(TrainConfig, manifest.config))
        lines = differing_settings(before, binding_settings(config))
        if lines:
            raise ValueError(
                f"run_dir {config.run_dir} holds a run of other settings ({'; '.join(lines)}); "
                "give another run_dir, or the settings it was started with"
            )
    if manifest.dataset["fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"run_dir {config.run_dir} was trained on other shards (fingerprint "
            f"{manifest.dataset['fingerprint']}, now {dataset.fingerprint}); give another run_dir"
        )


# between attempts to save; together less than the 30 s that Slurm leaves after SIGTERM
SAVE_PAUSES_S = (1, 2, 4, 8)
_log = logging.getLogger("simclr")


class Trainer:
    """State of a pretraining run on one rank.

    Attributes:
        config: settings.
        context: this rank among all.
        dataset: samples.
        pair_sampler: the samples by place and date, if the two views of a pair show two dates.
        sampler: which samples, or places, at which step.
        views: makes two views of a batch.
        model: encoder and head, wrapped for gradient averaging.
        optimizer: with one rate for all groups.
        step: optimizer steps done.
        num_steps: steps after which the run ends: those of all epochs, or ``max_steps``.
        agreement: of all ranks on why to stop.
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
            self.pair_sampler = temporal_pairs_of(
                self.dataset, config.seed, weighted=bool(data.weights)
            )
        self.sampler = build_sampler(config, self.dataset, context, self.pair_sampler)
        self.views = ViewMaker(
            self.dataset,
            config.augment,
            config.seed,
            context.device,
            # On a CPU threads are faster, and bfloat16 keeps less of a view than TF32.
            compiled=config.model.compile and context.device.type == "cuda",
            tf32=config.precision is Precision.bfloat16,
        )
        self.model = build_model(config, len(data.bands), self.views.view_size_px, context)
        self._peak_rate = peak_rate(config.optim, data.global_batch_size)
        self.optimizer = build_optimizer(self.model, config.optim, self._peak_rate)
        self.step = 0
        self.num_steps = count_steps(config, self.sampler.steps_per_epoch)
        self._schedule_steps = config.epochs * self.sampler.steps_per_epoch
        self._warmup_steps = round(config.optim.warmup_epochs * self.sampler.steps_per_epoch)
        self._metrics = MetricsLogger(
            config, context, self.views.view_size_px, self._warmup_steps, sinks
        )
        self._hooks = hooks or TrainerHooks()
        self._saver = Saver(self.run_dir, context, config.checkpoint, self._hooks)
        self._stop = stop
        self.agreement = StopAgreement(context.device, self._stop_reason)
        self._saved: Path | None = None
        self._is_best = False

    @property
    def network(self) -> SimCLR:
        """Encoder and head, without the wrapper."""
        network: SimCLR = self.model.module
        return network

    @property
    def rate(self) -> float:
        """Learning rate of the step to come."""
        optim = self.config.optim
        share = learning_rate(self.step, self._schedule_steps, self._warmup_steps, optim)
        return self._peak_rate * share

    def resume(self) -> None:
        """Go on from the newest valid checkpoint; none means step 0.

        Raises:
            ValueError: the checkpoint belongs to other settings or other shards.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        folder = agreed_checkpoint(self.run_dir, self.context)
        model, data = self.config.model, self.config.data
        if folder:
            self._restore(folder)
        elif model.weights:
            start_from(
                self.network.encoder, Path(model.weights), self.dataset.bands, model.weights_bands
            )
        if self.context.is_main:
            self._metrics.rewind(self.step)
            if self.pair_sampler:
                held, num = self.pair_sampler.num_seasonal, self.pair_sampler.num_places
                _log.info("positives are seasons: %d of %d places have two dates", held, num)
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
        """Count a step's outcome; at the end of an interval, tell the sinks.

        Raises:
            ValueError: too many steps one after another had no finite gradient.
        """
        self._metrics.add(outcome)
        self._hooks.on_step(self.step)
        if self._metrics.is_due(self.step, self.num_steps):
            self._is_best = self._metrics.report(
                self._progress(), self.loader.wait_s, self.network.encoder
            )

    def checkpoint_is_due(self) -> bool:
        """True at every ``checkpoint.every_steps``, and when the held-out probe is at its best."""
        return self._is_best or self.step % self.config.checkpoint.every_steps == 0

    def save(self, *, wait: bool = False) -> Path:
        """Save this step on all ranks, unless it is saved already; return the newest folder.

        Behind a skipped step nothing is saved: the weights may be what makes the loss infinite,
        and saving them would push the last good ones out.

        Args:
            wait: for an asynchronous save, too.

        Raises:
            ValueError: the latest step was skipped, and there is no earlier checkpoint.
            CheckpointError: this save failed again and again.
        """
        if self.context.is_main and (gone := self.dataset.missing_shards()):
            # Files that are open go on being read, so that nothing else would show it.
            _log.warning(
                "%d shards were deleted while training, %s is one; the next attempt cannot read "
                "them: bring them back",
                len(gone),
                gone[0],
            )
        if self._metrics.is_sound():
            self._save_persistently(wait)
            self._is_best = False
        elif self._saved is None:
            raise ValueError(
                f"step {self.step} had no finite gradient and nothing was saved before; lower "
                f"optim.learning_rate ({self.config.optim.learning_rate})"
            )
        else:
            _log.warning("step %d had no finite gradient and is not saved", self.step)
        if self._saved is None:
            raise CheckpointError(f"step {self.step} was not saved")
        return self._saved

    def _save_persistently(self, wait: bool) -> None:
        """Try again after a failure, which all ranks share: a disk may be full for seconds only."""
        for pause_s in (*SAVE_PAUSES_S, None):
            try:
                if self._saved is None or self._saved.name != folder_name(self.step):
                    metrics = self._metrics
                    best = Best(self.step, metrics.best_score, metrics.headline)
                    self._saved = self._saver.save(
                        self._state(), self._manifest(), best if self._is_best else None
                    )
                if wait:
                    self._saver.wait()
            except CheckpointError as error:
                self._saved = newest_checkpoint(self.run_dir)
                if pause_s is None:
                    raise
                _log.warning("%s; trying again in %d s", error, pause_s)
                time.sleep(pause_s)
            else:
                return

    def preempted(self, reason: StopReason) -> Preempted:
        """Save this step if it is sound, wait for the save, and return the event to raise.

        Its step is the one to come back to: an earlier one behind a skipped step, or where saving
        fails for long; 0 if none was saved. Neither is a reason to fail: the next attempt takes
        the same steps again.
        """
        error = ""
        try:
            if self._metrics.is_sound():
                self.save(wait=True)  # nothing to come back to before it is whole
            else:
                _log.warning("step %d had no finite gradient and is not saved", self.step)
                self.close()
        except CheckpointError as failure:
            error = str(failure)
            _log.error("%s", error)
            self._saved = newest_checkpoint(self.run_dir)
        return Preempted(step_of(self._saved) if self._saved else 0, reason, error)

    def close(self) -> None:
        """Wait for the asynchronous save, which still uses the process group.

        Raises:
            CheckpointError: it failed.
        """
        self._saver.wait()

    def _stop_reason(self) -> StopReason:
        asked = self._stop.reason if self._stop else StopReason.NONE
        return max(asked, StopReason.SAVE_FAILED) if self._saver.has_failed else asked

    def _restore(self, folder: Path) -> None:
        manifest = read_checkpoint_manifest(folder)
        refuse_other_run(self.config, self.dataset, manifest)
        state = load_state(folder, self.context.device)
        self.network.encoder.load_state_dict(state["encoder"])
        self.network.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._metrics.load_state(state["metrics"])
        self.step, self._saved = manifest.step, folder
        _log.info("resumed at step %d of %d from %s", self.step, self.num_steps, folder.name)

    def _state(self) -> dict[str, Any]:
        """Return the state of the run; every rank must call it at the same step."""
        return {
            "encoder": self.network.encoder.state_dict(),
            "head": self.network.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "metrics": self._metrics.state(),
        }

    def _manifest(self) -> CheckpointManifest:
        """Return the origin of a checkpoint of this step, without its files."""
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

    def _progress(self) -> dict[str, Any]:
        """Return where the run stands, for a metric record."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "epoch": self.sampler.epoch(self.step - 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "chance_level": chance_level(self.sampler.global_batch_size, self.config.loss),
        }


def with_precision(config: TrainConfig, context: DistributedContext, side_px: int) -> TrainConfig:
    """Replace ``precision=auto`` by the precision the run began in, or by what all devices suit.

    Args:
        config: settings.
        context: this rank among all.
        side_px: side of a view.

    Raises:
        ValueError: bfloat16 is asked for where torch computes wrong gradients in it.
    """
    # oneDNN, seen with torch 2.15: the weight gradient of a 3 x 3 convolution of stride 2 on one
    # pixel, as at the start of the last stage, keeps bytes of earlier tensors in bfloat16.
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
            _log.warning(
                "the run began in %s and keeps it; these devices are faster in %s",
                chosen.value,
                suited.value,
            )
    return replace(config, precision=chosen)


def build_sampler(
    config: TrainConfig,
    dataset: ShardDataset,
    context: DistributedContext,
    pair_sampler: TemporalPairSampler | None = None,
) -> DeterministicBatchSampler:
    """Return the order on this rank: of samples, or of places if pairs show two dates."""
    data = config.data
    sizes = pair_sampler.sizes if pair_sampler else dataset.sizes
    return DeterministicBatchSampler(
        sum(sizes),
        data.global_batch_size,
        config.seed,
        context.rank,
        context.size,
        sizes,
        draws_per_source(sizes, data.weights) if data.weights else (),
        "places" if pair_sampler else "patches",
    )


def count_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the steps after which the run ends."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps
