"""Candidates of an evaluation come in; their features are stored, and their trials go out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from simclr.checkpoint.manifest import FOLDER_PATTERN, folder_name
from simclr.checkpoint.pretrained import saved_steps
from simclr.evaluate.attempts import Attempt, list_attempts
from simclr.evaluate.candidates import Candidate
from simclr.evaluate.config import Protocol
from simclr.evaluate.features import FeatureCache, Features, store_features
from simclr.evaluate.finetune import finetune, predict
from simclr.evaluate.ranking import Indices
from simclr.evaluate.ranks import dealt
from simclr.evaluate.report import FOLDER_NAME
from simclr.evaluate.session import Session
from simclr.evaluate.setting import Setting
from simclr.evaluate.symmetry import averaged
from simclr.evaluate.trials import Entry, Subject, Trial, judge, try_knn, try_probe
from simclr.settings import to_plain

# Raise it when a control or the plain view changes, so that features stored before are not used.
FEATURES_VERSION = 2


def open_cache(session: Session, candidates: Sequence[Candidate]) -> FeatureCache:
    """Return where the features of candidates lie, those of earlier evaluations among them."""
    setting, patches = session.setting, session.patches
    corpus, config = setting.corpus, setting.config
    return FeatureCache(
        Path(config.run) / FOLDER_NAME / "features" / setting.name,
        {
            "version": FEATURES_VERSION,
            "torch": torch.__version__,
            "device": patches.device.type,
            "model": to_plain(setting.pretrained.config.model),
            "shards": corpus.fingerprint,
            "samples": hashlib.sha256(corpus.sample_id.tobytes()).hexdigest(),
            "bands": corpus.bands,
            "view_size_px": patches.maker.view_size_px,
            "test_time": config.test_time,
        },
        {one.features_name: one.weights for one in candidates},
    )


def take_features(session: Session, candidates: Sequence[Candidate]) -> None:
    """Leave the features of all labelled samples in the cache, taken in one pass if missing."""
    config, patches = session.setting.config, session.patches
    embedders = {
        one.features_name: averaged(one.embed) if config.test_time else one.embed
        for one in candidates
        if one.embed is not None
    }

    def views(rows: Indices) -> Iterable[Tensor]:
        """Start a pass over some samples."""
        return patches.only(rows).in_order(config.batch_size)

    cache, count = open_cache(session, candidates), len(patches.rows)
    if session.world.is_main:
        _forget(cache, Path(config.run))
    store_features(cache, embedders, views, count, session.world, progress=session.progress)


def try_all(session: Session, candidates: Sequence[Candidate]) -> list[Trial]:
    """Try every candidate under every protocol on every split that makes a difference to it."""
    cache, count = open_cache(session, candidates), len(session.patches.rows)
    attempts = list_attempts(session.setting, candidates)
    share = -(-len(attempts) // session.world.size)
    bar = tqdm(total=share, desc="probes", unit="fit", disable=None if session.progress else True)

    @lru_cache(maxsize=1)  # attempts on one candidate follow each other; all features may be large
    def features(name: str) -> Features:
        """Return the features of a candidate."""
        return cache.stored(name, count)

    def attempt_one(attempt: Attempt) -> Trial:
        """Return the trial of one attempt."""
        found = (
            _tune(session, attempt)
            if attempt.is_finetune
            else _ask(session.setting, attempt, features(attempt.candidate.features_name))
        )
        bar.update()
        return found

    with bar:
        return dealt(attempts, attempt_one, session.world)


def _forget(cache: FeatureCache, run_dir: Path) -> None:
    """Remove features of checkpoints that are gone: nothing would ever read them again."""
    saved = set(map(folder_name, saved_steps(run_dir)))
    for path in cache.folder.glob(f"{FOLDER_PATTERN}.npz"):
        if path.stem not in saved:
            path.unlink()


def _ask(setting: Setting, attempt: Attempt, features: Features) -> Trial:
    """Fit a classifier to features."""
    subject = Subject(attempt.encoder, attempt.seed, features, attempt.fraction)
    if attempt.protocol is Protocol.probe:
        return try_probe(subject, setting.task, attempt.split)
    return try_knn(subject, setting.task, attempt.split, setting.config.neighbours)


def _tune(session: Session, attempt: Attempt) -> Trial:
    """Train a network."""
    patches, split, config = session.patches, attempt.split, session.setting.config
    network = attempt.candidate.network
    if network is None:
        raise ValueError(f"{attempt.encoder} is no network that can be trained")
    train, validation = patches.only(split.train), patches.only(split.validation)
    tuned = finetune(network, train, validation, config.finetune, attempt.protocol, attempt.seed)
    scores = (
        predict(tuned, validation, test_time=config.test_time),
        predict(tuned, patches.only(split.test), test_time=config.test_time),
    )
    entry, task = Entry(attempt.encoder, attempt.seed, attempt.fraction), session.setting.task
    return judge(attempt.protocol.value, entry, task, split, scores, tuned.choices())
