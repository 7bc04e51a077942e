"""A run folder and labelled shards come in; scores beside controls go out as evaluation.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from simclr.augment.views import ViewMaker
from simclr.checkpoint.manifest import STATE_NAME
from simclr.checkpoint.pretrained import load_pretrained
from simclr.config import AugmentConfig, require
from simclr.corpus import open_corpus
from simclr.evaluate.bootstrap import Blocks, choose_blocks, resamples
from simclr.evaluate.comparison import score_trials
from simclr.evaluate.config import EvaluateConfig
from simclr.evaluate.controls import (
    IMAGE_STATISTICS,
    RANDOM_CONVOLUTIONS,
    RANDOM_ENCODER,
    image_statistics,
    random_convolutions,
    random_encoder,
)
from simclr.evaluate.features import Embedder, FeatureCache, Features, load_features
from simclr.evaluate.ranking import Indices
from simclr.evaluate.report import FOLDER_NAME, write_report
from simclr.evaluate.splits import Split, Splits, make_splits
from simclr.evaluate.summary import PRETRAINED, Setting, summarise
from simclr.evaluate.task import Task, open_task
from simclr.evaluate.trials import KNN, PROBE, Subject, Trial, try_knn, try_probe
from simclr.loader import sequential_batches

# Raise it when a control or the plain view changes, so that features stored before are not used.
FEATURES_VERSION = 1
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row of the report with the seed that made it, None where no seed plays a part."""

    encoder: str
    seed: int | None

    @property
    def name(self) -> str:
        """Name of its features."""
        return self.encoder if self.seed is None else f"{self.encoder} {self.seed}"


def evaluate(config: EvaluateConfig, progress: bool = True) -> Path:
    """Score a run's newest encoder on a labelled task, beside encoders that learnt nothing.

    Args:
        config: run, shards, task and protocol.
        progress: draw a bar on a terminal while features are taken.

    Returns:
        The path of ``RUN/evaluation.json``; ``RUN/evaluation.md`` lies beside it.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.shards), "shards is empty; give a packed folder, shards=SHARDS")
    require(
        len(set(config.seeds)) == len(config.seeds),
        f"seeds is {config.seeds}; a seed given twice is no second opinion, leave it out",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretrained = load_pretrained(Path(config.run), device)
    corpus = open_corpus([config.shards], pretrained.config.data.bands)
    task = open_task(corpus, config.task)
    splits = make_splits(task, config.seeds)
    blocks, tested = _test_blocks(task, splits)
    setting = Setting(config, pretrained, corpus, task, splits, blocks)

    features = _features(setting, device, progress)
    trials = _trials(setting, features, progress)
    counts = resamples(blocks, config.bootstrap, _BOOTSTRAP_SEED)
    rows = score_trials(trials, task.kind, tested, counts)
    return write_report(Path(config.run), summarise(setting, rows))


def _test_blocks(task: Task, splits: Splits) -> tuple[Blocks, Indices]:
    """Return what the bootstrap draws, and the samples (T,) that any seed tests."""
    tested = np.unique(np.concatenate([split.test for split in splits.by_seed]))
    units = {"tile": task.tiles[tested], "place": task.places[tested]}
    return choose_blocks(units, len(tested)), tested


def _embedders(setting: Setting, device: torch.device) -> dict[_Candidate, Embedder]:
    """Return the encoder and its controls, in the order of the table."""
    model, num_bands = setting.pretrained.config.model, len(setting.corpus.bands)
    embedders: dict[_Candidate, Embedder] = {
        _Candidate(PRETRAINED, None): setting.pretrained.encoder
    }
    for seed in setting.config.seeds:
        encoder = random_encoder(model, num_bands, seed, device)
        embedders[_Candidate(RANDOM_ENCODER, seed)] = encoder
    for seed in setting.config.seeds:
        filters = random_convolutions(num_bands, seed, device)
        embedders[_Candidate(RANDOM_CONVOLUTIONS, seed)] = filters
    embedders[_Candidate(IMAGE_STATISTICS, None)] = image_statistics
    return embedders


def _features(setting: Setting, device: torch.device, progress: bool) -> dict[_Candidate, Features]:
    """Return features of all labelled samples, taken in one pass or found in the run folder."""
    corpus, pretrained, config = setting.corpus, setting.pretrained, setting.config
    # 0 keeps the grid of the patches at hand: the ground resolution is what an encoder has learnt
    size_px = pretrained.config.augment.view_size_px
    maker = ViewMaker(corpus, AugmentConfig(preset="none", view_size_px=size_px), 0, device)

    def views() -> Iterator[Tensor]:
        """Start a pass over the samples."""
        batches = sequential_batches(corpus, config.batch_size, device)
        return (maker.plain(batch) for batch in batches)

    cache = FeatureCache(
        Path(config.run) / FOLDER_NAME / "features" / f"{setting.task.name}-{corpus.fingerprint}",
        {
            "version": FEATURES_VERSION,
            "torch": torch.__version__,
            "device": device.type,
            "weights": pretrained.manifest.files[STATE_NAME]["sha256"],
            "shards": corpus.fingerprint,
            "samples": hashlib.sha256(corpus.sample_id.tobytes()).hexdigest(),
            "bands": corpus.bands,
            "view_size_px": maker.view_size_px,
        },
    )
    embedders = _embedders(setting, device)
    by_name = load_features(
        cache,
        {candidate.name: embedder for candidate, embedder in embedders.items()},
        views,
        corpus.num_samples,
        progress=progress,
    )
    return {candidate: by_name[candidate.name] for candidate in embedders}


def _trials(setting: Setting, features: dict[_Candidate, Features], progress: bool) -> list[Trial]:
    """Try every candidate on every split that makes a difference to it."""
    attempts = [
        (protocol, Subject(candidate.encoder, seed, rows), split)
        for protocol in (PROBE, KNN)
        for candidate, rows in features.items()
        for seed, split in _splits_of(candidate, setting)
    ]
    bar = tqdm(attempts, desc="probes", unit="fit", disable=None if progress else True)
    return [
        try_probe(subject, setting.task, split)
        if protocol == PROBE
        else try_knn(subject, setting.task, split, setting.config.neighbours)
        for protocol, subject, split in bar
    ]


def _splits_of(candidate: _Candidate, setting: Setting) -> list[tuple[int, Split]]:
    """Return seeds and splits: all of them only where the split itself is drawn by the seed."""
    pairs = list(zip(setting.config.seeds, setting.splits.by_seed, strict=True))
    if candidate.seed is not None:
        return [pair for pair in pairs if pair[0] == candidate.seed]
    return pairs if setting.splits.redrawn else pairs[:1]
