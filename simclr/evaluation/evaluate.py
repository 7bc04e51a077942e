"""A run folder and labelled shards come in; scores beside controls go out as evaluation.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from simclr.checkpoint.manifest import FOLDER_PATTERN, folder_name
from simclr.checkpoint.pretrained import saved_steps
from simclr.config import WorldConfig
from simclr.config_io import to_plain
from simclr.distributed import TIMEOUT_S, Rendezvous, dealt, distributed_context, meet
from simclr.evaluation.baselines import Candidate, open_candidates
from simclr.evaluation.bootstrap import BOOTSTRAP_SEED, resamples
from simclr.evaluation.comparison import score_trials
from simclr.evaluation.config import CHEAP, EvaluateConfig, Protocol
from simclr.evaluation.features import FeatureCache, Features, averaged, store_features
from simclr.evaluation.finetune import finetune, predict
from simclr.evaluation.metrics import Indices
from simclr.evaluation.report import FOLDER_NAME, own_path, write_report
from simclr.evaluation.session import Session, Setting, open_session
from simclr.evaluation.splits import Split, label_subset
from simclr.evaluation.summary import summarise
from simclr.evaluation.trials import Entry, Subject, Trial, judge, try_knn, try_probe


@dataclass(frozen=True, slots=True)
class Attempt:
    """One classifier to be fitted.

    Attributes:
        candidate: whose features or weights it starts from.
        protocol: how.
        fraction: share of the training labels.
        seed: of split, label subset and first weights.
        split: with the training labels that the fraction leaves; validation and test are whole.
    """

    candidate: Candidate
    protocol: Protocol
    fraction: float
    seed: int
    split: Split

    @property
    def encoder(self) -> str:
        """Name of the row that it belongs to."""
        return self.candidate.name_under(self.protocol)

    @property
    def is_finetune(self) -> bool:
        """Whether a network is trained."""
        return self.protocol not in CHEAP


def list_attempts(setting: Setting, candidates: Sequence[Candidate]) -> list[Attempt]:
    """Return all attempts of an evaluation, the whole labels first.

    A candidate without a seed is tried once where no seed changes anything: features on one split
    with all labels.
    """
    config = setting.config
    return [
        Attempt(candidate, protocol, fraction, seed, split)
        for fraction in sorted(set(config.fractions), reverse=True)
        for protocol in config.protocols
        for candidate in candidates
        if candidate.network is not None or protocol in CHEAP
        for seed, split in _splits_of(setting, candidate, protocol, fraction)
    ]


def _splits_of(
    setting: Setting, candidate: Candidate, protocol: Protocol, fraction: float
) -> list[tuple[int, Split]]:
    pairs = [
        (seed, replace(split, train=label_subset(setting.task.truth, split.train, fraction, seed)))
        for seed, split in zip(setting.config.seeds, setting.splits.by_seed, strict=True)
    ]
    if candidate.seed is not None:
        return [pair for pair in pairs if pair[0] == candidate.seed]
    trained = protocol not in CHEAP
    return pairs if setting.splits.redrawn or fraction < 1 or trained else pairs[:1]


# Raise it when a control or the plain view changes, so that features stored before are not used.
FEATURES_VERSION = 2


def open_cache(session: Session, candidates: Sequence[Candidate]) -> FeatureCache:
    """Return where the features of candidates lie, those of earlier evaluations among them."""
    setting, patches = session.setting, session.patches
    dataset, config = setting.dataset, setting.config
    return FeatureCache(
        Path(config.run) / FOLDER_NAME / "features" / setting.name,
        {
            "version": FEATURES_VERSION,
            "torch": torch.__version__,
            "device": patches.device.type,
            "model": to_plain(setting.pretrained.config.model),
            "shards": dataset.fingerprint,
            "samples": hashlib.sha256(dataset.sample_id.tobytes()).hexdigest(),
            "bands": dataset.bands,
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
    if session.context.is_main:
        _forget(cache, Path(config.run))
    store_features(cache, embedders, views, count, session.context, progress=session.progress)


def try_all(session: Session, candidates: Sequence[Candidate]) -> list[Trial]:
    """Try every candidate under every protocol on every split that makes a difference to it."""
    cache, count = open_cache(session, candidates), len(session.patches.rows)
    attempts = list_attempts(session.setting, candidates)
    share = -(-len(attempts) // session.context.size)
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
        return dealt(attempts, attempt_one, session.context)


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


def evaluate(
    config: EvaluateConfig, progress: bool = True, rendezvous: Rendezvous | None = None
) -> Path:
    """Score a run's encoder on a labelled task, beside encoders that learnt nothing.

    All ranks take features and fit classifiers; the main one scores and writes.

    Args:
        config: run, shards, task and protocol.
        progress: draw a bar on a terminal.
        rendezvous: of this process with the other ranks; None: torchrun's, or one process alone.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT.json``; ``RUN/evaluation.json`` and ``.md``
        hold all evaluations of the run.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S), rendezvous) as context:
        session = open_session(config, context, progress=progress)
        setting = session.setting
        candidates = open_candidates(config, setting.pretrained, context.device)
        take_features(session, candidates)
        trials = try_all(session, candidates)
        if context.is_main:
            counts = resamples(setting.blocks, config.bootstrap, BOOTSTRAP_SEED)
            rows = score_trials(trials, setting.task.kind, setting.tested, counts)
            cache = open_cache(session, candidates)
            features = cache.stored(candidates[0].features_name, len(setting.task.ids))
            write_report(Path(config.run), summarise(setting, rows, features))
        meet(context)
    return own_path(Path(config.run), setting.name)
