"""The encoders of an evaluation, including controls, their jobs and results.

Every encoder sees the same views, normalised with the statistics of the evaluated shards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simclr.checkpoint.manifest import CHECKPOINTS, STATE_NAME
from simclr.config import require
from simclr.evaluation.config import (
    CONTROLS,
    FROM_SCRATCH,
    IMAGE_STATISTICS,
    ON_FEATURES,
    PRETRAINED,
    RANDOM_CONVOLUTIONS,
    RANDOM_ENCODER,
    EvaluateConfig,
    Protocol,
)
from simclr.evaluation.features import (
    Embedder,
    Features,
    LabelledPatches,
    RandomConvolutions,
    image_statistics,
    random_encoder,
)
from simclr.evaluation.metrics import BoolArray, Indices, Predictions
from simclr.evaluation.splits import Split, Splits, label_subset
from simclr.evaluation.task import Task
from simclr.model.pretrained import Pretrained, load_encoder_file, load_pretrained

_WEIGHTS = (".pt", ".pth", ".safetensors")  # suffixes of files of weights


@dataclass(frozen=True, slots=True)
class EvaluatedEncoder:
    """An encoder, or a control, of the table.

    ``embed`` maps views (B, C, S, S) to features (B, D), in evaluation mode; None if its features
    are stored and nothing is to be trained.
    """

    name: str  # row name
    seed: int | None  # seed that generated it, if any
    embed: Embedder | None
    weights: str = ""  # checksum of the loaded weights, if any
    checkpoint: str = ""  # name of the run's checkpoint it was loaded from, if any

    @property
    def features_name(self) -> str:
        """Name of its features; those of a checkpoint are shared by all evaluations of the run."""
        if self.weights:  # another encoder may be named like a checkpoint or a control
            return self.checkpoint or f"other {self.name}"
        return self.name if self.seed is None else f"{self.name} {self.seed}"

    @property
    def network(self) -> nn.Module | None:
        """The encoder if it is trainable, else None; statistics and random filters are not."""
        network = self.embed if isinstance(self.embed, nn.Module) else None
        return None if self.name == RANDOM_CONVOLUTIONS else network


@dataclass(frozen=True, slots=True)
class EvalJob:
    """One classifier to fit on an encoder's features, or to train together with the encoder."""

    encoder: EvaluatedEncoder
    protocol: Protocol
    fraction: float  # share of the training labels
    seed: int  # seed of the split, label subset and initial weights
    split: Split  # training part reduced to the fraction

    @property
    def row(self) -> str:
        """Row name: ``FROM_SCRATCH`` if all of a random encoder is trained, else the encoder's."""
        whole = self.protocol is Protocol.finetune_all and self.encoder.name == RANDOM_ENCODER
        return FROM_SCRATCH if whole else self.encoder.name


