"""The arms of each study and the pretraining runs that they make with every seed.

Called by simclr-study and by its report. An arm's folder depends on its name and seed alone, so the
same command finds what has been done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from jobs.config import StudyConfig, StudyName
from preprocess.shards.manifest import read_manifest
from simclr.augment.operations import NINE, USUAL_ORDER
from simclr.config import TrainConfig, require
from simclr.config_io import from_plain, to_plain


def count_patches(shards: Iterable[str]) -> int:
    """Return the patches of packed folders, whatever split they are of.

    Raises:
        ValueError: a folder holds no packed source.
    """
    return sum(read_manifest(Path(folder)).rows for folder in shards)


def most_steps(run: TrainConfig, patches: int) -> int:
    """Return an upper bound: patches of other splits count here, and are not trained on."""
    steps = run.epochs * (round(patches * run.data.fraction) // run.data.global_batch_size)
    return min(steps, run.max_steps or steps)


# Figure 3 of the study of 2021.
RATES = (1e-4, 5e-4, 1e-3, 1e-2, 3.5e-2, 5e-2)
# Each optimiser has a grid about its usual rates: one rate for all would decide the comparison.
OPTIMIZER_RATES = {
    "adam": (1e-4, 5e-4, 1e-3),
    "adamw": (1e-4, 5e-4, 1e-3),
    "sgd": (1e-2, 5e-2, 1e-1),
    "lars": (0.1, 0.3, 1.0),
}
# The four presets that the study ran beside its couplets; the first is the reference.
WHOLE = ("none", "all", "geometric", "pixel")
RUNS = "runs"
# Of these, curves of loss and probe are drawn. The others train on other views or on other labels.
CURVES = (StudyName.optimizer, StudyName.rate, StudyName.batch_size, StudyName.temperature)
PROBES = 10  # of a run, about


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice of settings.

    Attributes:
        name: in tables and folders.
        changes: dotted key to plain value.
    """

    name: str
    changes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One pretraining of a study.

    Attributes:
        arm: its name.
        seed: of the study.
        config: settings of the pretraining.
    """

    arm: str
    seed: int
    config: TrainConfig


def arms_of(config: StudyConfig) -> list[Arm]:
    """Return the arms that are asked for, the reference first.

    Raises:
        ValueError: an arm is unknown.
    """
    named = {arm.name: arm for arm in _all_arms(config)}
    unknown = [name for name in config.arms if name not in named]
    require(
        not unknown,
        f"arms holds {', '.join(unknown)}; study={config.study.value} has {', '.join(named)}",
    )
    return [arm for name, arm in named.items() if not config.arms or name in config.arms]


def runs_of(config: StudyConfig) -> list[StudyRun]:
    """Return every pretraining of the study: all arms with the first seed, then with the next.

    A study that is cut short then has whole seeds, which can be compared.

    Raises:
        ValueError: the settings of an arm are refused, or there are more than ``max_runs``.
    """
    arms = arms_of(config)
    count = len(arms) * len(config.seeds)
    require(
        count <= config.max_runs,
        f"the arms and seeds are {count} runs, more than max_runs={config.max_runs}; raise it, or "
        "name arms=[...]",
    )
    runs = [
        StudyRun(arm.name, seed, _settings(config, arm, seed))
        for seed in config.seeds
        for arm in arms
    ]
    return _probed(config, runs) if config.study in CURVES else runs


def couplet_name(first: str, second: str) -> str:
    """Return the name of a couplet's arm: its operations in the order of application."""
    return "+".join(sorted((first, second), key=USUAL_ORDER.index))


def _settings(config: StudyConfig, arm: Arm, seed: int) -> TrainConfig:
    known = {entry.name for entry in fields(TrainConfig)}
    plain = {key: value for key, value in to_plain(config).items() if key in known}
    folder = Path(config.output, RUNS, arm.name.replace(" ", "-"), f"seed-{seed}")
    for key, value in {**arm.changes, "seed": seed, "run_dir": str(folder)}.items():
        *parents, last = key.split(".")
        level = plain
        for name in parents:
            level = level[name]
        level[last] = value
    return from_plain(TrainConfig, plain)


def _probed(config: StudyConfig, runs: list[StudyRun]) -> list[StudyRun]:
    """Probe runs while they train, unless the user has chosen how: a loss is no measure."""
    if config.monitor.shards or not (config.shards and config.tasks):
        return runs
    patches = count_patches(config.shards)
    labelled = config.labelled or config.shards[0]
    probed = []
    for run in runs:
        every = max(1, math.ceil(most_steps(run.config, patches) / PROBES))
        monitor = replace(config.monitor, shards=labelled, task=config.tasks[0], every_steps=every)
        probed.append(replace(run, config=replace(run.config, monitor=monitor)))
    return probed


def _all_arms(config: StudyConfig) -> list[Arm]:
    match config.study:
        case StudyName.augmentation:
            return [*(_preset_arm(name, []) for name in WHOLE), *_couplets()]
        case StudyName.optimizer:
            return _optimizer_arms(config.died_after_steps)
        case StudyName.rate:
            return _varied("optim.learning_rate", RATES)
        case StudyName.labels:
            return [Arm("as set", {})]
        case StudyName.batch_size:
            return _varied("data.global_batch_size", (32, 64, 128, 256, 512))
        case StudyName.temperature:
            return _varied("loss.temperature", (0.05, 0.1, 0.2, 0.5, 1.0))
        case StudyName.published:
            return []


def _couplets() -> list[Arm]:
    pairs = [couplet_name(*pair) for pair in combinations(NINE, 2)]
    # a list is always applied, whole and in its order: the order is part of the arm
    return [_preset_arm("list", pair.split("+"), pair) for pair in pairs]


def _preset_arm(preset: str, operations: list[str], name: str = "") -> Arm:
    changes = {"preset": preset, "operations": operations, "couplets": []}
    return Arm(name or preset, {f"augment.{key}": value for key, value in changes.items()})


def _optimizer_arms(died_after_steps: int) -> list[Arm]:
    proper = [
        Arm(f"{name} {rate:g}", {"optim.name": name, "optim.learning_rate": rate})
        for name, rates in OPTIMIZER_RATES.items()
        for rate in rates
    ]
    # what figure 2 compared adam with: no warm-up, and a cosine that ended in the first epoch
    dead = {"schedule": "cosine", "decay_steps": died_after_steps, "warmup_epochs": 0.0}
    plain = {"name": "sgd", "learning_rate": OPTIMIZER_RATES["sgd"][1], **dead}
    return [*proper, Arm("sgd 2021", {f"optim.{key}": value for key, value in plain.items()})]


def _varied(key: str, values: tuple[float, ...]) -> list[Arm]:
    return [Arm(f"{value:g}", {key: value}) for value in values]
