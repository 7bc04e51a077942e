"""A configuration becomes a run: everything that lives from the first step to the last."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from simclr.augment.views import ViewMaker
from simclr.checkpoint.load import agreed_checkpoint, load_state, restore_rank
from simclr.checkpoint.manifest import CheckpointManifest, folder_name, read_checkpoint_manifest
from simclr.checkpoint.save import Fence, Saver, unfenced
from simclr.collectives import average_gradients
from simclr.config import TrainConfig
from simclr.corpus import Corpus, open_corpus
from simclr.heartbeat import beat
from simclr.loader import Batch, Loader, training_batches
from simclr.loss import chance_level
from simclr.metrics import JsonLines, Sink, screen
from simclr.model.simclr import SimCLR
from simclr.monitors.collapse import collapse_in_words
from simclr.monitors.interval import Interval
from simclr.optim.build import build_optimizer
from simclr.optim.schedule import learning_rate, peak_rate
from simclr.order import Order
from simclr.preemption import Stop
from simclr.settings import binding_settings, config_hash, differing_settings, from_plain, to_plain
from simclr.step import Outcome
from simclr.world import World

_log = logging.getLogger("simclr")


class Run:
    """State of a pretraining run on one rank.

    Attributes:
        config: settings.
        world: this rank among all.
        corpus: samples.
        order: which samples at which step.
        views: makes two views of a batch.
        model: encoder and head, wrapped for gradient averaging.
        optimizer: with one rate for all groups.
        step: optimizer steps done.
        num_steps: steps of the whole run.
    """

    def __init__(
        self, config: TrainConfig, world: World, sinks: Sequence[Sink], fence: Fence = unfenced
    ) -> None:
        self.config, self.world = config, world
        self.run_dir = Path(config.run_dir)
        self.corpus = open_corpus(
            config.shards, config.data.bands, config.data.splits, config.data.fraction, config.seed
        )
        self.order = Order(
            self.corpus.num_samples,
            config.data.global_batch_size,
            config.seed,
            world.rank,
            world.size,
        )
        self.views = ViewMaker(self.corpus, config.augment, config.seed, world.device)
        self.model = build_model(config, self.corpus, self.views.view_size_px, world)
        self._peak_rate = peak_rate(config.optim, config.data.global_batch_size)
        self.optimizer = build_optimizer(self.model, config.optim, self._peak_rate)
        self.step = 0
        self.num_steps = count_steps(config, self.order.steps_per_epoch)
        self._metrics = JsonLines(self.run_dir)
        self._sinks = [self._metrics, screen(), *sinks] if world.is_main else []
        self._saver = Saver(self.run_dir, world, config.checkpoint, fence)
        self._saved: Path | None = None
        self._warned = False
        self._interval = Interval(world.device, config.data.global_batch_size)

    def resume(self) -> None:
        """Go on from the newest valid checkpoint; none means step 0.

        Raises:
            ValueError: the checkpoint belongs to other settings or other shards.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        folder = agreed_checkpoint(self.run_dir, self.world)
        if folder is not None:
            manifest = read_checkpoint_manifest(folder)
            _refuse_other_run(self, manifest)
            state = load_state(folder, self.world.device)
            self._network.encoder.load_state_dict(state["encoder"])
            self._network.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._interval.load_state(restore_rank(folder, self.world))
            self.step, self._saved = manifest.step, folder
            _log.info("resumed at step %d of %d from %s", self.step, self.num_steps, folder.name)
        if self.world.is_main:
            self._metrics.rewind(self.step)
        self.loader = self._loader()
        self.batches: Iterator[Batch] = iter(self.loader)
        beat(self.run_dir, self.world, self.step)

    @property
    def rate(self) -> float:
        """Learning rate of the step to come."""
        warmup = round(self.config.optim.warmup_epochs * self.order.steps_per_epoch)
        share = learning_rate(self.step, self.num_steps, warmup, self.config.optim)
        return self._peak_rate * share

    def observe(self, outcome: Outcome) -> None:
        """Count a step's outcome; at the end of an interval, tell the sinks and the heartbeat.

        Raises:
            ValueError: the loss is no longer finite, on any rank.
        """
        self._interval.add(outcome)
        if self.step % self.config.log_every_steps and self.step != self.num_steps:
            return
        record = {**self._place(), **self._interval.close(self.loader.wait_s)}
        beat(self.run_dir, self.world, self.step)
        for sink in self._sinks:
            sink.write(record)
        self._require_finite(record["loss"])
        self._warn(collapse_in_words(record))

    def _place(self) -> dict[str, Any]:
        """Return where the run stands, for a metric record."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "epoch": self.order.epoch(self.step - 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "chance_level": chance_level(self.order.global_batch_size, self.config.loss),
        }

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(
                f"loss is {loss} at step {self.step}; lower optim.learning_rate "
                f"({self.config.optim.learning_rate}) and start again: checkpoints are untouched"
            )

    def _warn(self, words: str) -> None:
        if words and not self._warned:
            _log.warning(words)
        self._warned = bool(words)

    def checkpoint_is_due(self) -> bool:
        """True at every ``checkpoint.every_steps``."""
        return self.step % self.config.checkpoint.every_steps == 0

    def save(self) -> Path:
        """Save this step on all ranks, unless it is saved already; return the folder.

        Raises:
            ValueError: a loss since the last metric line is not finite; nothing is saved.
            CheckpointError: this save failed, or the one before it.
        """
        if self._saved is None or self._saved.name != folder_name(self.step):
            self._require_finite(self._interval.total_loss())
            state = {
                "encoder": self._network.encoder.state_dict(),
                "head": self._network.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            self._saved = self._saver.save(state, self._interval.state(), self._about())
        return self._saved

    @property
    def trouble(self) -> Stop:
        """``unsaved`` once a save beside the loop has failed, on this rank."""
        return Stop.unsaved if self._saver.has_failed else Stop.no

    def close(self) -> None:
        """Wait for the save beside the loop, which still uses the process group.

        Raises:
            CheckpointError: it failed.
        """
        self._saver.wait()

    @property
    def _network(self) -> SimCLR:
        network: SimCLR = self.model.module
        return network

    def _about(self) -> CheckpointManifest:
        return CheckpointManifest(
            step=self.step,
            num_steps=self.num_steps,
            world_size=self.world.size,
            config=to_plain(self.config),
            config_hash=config_hash(self.config),
            corpus=describe_corpus(self.corpus, self.views.view_size_px),
            torch=torch.__version__,
            files={},
        )

    def _loader(self) -> Loader:
        data = self.config.data
        return training_batches(
            self.corpus,
            self.order,
            start_step=self.step,
            num_steps=self.num_steps,
            device=self.world.device,
            num_threads=data.num_threads,
            num_slots=data.num_slots,
        )


def build_model(
    config: TrainConfig, corpus: Corpus, view_size_px: int, world: World
) -> DistributedDataParallel:
    """Return the network on every rank with equal weights, ready to average gradients."""
    torch.manual_seed(config.seed)
    network = SimCLR(config.model, len(corpus.bands)).to(world.device)
    network = network.to(memory_format=torch.channels_last)
    initial = copy.deepcopy(network.state_dict())
    if config.model.compile:
        network.compile()
    model = average_gradients(network)
    _settle_buckets(model, (2, len(corpus.bands), view_size_px, view_size_px), world.device)
    network.load_state_dict(initial)
    return model


def _settle_buckets(
    model: DistributedDataParallel, shape: tuple[int, ...], device: torch.device
) -> None:
    """Let DDP do now what it does in its first backward passes: arrange its gradient buckets.

    The arrangement decides the order of sums. Were it left to the first real step, a resumed run
    would take that step in another order than an unbroken one, and differ in the last bits.
    """
    for _ in range(2):
        _, projections = model(torch.zeros(shape, device=device))
        projections.sum().backward()
    model.zero_grad(set_to_none=True)


def count_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the steps of the whole run."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def describe_corpus(corpus: Corpus, view_size_px: int) -> dict[str, Any]:
    """Return what a checkpoint remembers of its training patches."""
    return {
        "sources": list(corpus.sources),
        "simulated": corpus.simulated,
        "fingerprint": corpus.fingerprint,
        "num_samples": corpus.num_samples,
        "bands": list(corpus.bands),
        "view_size_px": view_size_px,
        "normalisation": corpus.normalisation,
    }


def _refuse_other_run(run: Run, manifest: CheckpointManifest) -> None:
    if manifest.config_hash != config_hash(run.config):
        before = binding_settings(from_plain(TrainConfig, manifest.config))
        lines = differing_settings(before, binding_settings(run.config))
        raise ValueError(
            f"run_dir {run.run_dir} holds a run of other settings ({'; '.join(lines)}); "
            "give another run_dir, or the settings it was started with"
        )
    if manifest.corpus["fingerprint"] != run.corpus.fingerprint:
        raise ValueError(
            f"run_dir {run.run_dir} was trained on other shards (fingerprint "
            f"{manifest.corpus['fingerprint']}, now {run.corpus.fingerprint}); give another run_dir"
        )
