"""Define a study's settings, its arms, and the pretraining runs of each arm and seed.

Called by simclr-study and by its report. A run's folder depends only on arm name and seed, so the
same command finds completed work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import Any

from jobs.cli.schema import as_meant, type_of
from jobs.run_dir import read_yaml
from preprocess.shards.manifest import read_manifest
from simclr.augment.parameters import NINE, USUAL_ORDER
from simclr.config import TrainConfig, from_plain, require, to_plain
from simclr.evaluation.config import Protocol, SplitRule

LABEL_SHARES = [0.01, 0.03, 0.1, 0.25, 0.5, 1.0]


class StudyName(Enum):
    """What is varied.

    ``settings`` takes any, from ``changes``; ``published`` only analyses the table of the SimCLR-S2
    study (2021).
    """

    augmentation = "augmentation"
    optimizer = "optimizer"
    rate = "rate"
    labels = "labels"
    batch_size = "batch_size"
    temperature = "temperature"
    settings = "settings"
    published = "published"


# Studies with curves of loss and probe. In others, arms train on different views or labels.
CURVES = (StudyName.optimizer, StudyName.rate, StudyName.batch_size, StudyName.temperature)
PROBES = 10  # per run, approximately
RUNS = "runs"
OF_THE_STUDY = ("seed", "run_dir")  # the study sets these for each run
# The four presets that the 2021 study ran besides its couplets; the first is the reference.
WHOLE = ("none", "all", "geometric", "pixel")
# Each optimiser has a grid around its usual rates: a common rate would decide the comparison.
OPTIMIZER_RATES = {
    "adam": (1e-4, 5e-4, 1e-3),
    "adamw": (1e-4, 5e-4, 1e-3),
    "sgd": (1e-2, 5e-2, 1e-1),
    "lars": (0.1, 0.3, 1.0),
}
# The setting to vary, and its values; the rates are from figure 3 of the 2021 study.
VARIED = {
    StudyName.rate: ("optim.learning_rate", (1e-4, 5e-4, 1e-3, 1e-2, 3.5e-2, 5e-2)),
    StudyName.batch_size: ("data.global_batch_size", (32, 64, 128, 256, 512)),
    StudyName.temperature: ("loss.temperature", (0.05, 0.1, 0.2, 0.5, 1.0)),
}
_TAKES = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}  # read from text, by type
_UNSAFE = re.compile(r"[^\w.=+-]+")  # in folder names
Arms = dict[str, dict[str, Any]]  # name in tables and folders -> dotted keys -> plain values


@dataclass(kw_only=True, slots=True)
class StudyConfig(TrainConfig):
    """A study: arms x seeds, each pretrained and scored in the same way.

    The settings of a pretraining are those of every arm; ``run_dir`` and ``seed`` are the study's.

    Attributes:
        study: what is varied.
        output: folder for the runs, the tables and the report.
        labelled: folder with labelled shards to score on; empty uses the first of ``shards``.
        tasks: label sets to score on; arms are compared by the mean over them.
        seeds: one run of every arm each; they set initialisation, sampling, augmentation and label
            subsets.
        protocol: how encoders are scored.
        fractions: shares of the training labels; several only in ``study=labels``. Empty uses all
            labels, and in ``study=labels`` 1, 3, 10, 25, 50 and 100 %.
        split: where training, validation and test patches of the labelled shards come from.
        score: which score is compared: f1, average_precision, accuracy, ...; of several classes
            the mean over them.
        changes: arms of ``study=settings``, beside the unchanged one: a setting of the pretraining
            with its value, or several with spaces between them.
        arms: only these arms, by name; empty runs all.
        max_runs: more pretrainings than this are refused, in case of a typing error.
        max_hours: a study that is expected to take more device hours than this is refused.
        expected_rate: pairs a second of one job, until a run of the study has measured it; a
            ResNet-50 on patches of 120 pixels makes some 500 on most GPUs, and more on new ones.
        died_after_steps: of the arm ``sgd 2021`` of study=optimizer: the step from which its
            learning rate is zero.
    """

    study: StudyName = StudyName.augmentation
    output: str = ""
    labelled: str = ""
    tasks: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    protocol: Protocol = Protocol.probe
    fractions: list[float] = field(default_factory=list)
    split: SplitRule = SplitRule.given
    score: str = "f1"
    changes: list[str] = field(default_factory=list)
    arms: list[str] = field(default_factory=list)
    max_runs: int = 200
    max_hours: float = 24.0
    expected_rate: float = 500.0
    died_after_steps: int = 1000

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        require(
            not self.run_dir, f"run_dir is {self.run_dir}; a study names its runs, give output="
        )
        require(
            bool(self.seeds) and len(set(self.seeds)) == len(self.seeds),
            f"seeds is {self.seeds}; give different ones, three or more: seeds=[0,1,2]",
        )
        require(
            len(self.fractions) < 2 or self.study is StudyName.labels,
            f"fractions is {self.fractions}; several shares of the labels are study=labels",
        )
        require(
            bool(self.changes) == (self.study is StudyName.settings),
            f"changes is {self.changes} and study={self.study.value}; study=settings takes them, "
            "changes=['loss.temperature=0.2']",
        )
        for name in ("max_hours", "expected_rate", "died_after_steps"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; give more than 0")

    @property
    def shares(self) -> list[float]:
        """The requested shares of the training labels."""
        if self.fractions:
            return self.fractions
        return LABEL_SHARES if self.study is StudyName.labels else [1.0]

    @property
    def scored_shards(self) -> str:
        """The packed folder with the labels to score encoders on."""
        return self.labelled or self.shards[0]


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One pretraining run of a study."""

    arm: str
    seed: int
    config: TrainConfig


