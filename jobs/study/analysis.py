"""Read scores and curves of a study's runs, and test what they support.

Called by the report of simclr-study. Seeds are the replicates: Student's t intervals over seeds,
paired where arms are compared; multiple tests are corrected by Holm's procedure (1979).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jobs.study.arms import CURVES, StudyConfig, StudyName, StudyRun, couplet_name, runs_of
from simclr.config import require
from simclr.evaluation.bootstrap import ALIKE, CONFIDENCE, holm
from simclr.evaluation.config import PRETRAINED
from simclr.evaluation.report import FOLDER_NAME
from simclr.monitoring.health import collapse_in_words
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

LOWEST_SHARE = 0.25  # share of the couplets that the 2021 study excluded
RELIABLE = 0.8  # reliability from which a ranking counts as resolved
COUPLET_STUDIES = (StudyName.augmentation, StudyName.published)
# In other studies, the losses of arms differ in chance level or scale.
SAME_LOSS = (StudyName.optimizer, StudyName.rate)
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one run of an arm on one label set, 0 to 1."""

    arm: str
    labels: str
    seed: int
    value: float


@dataclass(frozen=True, slots=True)
class Table:
    """All scores of a study."""

    arms: tuple[str, ...]  # names, in the order of the study
    labels: tuple[str, ...]  # label sets
    seeds: tuple[int, ...]
    grid: Array  # (arms, label sets, seeds), NaN where a score is missing
    unscored: tuple[str, ...] = ()  # label sets and seeds without any score; not in the grid

    @property
    def missing(self) -> list[str]:
        """What has no score, as text: label sets, seeds, and arm, label set and seed of a score."""
        return [*self.unscored] + [
            f"{self.arms[arm]}, {self.labels[labels]}, seed {self.seeds[seed]}"
            for arm, labels, seed in np.argwhere(np.isnan(self.grid))
        ]

    @property
    def by_seed(self) -> Array:
        """Means over the label sets, (arms, seeds); NaN where one is missing.

        Label sets differ in difficulty: a mean over some of them compares with no other.
        """
        return np.asarray(self.grid.mean(axis=1))

    def only(self, arms: Sequence[str]) -> Table:
        """Return the table restricted to some arms."""
        rows = [self.arms.index(name) for name in arms]
        return replace(self, arms=tuple(arms), grid=self.grid[rows])

    def of_labels(self, column: int) -> Table:
        """Return the table restricted to one label set."""
        return replace(self, labels=(self.labels[column],), grid=self.grid[:, [column]])


def tabulate(scores: Iterable[Score], arms: Sequence[str] = ()) -> Table:
    """Return scores as a table; ``arms`` without scores get rows too."""
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
    """Read the scores that a study's runs have so far.

    Raises:
        ValueError: no run has been scored, or the score to compare is missing.
    """
    if config.study is StudyName.published:
        return tabulate(published())
    runs = runs_of(config)
    scores = [score for run in runs for score in _scores(config, run)]
    require(bool(scores), f"{config.output} holds no scored run yet; simclr-study makes them")
    table = tabulate(scores, [] if config.study is StudyName.labels else [run.arm for run in runs])
    labels = [f"label set {name}" for name in config.tasks if name not in table.labels]
    seeds = [f"seed {seed}" for seed in config.seeds if seed not in table.seeds]
    return replace(table, unscored=(*labels, *seeds))


def published() -> list[Score]:
    """Return the F1 scores of the 36 couplets of the SimCLR-S2 study (2021), one run each.

    Computed from the test counts that github.com/MIDS-Irrigation-Capstone/Spring2021 published in
    ``notebooks/finetune_results.csv``: fine-tuned on 3 % of the labels.
    """
    text = files("jobs.study").joinpath("published_2021.csv").read_text(encoding="utf-8")
    scores = []
    for row in csv.DictReader(StringIO(text)):
        hits, errors = 2 * int(row["tp"]), int(row["fp"]) + int(row["fn"])
        name = couplet_name(*row["couplet"].split("+"))
        scores.append(Score(name, row["labels"], 0, hits / (hits + errors)))
    return scores