@dataclass(frozen=True, slots=True)
class EvalData:
    """The data and settings shared by all jobs."""

    task: Task
    features: Callable[[str], Features]  # (N, D), by EvaluatedEncoder.features_name
    config: EvaluateConfig
    patches: LabelledPatches | None = None  # all labelled ones; None if nothing is fine-tuned


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Predictions of one job for the test samples of its split."""

    encoder: str  # row name in the report
    protocol: str  # value of a Protocol
    seed: int  # seed of the split, the label subset and a random control
    test: Indices  # (n,) predicted samples
    targets: BoolArray  # (n, C)
    predictions: Predictions  # (n, C)
    choices: dict[str, Any]  # choices made on validation, for the report
    fraction: float = 1.0  # share of the training labels


def eval_jobs(
    encoders: Sequence[EvaluatedEncoder], config: EvaluateConfig, task: Task, splits: Splits
) -> list[EvalJob]:
    """Return all jobs of an evaluation, in descending order of label fraction.

    An encoder without a seed is evaluated once if seeds make no difference, that is, if a
    classifier is fitted on its features and all labels of a fixed split.
    """
    jobs = []
    for fraction in sorted(set(config.fractions), reverse=True):
        subsets = {
            seed: replace(split, train=label_subset(task.targets, split.train, fraction, seed))
            for seed, split in zip(config.seeds, splits.by_seed, strict=True)
        }
        for protocol in config.protocols:
            trained = protocol not in ON_FEATURES
            varies = splits.redrawn or fraction < 1 or trained
            seeds = config.seeds if varies else config.seeds[:1]
            jobs += [
                EvalJob(encoder, protocol, fraction, seed, subsets[seed])
                for encoder in encoders
                if encoder.network is not None or not trained
                for seed in (seeds if encoder.seed is None else [encoder.seed])
            ]
    return jobs


def open_encoders(
    config: EvaluateConfig, pretrained: Pretrained, device: torch.device
) -> list[EvaluatedEncoder]:
    """Return the run's encoder, the others named in the settings, and the controls.

    Raises:
        ValueError: another encoder cannot be loaded, or reads other bands than the run's.
    """
    model, bands = pretrained.config.model, pretrained.config.data.bands
    encoders = [of_checkpoint(PRETRAINED, pretrained)]
    for name, path in _named(config.others).items():
        encoders.append(_other(name, path, bands, device))
    if config.controls:
        for seed in config.seeds:
            network = random_encoder(model, len(bands), seed, device)
            encoders.append(EvaluatedEncoder(RANDOM_ENCODER, seed, network))
        for seed in config.seeds:
            filters = RandomConvolutions(len(bands), seed).to(device)
            encoders.append(EvaluatedEncoder(RANDOM_CONVOLUTIONS, seed, filters))
        encoders.append(EvaluatedEncoder(IMAGE_STATISTICS, None, image_statistics))
    return encoders


def of_checkpoint(name: str, pretrained: Pretrained) -> EvaluatedEncoder:
    """Return the encoder of a checkpoint under this name."""
    weights = str(pretrained.manifest.files[STATE_NAME]["sha256"])
    return EvaluatedEncoder(name, None, pretrained.encoder, weights, pretrained.checkpoint.name)


def _other(name: str, path: Path, bands: Sequence[str], device: torch.device) -> EvaluatedEncoder:
    if (path / CHECKPOINTS).is_dir():
        run = load_pretrained(path, device)
        require(
            run.config.data.bands == list(bands),
            f"{path} was trained on {', '.join(run.config.data.bands)}, the run on "
            f"{', '.join(bands)}; evaluate it by itself",
        )
        encoder = run.encoder
    else:
        encoder = load_encoder_file(path, bands, device)
    # path, size and time of modification stand in for a checksum of the weights
    inside = (file for file in path.rglob("*") if file.suffix in _WEIGHTS)
    files = [path] if path.is_file() else sorted(inside)
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return EvaluatedEncoder(name, None, encoder, hashlib.sha256(repr(facts).encode()).hexdigest())


def _named(others: Sequence[str]) -> dict[str, Path]:
    """Return paths by name: the first unambiguous one of name, parent/name and path.

    Files of weights are named without their suffix; a folder may have a dot in its name.
    """
    paths = list(dict.fromkeys(map(Path, others)))
    names = [path.stem if path.suffix in _WEIGHTS else path.name for path in paths]
    choices = [
        (name, f"{path.parent.name}/{name}", str(path))
        for name, path in zip(names, paths, strict=True)
    ]
    named = {}
    for path, own in zip(paths, choices, strict=True):
        alone = (name for name in own[:2] if sum(name in each for each in choices) == 1)
        named[next(alone, own[2])] = path
    reserved = re.compile("|".join([PRETRAINED, *CONTROLS, r"step \d+"]))  # names of other rows
    return {
        f"{name} (other)" if reserved.fullmatch(name) else name: path
        for name, path in named.items()
    }