def arms_of(config: StudyConfig) -> Arms:
    """Return the requested arms, the reference first.

    Raises:
        ValueError: an arm is unknown.
    """
    arms = _all_arms(config)
    unknown = [name for name in config.arms if name not in arms]
    require(
        not unknown,
        f"arms holds {', '.join(unknown)}; study={config.study.value} has {', '.join(arms)}",
    )
    return {name: arm for name, arm in arms.items() if not config.arms or name in config.arms}


def runs_of(config: StudyConfig) -> list[StudyRun]:
    """Return every pretraining run of the study: all arms with the first seed, then the next.

    A study that is cut short then has complete seeds, which can be compared.

    Raises:
        ValueError: the settings of an arm are invalid, or there are more than ``max_runs`` runs.
    """
    arms = arms_of(config)
    count = len(arms) * len(config.seeds)
    require(
        count <= config.max_runs,
        f"the arms and seeds are {count} runs, more than max_runs={config.max_runs}; raise it, or "
        "name arms=[...]",
    )
    owners: dict[str, str] = {}
    for name in arms:
        owner = owners.setdefault(_folder_name(name), name)
        require(
            owner == name,
            f"arms {owner!r} and {name!r} would share the folder {_folder_name(name)}; leave one "
            "out, or name its settings in another order",
        )
    runs = [
        StudyRun(name, seed, _settings(config, name, changes, seed))
        for seed in config.seeds
        for name, changes in arms.items()
    ]
    # the loss does not measure quality: probe the runs, unless the user has set up probing
    can_probe = bool(config.shards and config.tasks) and not config.monitor.shards
    if config.study not in CURVES or not can_probe:
        return runs
    patches, scored, probed = count_patches(config.shards), config.scored_shards, []
    for run in runs:
        every = max(1, math.ceil(most_steps(run.config, patches) / PROBES))
        monitor = replace(config.monitor, shards=scored, task=config.tasks[0], every_steps=every)
        probed.append(replace(run, config=replace(run.config, monitor=monitor)))
    return probed


def couplet_name(first: str, second: str) -> str:
    """Return the name of a couplet's arm: its operations in the order of application."""
    return "+".join(sorted((first, second), key=USUAL_ORDER.index))


def _folder_name(arm: str) -> str:
    return _UNSAFE.sub("-", arm)


