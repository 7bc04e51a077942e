"""The settings of a study: all those of a pretraining, and what is varied, scored and repeated."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from simclr.config import TrainConfig, require
from simclr.evaluate.config import Protocol, SplitRule

LABEL_SHARES = [0.01, 0.03, 0.1, 0.25, 0.5, 1.0]


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
        fractions: shares of the training labels; several only in ``study=labels``. Empty takes
            all labels, and in ``study=labels`` 1, 3, 10, 25, 50 and 100 %.
        split: where training, validation and test patches of the labelled shards come from.
        score: which score is compared: f1, average_precision, accuracy, ...; of several classes
            the mean over them.
        arms: only these arms, by name; empty runs all.
        max_runs: more pretrainings than this are refused, lest a typing error costs a week.
        max_hours: a study that is expected to take more hours of one device is refused.
        expected_rate: pairs a second of one job, until a run of the study has measured it; a
            ResNet-50 on patches of 120 pixels makes some 500 on most GPUs, and more on new ones.
        runs_per_job: trainings that one job makes side by side on its device, each a process; they
            must fit into its memory together. For small networks, which leave most of it idle.
        halving: after each seed give up the lower half of the arms; the report says so. On Slurm
            the same command starts the next round when one is scored.
        bans_from: of study=bans: folder of a study of augmentation, whose couplets decide what is
            banned; empty makes one with half of the seeds. The other seeds test the bans.
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
    arms: list[str] = field(default_factory=list)
    max_runs: int = 200
    max_hours: float = 24.0
    expected_rate: float = 500.0
    runs_per_job: int = 1
    halving: bool = False
    bans_from: str = ""
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
        kept = {StudyName.labels: "has one arm", StudyName.bans: "needs every couplet's score"}
        require(
            not self.halving or self.study not in kept,
            f"halving is true; study={self.study.value} {kept.get(self.study)}: leave halving out",
        )
        require(
            not self.bans_from or self.study is StudyName.bans,
            f"bans_from is {self.bans_from}; only study=bans derives bans",
        )
        for name in ("runs_per_job", "max_hours", "expected_rate", "died_after_steps"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; give more than 0")

    @property
    def shares(self) -> list[float]:
        """The shares of the training labels that are asked for."""
        if self.fractions:
            return self.fractions
        return LABEL_SHARES if self.study is StudyName.labels else [1.0]
