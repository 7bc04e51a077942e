"""Settings of an evaluation come in; what it fixes goes out, with its patches and its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simclr.augment.views import ViewMaker
from simclr.checkpoint.pretrained import Pretrained, load_pretrained
from simclr.config import AugmentConfig, require
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.distributed import DistributedContext
from simclr.evaluation.bootstrap import Blocks, choose_blocks
from simclr.evaluation.config import EvaluateConfig
from simclr.evaluation.features import Patches
from simclr.evaluation.metrics import Indices
from simclr.evaluation.splits import Splits, make_splits
from simclr.evaluation.task import Task, open_task

PRETRAINED = "pretrained"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of which encoder, on which samples.

    Attributes:
        config: as the user gave it.
        pretrained: the encoder in question.
        dataset: the labelled samples alone.
        task: their truth.
        splits: one a seed.
        blocks: what the bootstrap draws, over the tested samples.
    """

    config: EvaluateConfig
    pretrained: Pretrained
    dataset: ShardDataset
    task: Task
    splits: Splits
    blocks: Blocks

    @property
    def name(self) -> str:
        """Under which everything of this task and these shards is kept."""
        return f"{self.task.name}-{self.dataset.fingerprint}"

    @property
    def tested(self) -> Indices:
        """Samples (T,) that any seed tests, sorted: those that ``blocks`` speaks of."""
        return self.splits.tested


@dataclass(frozen=True, slots=True)
class Session:
    """An evaluation under way.

    Attributes:
        setting: what is asked of which encoder.
        patches: all labelled ones.
        context: the ranks that share the work.
        progress: draw bars on a terminal.
    """

    setting: Setting
    patches: Patches
    context: DistributedContext
    progress: bool


def open_session(config: EvaluateConfig, context: DistributedContext, *, progress: bool) -> Session:
    """Load the encoder and the task, and fix the splits.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.shards), "shards is empty; give a packed folder, shards=SHARDS")
    setting = _open_setting(config, context.device)
    return Session(setting, _open_patches(setting, context.device), context, progress)


def blocks_to_draw(task: Task, splits: Splits) -> Blocks:
    """Return what the bootstrap draws: blocks of the samples that any seed tests."""
    tested = splits.tested
    units = {"tile": task.tiles, "block": task.blocks, "place": task.places}
    return choose_blocks({name: of[tested] for name, of in units.items()}, len(tested))


def _open_setting(config: EvaluateConfig, device: torch.device) -> Setting:
    pretrained = load_pretrained(Path(config.run), device, config.step)
    dataset = open_dataset([config.shards], pretrained.config.data.bands)
    task = open_task(dataset, config.task, balanced=config.balanced)
    splits = make_splits(task, config.seeds, config.split)
    return Setting(config, pretrained, dataset, task, splits, blocks_to_draw(task, splits))


def _open_patches(setting: Setting, device: torch.device) -> Patches:
    # 0 keeps the grid of the patches at hand: the ground resolution is what an encoder has learnt
    size_px = setting.pretrained.config.augment.view_size_px
    augment = AugmentConfig(preset="none", view_size_px=size_px)
    maker = ViewMaker(setting.dataset, augment, 0, device)
    task, rows = setting.task, np.arange(setting.dataset.num_samples)
    return Patches(setting.dataset, maker, rows, task.truth, task.kind, device)
