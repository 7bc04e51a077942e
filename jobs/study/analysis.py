"""Scores of a study's runs, and what they allow to conclude: means, paired differences, ranks.

Called by the report of simclr-study. Seeds are the replicates: intervals are Student's over seeds,
paired where arms are compared; tests on many arms are corrected by Holm's procedure (1979).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jobs.config import StudyConfig, StudyName
from jobs.study.arms import StudyRun, couplet_name, runs_of
from simclr.config import require
from simclr.evaluation.report import FOLDER_NAME

PRETRAINED = "pretrained"
Array = NDArray[np.float64]
Grid = Array  # (arms, label sets, seeds), NaN where a score is missing


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one run on one label set.

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
        """Arm, label set and seed of every missing score, as text."""
        return [
            f"{self.arms[arm]}, {self.labels[labels]}, seed {self.seeds[seed]}"
            for arm, labels, seed in np.argwhere(np.isnan(self.grid))
        ]

    def only(self, arms: Sequence[str]) -> Table:
        """Return the table of some arms."""
        rows = [self.arms.index(name) for name in arms]
        return Table(tuple(arms), self.labels, self.seeds, self.grid[rows])

    def of_labels(self, column: int) -> Table:
        """Return the table of one label set."""
        columns = slice(column, column + 1)
        return Table(self.arms, self.labels[columns], self.seeds, self.grid[:, columns])


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
        cell = names.index(score.arm), labels.index(score.labels), seeds.index(score.seed)
        grid[cell] = score.value
    return Table(names, labels, seeds, grid)


def read_table(config: StudyConfig) -> Table:
    """Read what the runs of a study have scored so far.

    Raises:
        ValueError: none of them has been scored, or they lack the score that is compared.
    """
    if config.study is StudyName.published:
        return tabulate(published())
    runs = runs_of(config)
    scores = [score for run in runs for score in _scores(config, run)]
    require(bool(scores), f"{config.output} holds no scored run yet; simclr-study makes them")
    return tabulate(scores, [] if config.study is StudyName.labels else [run.arm for run in runs])


def published() -> list[Score]:
    """Return the F1 scores of the 36 couplets of the SimCLR-S2 study (2021), one run each.

    Counts of the test set as github.com/MIDS-Irrigation-Capstone/Spring2021 published them in
    ``notebooks/finetune_results.csv``: fine-tuned on 3 % of the labels.
    """
    text = files("jobs.study").joinpath("published_2021.csv").read_text(encoding="utf-8")
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


def _scores(config: StudyConfig, run: StudyRun) -> list[Score]:
    folder = Path(run.config.run_dir, FOLDER_NAME)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    # label sets in the order in which the user has named them
    reports = [one for task in config.tasks for one in found if one["task"]["name"] == task]
    by_share = config.study is StudyName.labels
    return [
        Score(
            row_name(row["encoder"], row["fraction"]) if by_share else run.arm,
            report["task"]["name"],
            run.seed,
            _value(row["scores"], config.score),
        )
        for report in reports
        for row in sorted(report["results"], key=lambda row: float(row["fraction"]))
        if row["protocol"] == config.protocol.value and (by_share or row["encoder"] == PRETRAINED)
    ]


CONFIDENCE = 0.95
SHARE = 0.25  # of the couplets, that the study of 2021 left out
RELIABLE = 0.8  # from here on a ranking is called resolved


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        name: of an arm, or of an operation.
        mean: over label sets and seeds; of a difference, in the units of the score.
        half_width: of the 95 % interval; NaN with one seed.
        p_value: that the mean is 0, corrected for the number of tests; NaN where none was made.
        seeds: how many.
    """

    name: str
    mean: float
    half_width: float
    p_value: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside, after correction."""
        return self.p_value < 1 - CONFIDENCE


@dataclass(frozen=True, slots=True)
class Stability:
    """How far the ranking of arms can be trusted.

    Attributes:
        spearman_labels: rank correlation between label sets; NaN with one.
        pearson_labels: linear correlation between label sets.
        reliability_labels: of the mean over label sets, read as replicates (Spearman-Brown).
        pearson_seeds: mean linear correlation between two seeds; NaN with one seed.
        reliability_seeds: of the mean over all seeds (Spearman-Brown).
        seeds_needed: seeds for a reliability of 0.8; infinite if seeds agree by chance only; NaN
            with one seed.
    """

    spearman_labels: float
    pearson_labels: float
    reliability_labels: float
    pearson_seeds: float
    reliability_seeds: float
    seeds_needed: float


def arm_means(table: Table) -> list[Estimate]:
    """Return the mean of each arm, over the label sets of each seed and then over seeds."""
    by_seed = _mean(table.grid, axis=1)
    return [_estimate(name, by_seed[row]) for row, name in enumerate(table.arms)]


def differences(table: Table, reference: str) -> list[Estimate]:
    """Return each arm's difference to the reference arm, paired by seed."""
    return paired(table, {name: (name, reference) for name in table.arms if name != reference})


