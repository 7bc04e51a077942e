"""A run folder and labelled shards come in; scores beside controls go out as evaluation.json."""

from __future__ import annotations

from pathlib import Path

from simclr.config import WorldConfig
from simclr.evaluate.bootstrap import BOOTSTRAP_SEED, resamples
from simclr.evaluate.candidates import open_candidates
from simclr.evaluate.comparison import score_trials
from simclr.evaluate.config import EvaluateConfig
from simclr.evaluate.ranks import TIMEOUT_S, meet
from simclr.evaluate.report import own_path, write_report
from simclr.evaluate.session import open_session
from simclr.evaluate.summary import summarise
from simclr.evaluate.trying import open_cache, take_features, try_all
from simclr.world import Launch, open_world


def evaluate(config: EvaluateConfig, progress: bool = True, launch: Launch | None = None) -> Path:
    """Score a run's encoder on a labelled task, beside encoders that learnt nothing.

    All ranks take features and fit classifiers; the main one scores and writes.

    Args:
        config: run, shards, task and protocol.
        progress: draw a bar on a terminal.
        launch: how this process was started among others; None for torchrun's, or for one alone.

    Returns:
        The path of ``RUN/evaluation/TASK-FINGERPRINT.json``; ``RUN/evaluation.json`` and ``.md``
        hold all evaluations of the run.

    Raises:
        ValueError: the run has no valid checkpoint, the shards lack a band or the task, or the
            labels make no task.
    """
    with open_world(WorldConfig(timeout_s=TIMEOUT_S), launch) as world:
        session = open_session(config, world, progress=progress)
        setting = session.setting
        candidates = open_candidates(config, setting.pretrained, world.device)
        take_features(session, candidates)
        trials = try_all(session, candidates)
        if world.is_main:
            counts = resamples(setting.blocks, config.bootstrap, BOOTSTRAP_SEED)
            rows = score_trials(trials, setting.task.kind, setting.tested, counts)
            cache = open_cache(session, candidates)
            features = cache.stored(candidates[0].features_name, len(setting.task.ids))
            write_report(Path(config.run), summarise(setting, rows, features))
        meet(world)
    return own_path(Path(config.run), setting.name)