def count_patches(shards: Iterable[str]) -> int:
    """Return the number of patches in packed folders, over all splits.

    Raises:
        ValueError: a folder holds no packed source.
    """
    return sum(read_manifest(Path(folder)).rows for folder in shards)


def most_steps(run: TrainConfig, patches: int) -> int:
    """Return an upper bound of the steps: it counts all splits, trained on or not."""
    steps = run.epochs * (round(patches * run.data.fraction) // run.data.global_batch_size)
    return min(steps, run.max_steps or steps)


def _settings(config: StudyConfig, arm: str, changes: dict[str, Any], seed: int) -> TrainConfig:
    known = {entry.name for entry in fields(TrainConfig)}
    plain = {key: value for key, value in to_plain(config).items() if key in known}
    folder = Path(config.output, RUNS, _folder_name(arm), f"seed-{seed}")
    for key, value in {**changes, "seed": seed, "run_dir": str(folder)}.items():
        require(
            type_of(key, TrainConfig) is not None,
            f"changes names {key}, which is not a setting of simclr-pretrain; see its --help",
        )
        *parents, last = key.split(".")
        level = plain
        for name in parents:
            level = level[name]
        level[last] = value
    return from_plain(TrainConfig, plain)


def _all_arms(config: StudyConfig) -> Arms:
    if config.study in VARIED:
        key, values = VARIED[config.study]
        return {f"{value:g}": {key: value} for value in values}
    match config.study:
        case StudyName.augmentation:
            couplets = [couplet_name(*pair) for pair in combinations(NINE, 2)]
            # a list is always applied in full and in order: the order is part of the arm
            pairs = {name: _augmented("list", name.split("+")) for name in couplets}
            return {name: _augmented(name, []) for name in WHOLE} | pairs
        case StudyName.optimizer:
            grid = [(name, rate) for name, rates in OPTIMIZER_RATES.items() for rate in rates]
            proper = {
                f"{name} {rate:g}": {"optim.name": name, "optim.learning_rate": rate}
                for name, rate in grid
            }
            # what figure 2 of the 2021 study compared adam with: no warm-up, and a cosine
            # that ended in the first epoch
            dead = {
                "optim.name": "sgd",
                "optim.learning_rate": OPTIMIZER_RATES["sgd"][1],
                "optim.schedule": "cosine",
                "optim.decay_steps": config.died_after_steps,
                "optim.warmup_epochs": 0.0,
            }
            return {**proper, "sgd 2021": dead}
        case StudyName.labels:
            return {"as set": {}}
        case StudyName.settings:
            return {"as set": {}} | {text: _parsed(text) for text in config.changes}
    return {}


def _parsed(text: str) -> dict[str, Any]:
    """Parse ``a.b=1 c=[x,y]`` into values by key.

    Raises:
        ValueError: a word does not have this form, or a value cannot be parsed.
    """
    changes: dict[str, Any] = {}
    require(bool(text.split()), "changes holds an empty text; give KEY=VALUE")
    for word in text.split():
        # a leading plus, as in simclr-pretrain, adds a key that a dictionary lacks
        key, sign, value = word.removeprefix("+").partition("=")
        require(bool(key and sign), f"changes holds {text!r}; give KEY=VALUE, with spaces between")
        require(
            key not in OF_THE_STUDY, f"changes holds {word!r}; {key} is the study's, see seeds="
        )
        require(key not in changes, f"changes holds {text!r}, which names {key} twice")
        # as on a command line: what a text setting takes stays text
        value = as_meant(f"{key}={value}", TrainConfig).partition("=")[2]
        try:
            changes[key] = read_yaml(f"value: {value}")["value"]
        except ValueError as error:
            raise ValueError(f"changes holds {word!r}, whose value cannot be read") from error
        kind = type_of(key, TrainConfig)
        require(
            kind not in _TAKES or type(changes[key]) in _TAKES[kind],
            f"changes holds {word!r}; {key} takes type {getattr(kind, '__name__', kind)}",
        )
    return changes


def _augmented(preset: str, operations: list[str]) -> dict[str, Any]:
    return {"augment.preset": preset, "augment.operations": operations, "augment.couplets": []}
