"""A small trained run on packed patches, made once for all tests that read one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from make_data import packed_arrays

from simclr.config import (
    CheckpointConfig,
    DataConfig,
    EncoderName,
    ModelConfig,
    Stem,
    TrainConfig,
    WorldConfig,
)
from simclr.data.loader import Batch
from simclr.monitoring.health import StepOutput
from simclr.train import Trainer, train, train_step


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and the shards it was trained on."""

    folder: Path
    shards: Path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> TrainedRun:
    """Train a ResNet-18 for two steps on 12 px patches of four classes; read it, do not write."""
    folder = tmp_path_factory.mktemp("trained")
    shards = packed_arrays(folder / "shards", 96, size_px=12, native=False)
    train(
        TrainConfig(
            shards=[str(shards)],
            run_dir=str(folder / "run"),
            max_steps=2,
            data=DataConfig(global_batch_size=8, bands=["B04", "B03", "B02", "B08"]),
            model=ModelConfig(encoder=EncoderName.resnet18, stem=Stem.small),
            checkpoint=CheckpointConfig(every_steps=100),
            world=WorldConfig(),
        )
    )
    return TrainedRun(folder / "run", shards)


@pytest.fixture
def skipping(monkeypatch):
    """Return a function that makes a training skip the update of these steps."""

    def skip(*steps: int) -> None:
        def step(trainer: Trainer, batch: Batch) -> StepOutput:
            level = trainer.views._level
            trainer.views._level = level * (math.nan if trainer.step + 1 in steps else 1)
            outcome = train_step(trainer, batch)
            trainer.views._level = level
            return outcome

        monkeypatch.setattr("simclr.train.train_step", step)

    return skip
