"""A table of scores comes in; means, effects and ranks, each with its uncertainty, go out.

Seeds are the units that are repeated: every interval is Student's over seeds, paired where arms are
compared, and tests on many arms are corrected by Holm's procedure (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from jobs.studies.scores import Grid, Table

Array = NDArray[np.float64]
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
        needed(between_seeds),
    )


def spearman_brown(correlation: float, count: int) -> float:
    """Return the reliability of the mean of ``count`` replicates (Spearman 1910, Brown 1910).

    It is 0 where replicates disagree, which their formula was not made for: at -1 and two of them
    it would divide by zero.
    """
    if correlation <= 0:
        return 0.0
    return count * correlation / (1 + (count - 1) * correlation)


def needed(correlation: float) -> float:
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


def _mean(values: Grid | Array, axis: int) -> Array:
    """Return means over what is there; NaN where nothing is."""
    count = (~np.isnan(values)).sum(axis=axis)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(count, np.nansum(values, axis=axis) / count, np.nan)
    return mean