def _scores(config: StudyConfig, run: StudyRun) -> list[Score]:
    folder = Path(run.config.run_dir, FOLDER_NAME)
    # of several, that of shards packed anew in the same folder counts: the last one written
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text()) for path in paths]
    # label sets in the order in which the user named them
    reports = [
        one
        for task in config.tasks
        for one in found
        if one["task"]["name"] == task and one["shards"]["folder"] == config.scored_shards
    ]
    by_share = config.study is StudyName.labels
    scores = []
    for report in reports:
        for row in sorted(report["results"], key=lambda row: float(row["fraction"])):
            if row["protocol"] != config.protocol.value or row["fraction"] not in config.shares:
                continue
            if row["encoder"] != PRETRAINED and not by_share:
                continue
            # a binary task has a single f1; for several classes, use their mean
            score = row["scores"].get(config.score) or row["scores"].get(f"{config.score}_macro")
            known = ", ".join(row["scores"])
            require(bool(score), f"score is {config.score}; these label sets have {known}")
            arm = row_name(row["encoder"], row["fraction"]) if by_share else run.arm
            scores.append(Score(arm, report["task"]["name"], run.seed, score["value"]))
    return scores


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds."""

    name: str  # of the arm or operation
    mean: float  # over label sets and seeds; of a difference, in the units of the score
    half_width: float  # of the 95 % interval; NaN with one seed
    p_value: float  # for a mean of 0, corrected for the number of tests; NaN if not tested
    seeds: int  # number of seeds

    @property
    def excludes_zero(self) -> bool:
        """Whether the mean differs significantly from 0, after correction."""
        return self.p_value < 1 - CONFIDENCE


def arm_means(table: Table) -> list[Estimate]:
    """Return each arm's mean, over the label sets of each seed and then over seeds."""
    return [_estimate(*row) for row in zip(table.arms, table.by_seed, strict=True)]


def differences(table: Table, reference: str) -> list[Estimate]:
    """Return each arm's difference from the reference arm, paired by seed."""
    return _paired(table, {name: (name, reference) for name in table.arms if name != reference})


def _paired(table: Table, pairs: Mapping[str, tuple[str, str]]) -> list[Estimate]:
    """Return the first arm of each named pair minus the second, paired by seed."""
    by_seed = dict(zip(table.arms, table.by_seed, strict=True))
    return _tested({name: by_seed[arm] - by_seed[other] for name, (arm, other) in pairs.items()})


def operation_effects(table: Table) -> list[Estimate]:
    """Return each operation's effect on couplets: mean with it minus mean without, by seed.

    Arms that are not couplets are ignored, and so are seeds that lack the score of a couplet: means
    over different couplets differ by what else is in them.
    """
    by_seed = table.by_seed
    pairs = {row: set(name.split("+")) for row, name in enumerate(table.arms) if "+" in name}
    contrasts = {}
    for operation in sorted(set().union(*pairs.values())):
        having = [row for row, pair in pairs.items() if operation in pair]
        lacking = [row for row, pair in pairs.items() if operation not in pair]
        if lacking:
            contrasts[operation] = by_seed[having].mean(axis=0) - by_seed[lacking].mean(axis=0)
    return _tested(contrasts)


def lowest_quarter(means: Sequence[Estimate]) -> list[str]:
    """Return the lowest quarter of the scored couplets, lowest first; other arms are ignored."""
    couplets = (one for one in means if "+" in one.name and not math.isnan(one.mean))
    ranked = sorted(couplets, key=lambda one: one.mean)
    return [one.name for one in ranked[: round(LOWEST_SHARE * len(ranked))]]


