"""A study comes in, its arms go out: what each changes in the settings, under a name of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from jobs.config import StudyConfig, StudyName
from preprocess.shards.manifest import read_manifest
from simclr.augment.operations import NINE, USUAL_ORDER, Couplet
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
# The four arms that the study ran beside its couplets, by preset; the first is the reference.
WHOLE = ("none", "all", "geometric", "pixel")
RUNS = "runs"
# Of these, curves of loss and probe are drawn. The others train on other views or on other labels.
CURVES = (StudyName.optimizer, StudyName.rate, StudyName.batch_size, StudyName.temperature)
PROBES = 10  # of a run, about


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice of settings.

    Attributes:
        name: in tables.
        changes: dotted key to plain value.
        folder: of its runs; empty takes the name.
    """

    name: str
    changes: dict[str, Any]
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One pretraining of a study.

    Attributes:
        arm: its name.
        seed: of the study.
        run: settings.
    """

    arm: str
    seed: int
    run: TrainConfig


def arms_of(config: StudyConfig) -> list[Arm]:
    """Return the arms that are asked for, the reference first.

    Raises:
        ValueError: an arm is unknown.
    """
    return chosen(config, _all_arms(config))


def chosen(config: StudyConfig, arms: Sequence[Arm]) -> list[Arm]:
    """Return those of some arms that the user has named, or all.

    Raises:
        ValueError: a name is of none of them.
    """
    named = {arm.name: arm for arm in arms}
    unknown = [name for name in config.arms if name not in named]
    require(
        not unknown,
        f"arms holds {', '.join(unknown)}; study={config.study.value} has {', '.join(named)}",
    )
    return [arm for name, arm in named.items() if not config.arms or name in config.arms]


def members_of(config: StudyConfig) -> list[Member]:
    """Return every pretraining of the study, all arms with the first seed, then with the next.

    What is cut short so has whole seeds, which can be compared.

    Raises:
        ValueError: the settings of an arm are refused, or there are more than ``max_runs``.
    """
    arms = arms_of(config)
    check_count(config, len(arms) * len(config.seeds))
    return crossed(config, arms, config.seeds)


def crossed(config: StudyConfig, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Member]:
    """Return the pretrainings of some arms with some seeds, seed by seed."""
    members = [
        Member(arm.name, seed, _settings(config, arm, seed)) for seed in seeds for arm in arms
    ]
    return _probed(config, members) if config.study in CURVES else members


def check_count(config: StudyConfig, count: int) -> None:
    """Refuse more runs than ``max_runs``.

    Raises:
        ValueError: with the cure.
    """
    require(
        count <= config.max_runs,
        f"the arms and seeds are {count} runs, more than max_runs={config.max_runs}; raise it, or "
        "name arms=[...]",
    )


def couplet_name(first: str, second: str) -> str:
    """Return the name of a couplet's arm: its operations in the order of application."""
    return "+".join(sorted((first, second), key=USUAL_ORDER.index))


def _settings(config: StudyConfig, arm: Arm, seed: int) -> TrainConfig:
    known = {entry.name for entry in fields(TrainConfig)}
    plain = {key: value for key, value in to_plain(config).items() if key in known}
    folder = Path(config.output, RUNS, (arm.folder or arm.name).replace(" ", "-"), f"seed-{seed}")
    for key, value in {**arm.changes, "seed": seed, "run_dir": str(folder)}.items():
        *parents, last = key.split(".")
        level = plain
        for name in parents:
            level = level[name]
        level[last] = value
    return from_plain(TrainConfig, plain)


def _probed(config: StudyConfig, members: list[Member]) -> list[Member]:
    """Let runs be probed on the way, unless the user has said how: a loss is no measure."""
    if config.monitor.shards or not (config.shards and config.tasks):
        return members
    patches = count_patches(config.shards)

    def probing(run: TrainConfig) -> TrainConfig:
        """Probe so often, on the labels that the study scores."""
        every = max(1, math.ceil(most_steps(run, patches) / PROBES))
        labelled = config.labelled or config.shards[0]
        held_out = replace(config.monitor, shards=labelled, task=config.tasks[0], every_steps=every)
        return replace(run, monitor=held_out)

    return [replace(one, run=probing(one.run)) for one in members]


def _all_arms(config: StudyConfig) -> list[Arm]:
    makers: dict[StudyName, Callable[[], list[Arm]]] = {
        StudyName.augmentation: _augmentation,
        StudyName.optimizer: lambda: _optimizer(config.died_after_steps),
        StudyName.rate: lambda: _varied("optim.learning_rate", RATES),
        StudyName.labels: lambda: [Arm("as set", {})],
        StudyName.batch_size: lambda: _varied("data.global_batch_size", (32, 64, 128, 256, 512)),
        StudyName.temperature: lambda: _varied("loss.temperature", (0.05, 0.1, 0.2, 0.5, 1.0)),
        StudyName.published: lambda: [],
        StudyName.bans: lambda: [],  # in two stages: jobs.study.bans
    }
    return makers[config.study]()


def couplets() -> list[Arm]:
    """Return an arm for each of the 36 pairs of the nine operations."""
    pairs = [couplet_name(*pair).split("+") for pair in combinations(NINE, 2)]
    # a list is always applied, whole and in its order: the order is part of the arm
    return [preset_arm("list", "+".join(pair), operations=pair) for pair in pairs]


def preset_arm(preset: str, name: str = "", **values: list[str]) -> Arm:
    """Return an arm of a preset; of its lists only those that are given stay."""
    cleared: dict[str, Any] = {"augment.operations": [], "augment.couplets": []}
    given = {f"augment.{key}": value for key, value in values.items()}
    return Arm(name or preset, {"augment.preset": preset, **cleared, **given})


def drawn_from(name: str, pairs: Iterable[Couplet], folder: str = "") -> Arm:
    """Return an arm that draws one of some couplets for each view, as full runs do."""
    return replace(
        preset_arm("couplets", name, couplets=["+".join(pair) for pair in pairs]), folder=folder
    )


def _augmentation() -> list[Arm]:
    return [*(preset_arm(name) for name in WHOLE), *couplets()]


def _optimizer(died_after_steps: int) -> list[Arm]:
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
