"""A study comes in, its arms go out: what each changes in the settings, under a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from jobs.studies.config import StudyConfig, StudyName
from simclr.augment.presets import NINE, USUAL_ORDER
from simclr.config import TrainConfig, require
from simclr.settings import from_plain, to_plain

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


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice of settings.

    Attributes:
        name: in tables, and of its folder.
        changes: dotted key to plain value.
    """

    name: str
    changes: dict[str, Any]


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
    arms = {arm.name: arm for arm in _all_arms(config)}
    unknown = [name for name in config.arms if name not in arms]
    require(
        not unknown,
        f"arms holds {', '.join(unknown)}; study={config.study.value} has {', '.join(arms)}",
    )
    return [arm for name, arm in arms.items() if not config.arms or name in config.arms]


def members_of(config: StudyConfig) -> list[Member]:
    """Return every pretraining of the study, all arms with the first seed, then with the next.

    What is cut short so has whole seeds, which can be compared.

    Raises:
        ValueError: the settings of an arm are refused, or there are more than ``max_runs``.
    """
    arms = arms_of(config)
    count = len(arms) * len(config.seeds)
    require(
        count <= config.max_runs,
        f"{len(arms)} arms x {len(config.seeds)} seeds are {count} runs, more than "
        f"max_runs={config.max_runs}; raise it, or name arms=[...]",
    )
    return [
        Member(arm.name, seed, _settings(config, arm, seed))
        for seed in config.seeds
        for arm in arms
    ]


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


def _all_arms(config: StudyConfig) -> list[Arm]:
    makers: dict[StudyName, Callable[[], list[Arm]]] = {
        StudyName.augmentation: _augmentation,
        StudyName.bans: _bans,
        StudyName.optimizer: lambda: _optimizer(config.died_after_steps),
        StudyName.rate: lambda: _varied("optim.learning_rate", RATES),
        StudyName.labels: lambda: [Arm("as set", {})],
        StudyName.batch_size: lambda: _varied("data.global_batch_size", (32, 64, 128, 256, 512)),
        StudyName.temperature: lambda: _varied("loss.temperature", (0.05, 0.1, 0.2, 0.5, 1.0)),
        StudyName.published: lambda: [],
    }
    return makers[config.study]()


def _augmentation() -> list[Arm]:
    couplets = [couplet_name(*pair).split("+") for pair in combinations(NINE, 2)]
    return [
        *(_preset(name) for name in WHOLE),
        # a list is always applied, whole and in its order: the order is part of the arm
        *(_preset("list", "+".join(pair), operations=pair) for pair in couplets),
    ]


def _bans() -> list[Arm]:
    every = ["+".join(pair) for pair in combinations(NINE, 2)]
    return [
        _preset("couplets", "all 36 couplets", couplets=every),
        _preset("corrected", "the 27 left in 2021"),
        _preset("standard"),
        _preset("geometric_standard"),
    ]


def _preset(preset: str, name: str = "", **values: list[str]) -> Arm:
    cleared: dict[str, Any] = {"augment.operations": [], "augment.couplets": []}
    given = {f"augment.{key}": value for key, value in values.items()}
    return Arm(name or preset, {"augment.preset": preset, **cleared, **given})


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