def chance_of_bottom(table: Table, draws: int = 2000) -> dict[str, float]:
    """Return how often each arm is in the lowest quarter when replicates are resampled.

    Replicates are seeds or, with one seed, label sets; two of these give only a coarse estimate.
    """
    replicates = table.by_seed if len(table.seeds) > 1 else table.grid[:, :, 0]
    generator = np.random.default_rng(0)
    count = replicates.shape[1]
    low = np.zeros(len(table.arms))
    size = round(LOWEST_SHARE * len(table.arms))
    for _ in range(draws):
        drawn = _mean(replicates[:, generator.integers(count, size=count)], axis=1)
        low[np.argsort(drawn, kind="stable")[:size]] += 1
    return dict(zip(table.arms, (low / draws).tolist(), strict=True))


def _tested(contrasts: Mapping[str, Array]) -> list[Estimate]:
    """Return estimates with p values corrected by Holm's procedure."""
    found = [_estimate(name, values, test=True) for name, values in contrasts.items()]
    corrected = holm([one.p_value for one in found])
    return [replace(one, p_value=p) for one, p in zip(found, corrected, strict=True)]


def _estimate(name: str, values: Array, *, test: bool = False) -> Estimate:
    values = values[~np.isnan(values)]
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return Estimate(name, mean, math.nan, math.nan, count)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    p_value = math.nan
    if test:
        # equal differences, as of scores that count few patches, say nothing of their spread
        alike = np.ptp(values) < ALIKE
        p_value = 1.0 if alike else float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Estimate(name, mean, half, p_value, count)


def _mean(values: Array, axis: int) -> Array:
    """Return means that ignore NaN; NaN where there is no value."""
    count = (~np.isnan(values)).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(count, np.nansum(values, axis=axis) / count, np.nan)
    return mean


@dataclass(frozen=True, slots=True)
class Stability:
    """How far the ranking of arms can be trusted: correlations, and reliabilities of means."""

    spearman_labels: float  # rank correlation between label sets; NaN with one
    pearson_labels: float  # linear correlation between label sets
    reliability_labels: float  # of the mean over label sets, taken as replicates (Spearman-Brown)
    pearson_seeds: float  # mean linear correlation between two seeds; NaN with one seed
    reliability_seeds: float  # of the mean over all seeds (Spearman-Brown)
    # for a reliability of 0.8; infinite if seeds agree only by chance; NaN with one seed
    seeds_needed: float


def stability(table: Table) -> Stability:
    """Return how well label sets, and seeds, agree on the arms."""
    labels = _mean(table.grid, axis=2).T
    between_labels = _agreement(labels, stats.pearsonr)
    between_seeds = _agreement(table.by_seed.T, stats.pearsonr)
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

    It is 0 for correlations of 0 or less, where the formula does not hold: at -1 with two
    replicates it would divide by zero.
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


def _agreement(rows: Array, correlate: Callable[..., tuple[float, float]]) -> float:
    """Return the mean correlation of all pairs of rows, each over the arms that both have."""
    pairs = (np.stack(pair) for pair in combinations(rows, 2))
    shared = [pair[:, ~np.isnan(pair).any(axis=0)] for pair in pairs]
    # two arms, or a row in which all score the same, have no order to compare
    found = [
        correlate(*pair)[0]
        for pair in shared
        if pair.shape[1] > 2 and (np.ptp(pair, axis=1) > 0).all()
    ]
    return float(np.mean(found)) if found else math.nan


def row_name(encoder: str, share: float) -> str:
    """Return the name of a row in a study of labels: ``pretrained, 3 %``."""
    return f"{encoder}, {100 * share:g} %"


def advantages(table: Table) -> list[Estimate]:
    """Return the pretrained encoder's difference from each control, by share and paired by seed."""
    rows = {name: _encoder_and_share(name) for name in table.arms}
    pairs = {
        name: (row_name(PRETRAINED, share), name)
        for name, (encoder, share) in rows.items()
        if encoder != PRETRAINED
    }
    return _paired(table, pairs)


