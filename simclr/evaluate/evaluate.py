"""A run folder and labelled shards come in; scores beside controls go out as evaluation.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from simclr.augment.views import ViewMaker
from simclr.checkpoint.manifest import STATE_NAME
from simclr.checkpoint.pretrained import load_pretrained
from simclr.config import AugmentConfig, WorldConfig, require
from simclr.corpus import open_corpus
from simclr.evaluate.attempts import Attempt, list_attempts
from simclr.evaluate.bootstrap import Blocks, choose_blocks, resamples
from simclr.evaluate.candidates import Candidate, open_candidates
from simclr.evaluate.comparison import score_trials
from simclr.evaluate.config import EvaluateConfig, Protocol
from simclr.evaluate.features import FeatureCache, Features, store_features
from simclr.evaluate.finetune import finetune, predict
from simclr.evaluate.patches import Patches
from simclr.evaluate.ranking import Indices
from simclr.evaluate.ranks import dealt, meet
from simclr.evaluate.report import FOLDER_NAME, JSON_NAME, write_report
from simclr.evaluate.setting import Setting
from simclr.evaluate.splits import Splits, make_splits
from simclr.evaluate.summary import summarise
from simclr.evaluate.symmetry import averaged
from simclr.evaluate.task import Task, open_task
from simclr.evaluate.trials import Entry, Subject, Trial, judge, try_knn, try_probe
from simclr.world import Launch, World, open_world

# Raise it when a control or the plain view changes, so that features stored before are not used.
FEATURES_VERSION = 1
_BOOTSTRAP_SEED = 0
# Ranks wait for the slowest of their trials, not for a step: a day.
_TIMEOUT_S = 24 * 3600


def evaluate(config: EvaluateConfig, progress: bool = True, launch: Launch | None = None) -> Path:
    """Score a run's encoder on a labelled task, beside encoders that learnt nothing.

    All ranks take features and fit classifiers; the main one scores and writes.

    Args:
        config: run, shards, task and protocol.
        progress: draw a bar on a terminal.
        launch: how this process was started among others; None for torchrun's, or for one alone.

    Returns:
        The path of ``RUN/evaluation.json``; ``RUN/evaluation.md`` lies beside it.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.shards), "shards is empty; give a packed folder, shards=SHARDS")
    with open_world(WorldConfig(timeout_s=_TIMEOUT_S), launch) as world:
        setting, tested = open_setting(config, world.device)
        candidates = open_candidates(config, setting.pretrained, world.device)
        patches = _patches(setting, world.device)
        cache = _cache(setting, patches)
        _store(setting, candidates, patches, cache, world, progress=progress)
        trials = _trials(setting, candidates, patches, cache, world, progress=progress)
        if world.is_main:
            counts = resamples(setting.blocks, config.bootstrap, _BOOTSTRAP_SEED)
            rows = score_trials(trials, setting.task.kind, tested, counts)
            features = cache.stored(candidates[0].features_name, len(setting.task.ids))
            write_report(Path(config.run), summarise(setting, rows, features))
        meet(world)
    return Path(config.run) / JSON_NAME


def open_setting(config: EvaluateConfig, device: torch.device) -> tuple[Setting, Indices]:
    """Load the encoder and the task and fix the splits; return also the tested samples (T,)."""
    pretrained = load_pretrained(Path(config.run), device, config.step)
    corpus = open_corpus([config.shards], pretrained.config.data.bands)
    task = open_task(corpus, config.task, balanced=config.balanced)
    splits = make_splits(task, config.seeds, config.split)
    blocks, tested = _test_blocks(task, splits)
    return Setting(config, pretrained, corpus, task, splits, blocks), tested


def _test_blocks(task: Task, splits: Splits) -> tuple[Blocks, Indices]:
    """Return what the bootstrap draws, and the samples (T,) that any seed tests."""
    tested = np.unique(np.concatenate([split.test for split in splits.by_seed]))
    units = {"tile": task.tiles, "block": task.blocks, "place": task.places}
    return choose_blocks({name: of[tested] for name, of in units.items()}, len(tested)), tested


