"""The pretrained encoder of a run folder with its settings; for evaluation and export.

Only a checkpoint whose every byte matches its manifest is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simclr.checkpoint.manager import load_state, newest_valid
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    CheckpointManifest,
    folder_name,
    read_checkpoint_manifest,
    step_of,
    verify,
)
from simclr.config import TrainConfig
from simclr.config_io import from_plain
from simclr.model.simclr import build_encoder


@dataclass(frozen=True, slots=True)
class Pretrained:
    """An encoder in evaluation mode, with its origin.

    Attributes:
        encoder: views (B, C, S, S) to h (B, width).
        config: settings of the run.
        checkpoint: folder it was loaded from.
        manifest: of that checkpoint.
    """

    encoder: nn.Module
    config: TrainConfig
    checkpoint: Path
    manifest: CheckpointManifest

    @property
    def step(self) -> int:
        """Optimizer steps behind these weights."""
        return self.manifest.step

    @property
    def normalisation(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean and std per source and band, in stored values."""
        table: dict[str, dict[str, dict[str, float]]] = self.manifest.dataset["normalisation"]
        return table

    @property
    def dataset(self) -> dict[str, Any]:
        """Sources, fingerprint, number of samples and simulated flag of the training patches."""
        return self.manifest.dataset

    @property
    def view_size_px(self) -> int:
        """Side of the views the encoder was trained on."""
        return int(self.manifest.dataset["view_size_px"])


def load_pretrained(run_dir: Path, device: torch.device, step: int = 0) -> Pretrained:
    """Load the encoder of a checkpoint of a run.

    Args:
        run_dir: run folder.
        device: where it goes.
        step: of the checkpoint; 0 takes the newest valid one.

    Raises:
        ValueError: the folder holds no such checkpoint, or none that is valid.
    """
    folder = _checkpoint_of(run_dir, step) if step else newest_valid(run_dir)
    if folder is None:
        raise ValueError(f"{run_dir} holds no checkpoint; pretrain first, or correct run=")
    manifest = read_checkpoint_manifest(folder)
    config = from_plain(TrainConfig, manifest.config)
    encoder = build_encoder(config.model, len(config.data.bands))
    encoder.load_state_dict(load_state(folder, device)["encoder"])
    encoder.to(device).eval().requires_grad_(False)
    return Pretrained(encoder, config, folder, manifest)


def saved_steps(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints of a run, valid or not, in order."""
    return sorted(map(step_of, (run_dir / CHECKPOINTS).glob(FOLDER_PATTERN)))


def _checkpoint_of(run_dir: Path, step: int) -> Path:
    folder = run_dir / CHECKPOINTS / folder_name(step)
    if not folder.is_dir():
        there = ", ".join(map(str, saved_steps(run_dir))) or "none"
        raise ValueError(f"{run_dir} has no checkpoint of step {step}; there are: {there}")
    verify(folder)
    return folder