def paired(table: Table, pairs: Mapping[str, tuple[str, str]]) -> list[Estimate]:
    """Return, under its name, the first arm of each pair minus the second, seed by seed."""
    by_seed = dict(zip(table.arms, _mean(table.grid, axis=1), strict=True))
    found = [
        _estimate(name, by_seed[arm] - by_seed[other], test=True)
        for name, (arm, other) in pairs.items()
    ]
    return _corrected(found)


def operation_effects(table: Table) -> list[Estimate]:
    """Return what each operation does to a couplet: mean with it minus mean without it, by seed.

    Arms whose names are no couplet are left out.
    """
    by_seed = _mean(table.grid, axis=1)
    pairs = {row: set(name.split("+")) for row, name in enumerate(table.arms) if "+" in name}
    operations = sorted(set().union(*pairs.values())) if pairs else []
    found = []
    for operation in operations:
        having = [row for row, pair in pairs.items() if operation in pair]
        lacking = [row for row, pair in pairs.items() if operation not in pair]
        if lacking:
            contrast = _mean(by_seed[having], axis=0) - _mean(by_seed[lacking], axis=0)
            found.append(_estimate(operation, contrast, test=True))
    return _corrected(found)


def stability(table: Table) -> Stability:
    """Return how well label sets, and seeds, agree on the arms."""
    labels, seeds = _mean(table.grid, axis=2).T, _mean(table.grid, axis=1).T
    between_labels = _agreement(labels, stats.pearsonr)
    between_seeds = _agreement(seeds, stats.pearsonr)
    return Stability(
        _agreement(labels, stats.spearmanr),
        between_labels,
        spearman_brown(between_labels, len(table.labels)),
        between_seeds,
        spearman_brown(between_seeds, len(table.seeds)),
        replicates_needed(between_seeds),
    )


def spearman_brown(correlation: float, count: int) -> float:
    """Return the reliability of the mean of ``count`` replicates (Spearman 1910, Brown 1910).

    It is 0 where replicates disagree, which their formula was not made for: at -1 and two of them
    it would divide by zero.
    """
    if correlation <= 0:
        return 0.0
    return count * correlation / (1 + (count - 1) * correlation)


def replicates_needed(correlation: float) -> float:
    """Return how many replicates give a reliability of 0.8."""
    if math.isnan(correlation):
        return math.nan
    if correlation <= 0:
        return math.inf
    return math.ceil(RELIABLE * (1 - correlation) / (correlation * (1 - RELIABLE)) - 1e-9)


def lowest_quarter(means: Sequence[Estimate]) -> list[str]:
    """Return the couplets of the lowest quarter, the lowest first; other arms are left out."""
    ranked = sorted((one for one in means if "+" in one.name), key=lambda one: one.mean)
    return [one.name for one in ranked[: round(SHARE * len(ranked))]]