def _patches(setting: Setting, device: torch.device) -> Patches:
    """Return all labelled patches."""
    # 0 keeps the grid of the patches at hand: the ground resolution is what an encoder has learnt
    size_px = setting.pretrained.config.augment.view_size_px
    augment = AugmentConfig(preset="none", view_size_px=size_px)
    maker = ViewMaker(setting.corpus, augment, 0, device)
    task, rows = setting.task, np.arange(setting.corpus.num_samples)
    return Patches(setting.corpus, maker, rows, task.truth, task.kind, device)


def _cache(setting: Setting, patches: Patches) -> FeatureCache:
    corpus, pretrained, config = setting.corpus, setting.pretrained, setting.config
    return FeatureCache(
        Path(config.run) / FOLDER_NAME / "features" / f"{setting.task.name}-{corpus.fingerprint}",
        {
            "version": FEATURES_VERSION,
            "torch": torch.__version__,
            "device": patches.device.type,
            "weights": pretrained.manifest.files[STATE_NAME]["sha256"],
            "others": [_checksum(Path(other)) for other in config.others],
            "shards": corpus.fingerprint,
            "samples": hashlib.sha256(corpus.sample_id.tobytes()).hexdigest(),
            "bands": corpus.bands,
            "view_size_px": patches.maker.view_size_px,
            "test_time": config.test_time,
        },
    )


def _checksum(other: Path) -> str:
    """Return what changes when the weights of another encoder do."""
    inside = (path for path in other.rglob("*") if path.suffix in (".pt", ".safetensors"))
    files = [other] if other.is_file() else sorted(inside)
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _store(
    setting: Setting,
    candidates: list[Candidate],
    patches: Patches,
    cache: FeatureCache,
    world: World,
    *,
    progress: bool,
) -> None:
    """Leave the features of all labelled samples in the cache, taken in one pass if missing."""
    config = setting.config
    embedders = {
        one.features_name: averaged(one.embed) if config.test_time else one.embed
        for one in candidates
    }

    def views(rows: Indices) -> Iterable[Tensor]:
        """Start a pass over some samples."""
        return patches.only(rows).in_order(config.batch_size)

    store_features(cache, embedders, views, len(patches.rows), world, progress=progress)


def _trials(
    setting: Setting,
    candidates: list[Candidate],
    patches: Patches,
    cache: FeatureCache,
    world: World,
    *,
    progress: bool,
) -> list[Trial]:
    """Try every candidate under every protocol on every split that makes a difference to it."""
    attempts = list_attempts(setting, candidates)
    share = -(-len(attempts) // world.size)
    bar = tqdm(total=share, desc="probes", unit="fit", disable=None if progress else True)

    @lru_cache(maxsize=1)  # attempts on one candidate follow each other; all features may be large
    def features(name: str) -> Features:
        """Return the features of a candidate."""
        return cache.stored(name, len(patches.rows))

    def attempt_one(attempt: Attempt) -> Trial:
        """Return the trial of one attempt."""
        found = (
            _tune(setting, attempt, patches)
            if attempt.is_finetune
            else _ask(setting, attempt, features(attempt.candidate.features_name))
        )
        bar.update()
        return found

    with bar:
        return dealt(attempts, attempt_one, world)


def _ask(setting: Setting, attempt: Attempt, features: Features) -> Trial:
    """Fit a classifier to features."""
    subject = Subject(attempt.encoder, attempt.seed, features, attempt.fraction)
    if attempt.protocol is Protocol.probe:
        return try_probe(subject, setting.task, attempt.split)
    return try_knn(subject, setting.task, attempt.split, setting.config.neighbours)


def _tune(setting: Setting, attempt: Attempt, patches: Patches) -> Trial:
    """Train a network."""
    split, config = attempt.split, setting.config
    network = attempt.candidate.network
    if network is None:
        raise ValueError(f"{attempt.encoder} is no network that can be trained")
    train, validation = patches.only(split.train), patches.only(split.validation)
    tuned = finetune(network, train, validation, config.finetune, attempt.protocol, attempt.seed)
    scores = (
        predict(tuned, validation, test_time=config.test_time),
        predict(tuned, patches.only(split.test), test_time=config.test_time),
    )
    entry = Entry(attempt.encoder, attempt.seed, attempt.fraction)
    return judge(attempt.protocol.value, entry, setting.task, split, scores, tuned.choices())
