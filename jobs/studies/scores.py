"""The evaluations of a study's runs come in; a score for each arm, label set and seed goes out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.studies.arms import Member, couplet_name, members_of
from jobs.studies.config import StudyConfig, StudyName
from simclr.config import require
from simclr.evaluate.report import FOLDER_NAME

PRETRAINED = "pretrained"
Grid = NDArray[np.float64]  # (arms, label sets, seeds), NaN where a score is missing


@dataclass(frozen=True, slots=True)
class Score:
    """What one run reached.

    Attributes:
        arm: name.
        labels: label set.
        seed: of the study.
        value: the score, 0 to 1.
    """

    arm: str
    labels: str
    seed: int
    value: float


@dataclass(frozen=True, slots=True)
class Table:
    """All scores of a study.

    Attributes:
        arms: names, in the order of the study.
        labels: label sets.
        seeds: seeds.
        grid: scores.
    """

    arms: tuple[str, ...]
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: Grid

    @property
    def missing(self) -> list[str]:
        """What has no score, in words."""
        return [
            f"{self.arms[arm]}, {self.labels[labels]}, seed {self.seeds[seed]}"
            for arm, labels, seed in np.argwhere(np.isnan(self.grid))
        ]

    def only(self, arms: Sequence[str]) -> Table:
        """Return the table of some arms."""
        rows = [self.arms.index(name) for name in arms]
        return Table(tuple(arms), self.labels, self.seeds, self.grid[rows])


def row_name(encoder: str, share: float) -> str:
    """Return the name of a row of a study of labels: ``pretrained, 3 %``."""
    return f"{encoder}, {100 * share:g} %"


def tabulate(scores: Iterable[Score], arms: Sequence[str] = ()) -> Table:
    """Return scores as a table; arms that have none keep their rows."""
    scores = list(scores)
    names = tuple(dict.fromkeys([*arms, *(score.arm for score in scores)]))
    labels = tuple(dict.fromkeys(score.labels for score in scores))
    seeds = tuple(sorted({score.seed for score in scores}))
    grid = np.full((len(names), len(labels), len(seeds)), np.nan)
    for score in scores:
        place = names.index(score.arm), labels.index(score.labels), seeds.index(score.seed)
        grid[place] = score.value
    return Table(names, labels, seeds, grid)


def read_table(config: StudyConfig) -> Table:
    """Read what the runs of a study have reached so far.

    Raises:
        ValueError: none of them has been scored.
    """
    if config.study is StudyName.published:
        return tabulate(published())
    members = members_of(config)
    names = [] if config.study is StudyName.labels else [member.arm for member in members]
    return tabulate(found_scores(config, members), names)


def found_scores(config: StudyConfig, members: Iterable[Member]) -> list[Score]:
    """Read what some runs have reached so far, at least one of them.

    Raises:
        ValueError: none of them has been scored.
    """
    scores = scores_of(config, members)
    require(bool(scores), f"{config.output} holds no scored run yet; simclr-study makes them")
    return scores


def scores_of(config: StudyConfig, members: Iterable[Member]) -> list[Score]:
    """Read what some runs have reached so far.

    Raises:
        ValueError: they have no score of the name that is compared.
    """
    return [score for member in members for score in _scores(config, member)]


def published() -> list[Score]:
    """Return the F1 scores of the 36 couplets of the SimCLR-S2 study (2021), one run each.

    Counts of the test set as github.com/MIDS-Irrigation-Capstone/Spring2021 published them in
    ``notebooks/finetune_results.csv``: fine-tuned on 3 % of the labels.
    """
    text = files("jobs.studies").joinpath("published_2021.csv").read_text(encoding="utf-8")
    return [
        Score(couplet_name(*row["couplet"].split("+")), row["labels"], 0, _f1(row))
        for row in csv.DictReader(StringIO(text))
    ]


def to_csv(rows: Iterable[Any], kind: type[Any]) -> str:
    """Return dataclasses as lines of CSV under the names of their fields."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([entry.name for entry in fields(kind)])
    writer.writerows(astuple(row) for row in rows)
    return out.getvalue()


def _value(scores: dict[str, dict[str, float]], name: str) -> float:
    # a yes or no has one f1; of several classes the mean over them is meant
    found = next((scores[key] for key in (name, f"{name}_macro") if key in scores), None)
    require(found is not None, f"score is {name}; these label sets have {', '.join(scores)}")
    return found["value"] if found else math.nan


def _f1(row: dict[str, str]) -> float:
    hits, errors = 2 * int(row["tp"]), int(row["fp"]) + int(row["fn"])
    return hits / (hits + errors)


def _scores(config: StudyConfig, member: Member) -> list[Score]:
    folder = Path(member.run.run_dir, FOLDER_NAME)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    # label sets in the order in which the user has named them
    reports = [one for task in config.tasks for one in found if one["task"]["name"] == task]
    by_share = config.study is StudyName.labels
    return [
        Score(
            row_name(row["encoder"], row["fraction"]) if by_share else member.arm,
            report["task"]["name"],
            member.seed,
            _value(row["scores"], config.score),
        )
        for report in reports
        for row in sorted(report["results"], key=lambda row: float(row["fraction"]))
        if row["protocol"] == config.protocol.value and (by_share or row["encoder"] == PRETRAINED)
    ]