def by_share(table: Table, score: str) -> list[dict[str, Any]]:
    """Return means over seeds as an evaluation's results, with one protocol per label set."""
    rows = []
    for column, labels in enumerate(table.labels):
        for one in arm_means(table.of_labels(column)):
            encoder, share = _encoder_and_share(one.name)
            # Student's interval over few seeds may leave the range of a score
            low, high = np.clip([one.mean - one.half_width, one.mean + one.half_width], 0, 1)
            ends = {"value": one.mean, "low": float(low), "high": float(high)}
            name = labels.replace("_", " ")
            row = {"protocol": name, "encoder": encoder, "fraction": share, "scores": {score: ends}}
            rows.append(row)
    return rows


def _encoder_and_share(name: str) -> tuple[str, float]:
    encoder, _, percent = name.removesuffix(" %").rpartition(", ")
    return encoder, float(percent) / 100


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One metric record of a run; NaN where a number is missing."""

    arm: str
    seed: int
    step: int
    share: float  # of all steps
    loss: float  # mean since the previous record
    chance_level: float  # loss of guessing, ln(2N - 1) with N pairs
    metric: str  # name of the probe's score; empty if not probed
    probe: float  # linear probe on validation labels
    knn: float
    random_encoder: float  # the probe of an untrained encoder
    image_statistics: float  # the probe of means and deviations of the bands
    collapsed: bool  # whether the projections had collapsed in the interval


def read_curves(runs: Iterable[StudyRun]) -> list[CurvePoint]:
    """Read the metric records of runs; runs that have not started have none."""
    paths = [(run, Path(run.config.run_dir, METRICS_NAME)) for run in runs]
    return [_point(run, one) for run, path in paths if path.is_file() for one in read_metrics(path)]


def _point(run: StudyRun, record: dict[str, Any]) -> CurvePoint:
    # the probe's first metric, as in the curves of a single run
    metric = next((key for key in record if key.startswith("probe/")), "").partition("/")[2]
    keys = {
        **{"loss": "loss", "probe": f"probe/{metric}", "knn": f"knn/{metric}"},
        **{name: f"controls/{name}" for name in ("random_encoder", "image_statistics")},
    }
    numbers = {
        name: math.nan if record.get(key) is None else float(record[key])
        for name, key in keys.items()
    }
    known = None not in (record["deviation"], record["mean_cosine"])
    return CurvePoint(
        arm=run.arm,
        seed=run.seed,
        step=record["step"],
        share=record["step"] / record["num_steps"],
        chance_level=record["chance_level"],
        metric=metric,
        **numbers,
        collapsed=known and bool(collapse_in_words(record)),
    )


@dataclass(frozen=True, slots=True)
class Findings:
    """All conclusions from a table of scores."""

    table: Table
    score: str  # its name
    means: list[Estimate]  # of arms
    against: list[Estimate]  # differences from the first arm, or from the controls; may be empty
    operations: list[Estimate] = field(default_factory=list)  # effects of operations in couplets
    ranks: Stability | None = None  # None where arms are not ranked
    # of each couplet to be in the lowest quarter; empty in other studies
    chances: dict[str, float] = field(default_factory=dict)
    curves: list[CurvePoint] = field(default_factory=list)  # empty in studies without curves
    same_loss: bool = False  # whether the arms' losses are comparable


def conclude(config: StudyConfig, table: Table) -> Findings:
    """Return the conclusions from the table of a study's scores."""
    if config.study is StudyName.labels:
        return Findings(table, config.score, arm_means(table), advantages(table))
    means = arm_means(table)
    scored = [one.name for one in means if "+" in one.name and one.seeds]
    couplets = scored if config.study in COUPLET_STUDIES else []
    ranked = table.only(couplets) if couplets else table
    # a study of couplets only has no reference arm
    has_reference = len(table.arms) > 1 and "+" not in table.arms[0]
    return Findings(
        table,
        config.score,
        means,
        differences(table, table.arms[0]) if has_reference else [],
        operation_effects(ranked) if couplets else [],
        stability(ranked),
        chance_of_bottom(ranked) if couplets else {},
        read_curves(runs_of(config)) if config.study in CURVES else [],
        config.study in SAME_LOSS,
    )