def chance_of_bottom(table: Table, share: float = SHARE, draws: int = 2000) -> dict[str, float]:
    """Return for each arm how often it is among the lowest when replicates are drawn again.

    Replicates are seeds; with one seed the label sets, of which two give a coarse answer.
    """
    by_seed = _mean(table.grid, axis=1)
    replicates = by_seed if len(table.seeds) > 1 else _mean(table.grid, axis=2)
    generator = np.random.default_rng(0)
    count = replicates.shape[1]
    low = np.zeros(len(table.arms))
    size = round(share * len(table.arms))
    for _ in range(draws):
        drawn = _mean(replicates[:, generator.integers(count, size=count)], axis=1)
        low[np.argsort(drawn, kind="stable")[:size]] += 1
    return dict(zip(table.arms, (low / draws).tolist(), strict=True))


def _agreement(rows: Array, correlate: Callable[..., tuple[float, float]]) -> float:
    """Return the mean correlation of all pairs of rows, over the arms that all of them have."""
    rows = rows[:, ~np.isnan(rows).any(axis=0)]
    # arms that all score the same have no order that could agree
    if len(rows) < 2 or rows.shape[1] < 3 or (np.ptp(rows, axis=1) == 0).any():
        return math.nan
    pairs = [(a, b) for a in range(len(rows)) for b in range(a)]
    return float(np.mean([correlate(rows[a], rows[b])[0] for a, b in pairs]))


def _estimate(name: str, values: Array, *, test: bool = False) -> Estimate:
    values = values[~np.isnan(values)]
    count = len(values)
    if count < 2:
        mean = float(values.mean()) if count else math.nan
        return Estimate(name, mean, math.nan, math.nan, count)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    p_value = math.nan
    if test:
        ratio = abs(float(values.mean())) / error if error else math.inf
        p_value = float(2 * stats.t.sf(ratio, count - 1))
    return Estimate(name, float(values.mean()), half, p_value, count)


def _corrected(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return the estimates with p values after Holm, who tests the smallest against all."""
    order = sorted(range(len(estimates)), key=lambda k: estimates[k].p_value)
    tests = sum(not math.isnan(one.p_value) for one in estimates)
    corrected, highest = dict(enumerate(estimates)), 0.0
    for rank, k in enumerate(order):
        one = estimates[k]
        if not math.isnan(one.p_value):
            highest = max(highest, min(1.0, (tests - rank) * one.p_value))
            corrected[k] = Estimate(one.name, one.mean, one.half_width, highest, one.seeds)
    return [corrected[k] for k in range(len(estimates))]


def _mean(values: Array, axis: int) -> Array:
    """Return means over what is there; NaN where nothing is."""
    count = (~np.isnan(values)).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(count, np.nansum(values, axis=axis) / count, np.nan)
    return mean


def advantages(table: Table) -> list[Estimate]:
    """Return the pretrained encoder's difference to each control at each share, paired by seed."""
    rows = [(name, *_parts(name)) for name in table.arms]
    pairs = {
        f"{encoder}, {share:g} %": (row_name(PRETRAINED, share / 100), name)
        for name, encoder, share in rows
        if encoder != PRETRAINED
    }
    return paired(table, pairs)


def by_share(table: Table, score: str) -> list[dict[str, Any]]:
    """Return means over seeds in the form of an evaluation's results, one protocol a label set."""
    return [
        {
            "protocol": labels.replace("_", " "),
            "encoder": encoder,
            "fraction": share / 100,
            "scores": {score: _interval(one)},
        }
        for column, labels in enumerate(table.labels)
        for one in arm_means(table.of_labels(column))
        for encoder, share in [_parts(one.name)]
    ]


def _parts(name: str) -> tuple[str, float]:
    encoder, _, share = name.removesuffix(" %").rpartition(", ")
    return encoder, float(share)


def _interval(one: Estimate) -> dict[str, float]:
    # of a score, which is a share: Student's interval over few seeds does not know that
    low, high = np.clip([one.mean - one.half_width, one.mean + one.half_width], 0, 1)
    return {"value": one.mean, "low": float(low), "high": float(high)}
