"""The settings of a study: all those of a pretraining, and what is varied, scored and repeated."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from simclr.config import TrainConfig, require
from simclr.evaluate.config import Protocol


class StudyName(Enum):
    """What is varied; ``published`` only analyses the table of the SimCLR-S2 study (2021)."""

    augmentation = "augmentation"
    bans = "bans"
    optimizer = "optimizer"
    rate = "rate"
    labels = "labels"
    batch_size = "batch_size"
    temperature = "temperature"
    published = "published"


@dataclass(kw_only=True, slots=True)
class StudyConfig(TrainConfig):
    """A study: arms x seeds, each pretrained and scored in the same way.

    The settings of a pretraining are those of every arm; ``run_dir`` and ``seed`` are the study's.

    Attributes:
        study: what is varied.
        output: folder for the runs, the tables and the report.
        labelled: folder with labelled shards to score on; empty takes the first of ``shards``.
        tasks: label sets that are scored; arms are compared on the mean over them.
        seeds: of initialisation, order, draws and label subsets; an arm is run once for each.
        protocol: how encoders are scored.
        fractions: shares of the training labels; several only in ``study=labels``.
        score: which score is compared: f1_macro, average_precision_macro, accuracy, ...
        arms: only these arms, by name; empty runs all.
        max_runs: more pretrainings than this are refused, lest a typing error costs a week.
    """

    study: StudyName = StudyName.augmentation
    output: str = ""
    labelled: str = ""
    tasks: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    protocol: Protocol = Protocol.probe
    fractions: list[float] = field(default_factory=lambda: [1.0])
    score: str = "f1_macro"
    arms: list[str] = field(default_factory=list)
    max_runs: int = 200

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
            len(self.fractions) == 1 or self.study is StudyName.labels,
            f"fractions is {self.fractions}; several shares of the labels are study=labels",
        )
