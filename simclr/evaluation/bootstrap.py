"""Intervals of scores and of paired differences, by a bootstrap over blocks of test samples.

All encoders share the same resamples: in a difference, sample difficulty common to both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from simclr.evaluation.config import SCORES, WITHOUT_INTERVAL
from simclr.evaluation.jobs import EvalResult
from simclr.evaluation.metrics import (
    FloatArray,
    Indices,
    Weights,
    metric_table,
    reliability,
    unit_weights,
)

CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
MIN_BLOCKS = 20  # with fewer, bootstrap intervals are too narrow
# The jackknife for bias and skew scores at most this often: more blocks are left out in groups.
_MAX_GROUPS = 250
_CHUNK_ELEMENTS = 1 << 22
ALIKE = 1e-12  # scores this near are equal but for rounding


@dataclass(frozen=True, slots=True)
class Blocks:
    """The units that a resample draws with replacement."""

    unit: str  # tile, block, cell or patch
    of_sample: Indices  # (N,) block number of each sample
    count: int  # number of blocks

    def chunks(self, num_rows: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of row ranges whose weights (r, N) stay small in memory."""
        rows = max(1, _CHUNK_ELEMENTS // max(len(self.of_sample), 1))
        for start in range(0, num_rows, rows):
            yield start, min(start + rows, num_rows)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the bounds of its 95 % interval; the bounds are NaN if there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is entirely on one side of zero."""
        return self.low > 0 or self.high < 0


def choose_blocks(units: dict[str, npt.NDArray[np.str_]], num_samples: int) -> Blocks:
    """Return the first unit known for all samples, with 20 blocks or more, but fewer than samples.

    ``units`` hold names of blocks (N,), coarsest unit first; an empty name means unknown. The
    fallback is single patches.
    """
    for unit, names in units.items():
        found, of_sample = np.unique(names, return_inverse=True)
        if MIN_BLOCKS <= len(found) < num_samples and "" not in found:
            return Blocks(unit, of_sample, len(found))
    return Blocks("patch", np.arange(num_samples), num_samples)


def resamples(blocks: Blocks, num_resamples: int, seed: int) -> Iterator[Weights]:
    """Yield sample counts (r, N) of ``num_resamples`` resamples of the blocks, in chunks.

    The rows depend on the seed alone, not on the chunk size.
    """
    generator = np.random.default_rng(seed)
    for start, end in blocks.chunks(num_resamples):
        size = end - start
        drawn = generator.integers(0, blocks.count, (size, blocks.count))
        drawn += np.arange(size)[:, None] * blocks.count
        counts = np.bincount(drawn.ravel(), minlength=size * blocks.count)
        yield counts.reshape(size, -1)[:, blocks.of_sample].astype(np.int32)


def left_out_counts(blocks: Blocks) -> Iterator[Weights]:
    """Yield counts (r, N), each row without one block, or one of 250 random groups of blocks."""
    groups = min(blocks.count, _MAX_GROUPS)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).permutation(blocks.count)
    group_of_sample = (drawn * groups // blocks.count)[blocks.of_sample]
    for start, end in blocks.chunks(groups):
        yield (group_of_sample != np.arange(start, end)[:, None]).astype(np.int32)


def score_interval(
    value: float, draws: FloatArray, left_out: FloatArray, num_blocks: int
) -> Interval:
    """Return a 95 % interval of a score that may be biased.

    It spans two intervals: BCa (Efron 1987), which suits skewed scores near their bound, and the
    percentile interval shifted and widened by bias and error of the jackknife, which suits average
    precision, whose resamples rank repeated samples too well. Both use Student's quantiles for few
    blocks (Hesterberg 2015, expanded percentile interval). Without bounds if all resamples give the
    same score. ``draws`` (R,) are scores over resamples, NaN where undefined, and ``left_out`` (G,)
    scores without one block or group of blocks each.
    """
    draws, left_out = draws[~np.isnan(draws)], left_out[~np.isnan(left_out)]
    if len(draws) < 2 or len(left_out) < 2 or np.ptp(draws) < ALIKE:
        return Interval(value)
    reach = _student_quantile(num_blocks - 1) * math.sqrt(num_blocks / (num_blocks - 1))
    below = (draws < value).mean() + 0.5 * (draws == value).mean()
    bias = stats.norm.ppf(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    pull = left_out.mean() - left_out
    skew = (pull**3).sum() / (6 * max((pull**2).sum() ** 1.5, np.finfo(float).tiny))
    ends = bias + np.array([-reach, reach])
    bca = np.quantile(draws, stats.norm.cdf(bias + ends / (1 - skew * ends)))
    # repeated samples rank too well and vary too little: the jackknife's error may be larger
    wider = max(1.0, math.sqrt((len(left_out) - 1) * left_out.var()) / float(draws.std()))
    moved = wider * (np.quantile(draws, stats.norm.cdf([-reach, reach])) - draws.mean())
    moved += value - (len(left_out) - 1) * (left_out.mean() - value)
    low, high = min(value, bca[0], moved[0]), max(value, bca[1], moved[1])
    return Interval(value, max(float(low), 0.0), min(float(high), max(1.0, float(draws.max()))))


def difference_interval(value: float, draws: FloatArray, num_blocks: int) -> tuple[Interval, float]:
    """Return the 95 % interval of a paired difference, and the p-value of no difference.

    Bias and standard error are those of the resamples (Davison and Hinkley 1997, section 5.2),
    quantiles are Student's. Without bounds, and with p = 1, if all resamples are equal.
    """
    draws = draws[~np.isnan(draws)]
    if len(draws) < 2 or np.ptp(draws) < ALIKE:
        return Interval(value), 1.0
    centre = 2 * value - float(draws.mean())
    error = float(draws.std(ddof=1)) * math.sqrt(num_blocks / (num_blocks - 1))
    half = _student_quantile(num_blocks - 1) * error
    p_value = 2 * stats.t.sf(abs(centre) / error, num_blocks - 1)
    return Interval(value, centre - half, centre + half), float(p_value)


def repeated_split_interval(differences: FloatArray, test_to_train: float) -> Interval:
    """Return Student's interval of a mean over seeds (Nadeau and Bengio 2003, section 4).

    Without bounds for a single seed. ``differences`` (S,) are paired, one per seed.
    ``test_to_train`` is the ratio of test to training samples if every seed draws its own split of
    the same samples, which correlates their scores, and 0 if all share one split.
    """
    num_seeds, mean = len(differences), float(differences.mean())
    if num_seeds < 2:
        return Interval(mean)
    spread = float(differences.std(ddof=1)) * math.sqrt(1 / num_seeds + test_to_train)
    half = _student_quantile(num_seeds - 1) * spread
    return Interval(mean, mean - half, mean + half)


def _student_quantile(degrees: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


@dataclass(frozen=True, slots=True)
class Row:
    """One encoder under one protocol, averaged over its seeds; all dicts are keyed by score."""

    encoder: str
    protocol: str
    fraction: float  # share of the training labels
    results: tuple[EvalResult, ...]  # one per seed; a single one if seeds make no difference
    intervals: dict[str, Interval]  # over resamples of the test blocks
    classes: dict[str, FloatArray]  # (C,) scores of single classes
    by_seed: dict[str, FloatArray]  # (S,) score of each result
    draws: dict[str, FloatArray]  # (R,) scores over the resamples
    num_blocks: int  # number of test blocks

    def scores_as_data(self) -> dict[str, Any]:
        """Return names, choices made on validation, and scores with intervals."""
        return {
            "encoder": self.encoder,
            "protocol": self.protocol,
            "fraction": self.fraction,
            "seeds": [one.seed for one in self.results],
            "choices": [one.choices for one in self.results],
            "scores": {
                name: {**asdict(interval), "by_seed": self.by_seed[name].tolist()}
                for name, interval in self.intervals.items()
            },
        }

    def as_data(self, kind: str) -> dict[str, Any]:
        """Return the entire row: also classes, confusion (true, predicted) and reliability."""
        first, confusion = self.results[0], None
        if kind == "single":
            parts = [r.targets.T.astype(np.int64) @ r.predictions.predicted for r in self.results]
            confusion = np.sum(parts, axis=0).tolist()
        curve = reliability(first.targets, first.predictions.scores, kind)
        return {
            **self.scores_as_data(),
            # a single class has too few patches for a trustworthy interval
            "classes": {
                name: [asdict(Interval(value)) for value in values.tolist()]
                for name, values in self.classes.items()
            },
            "confusion": confusion,
            "reliability": {name: values.tolist() for name, values in curve.items()},
        }


def score_results(
    results: Sequence[EvalResult], kind: str, tested: Indices, blocks: Blocks, num_resamples: int
) -> list[Row]:
    """Score all results on the same resamples; return a row per encoder, protocol and fraction.

    ``tested`` (T,), sorted, are the samples tested by any result; ``blocks`` are theirs.
    """
    tables = [metric_table(one.targets, one.predictions, kind) for one in results]
    positions = [np.searchsorted(tested, one.test) for one in results]

    def tabulate(chunks: Iterator[Weights]) -> list[dict[str, FloatArray]]:
        """Return the scores of each result under weights (r, T) of the tested samples."""
        parts: list[list[dict[str, FloatArray]]] = [[] for _ in results]
        for counts in chunks:
            for table, columns, own in zip(tables, positions, parts, strict=True):
                whole = len(columns) == counts.shape[1]  # then indexing would only copy
                own.append(table(counts if whole else counts[:, columns]).overall)
        return [
            {name: np.concatenate([part[name] for part in own]) for name in SCORES[kind]}
            for own in parts
        ]

    plain = [table(unit_weights(len(one.test))) for table, one in zip(tables, results, strict=True)]
    draws = tabulate(resamples(blocks, num_resamples, BOOTSTRAP_SEED))
    left_out = tabulate(left_out_counts(blocks))
    members: dict[tuple[str, str, float], list[int]] = {}
    for number, one in enumerate(results):
        members.setdefault((one.encoder, one.protocol, one.fraction), []).append(number)

    rows = []
    for names, numbers in members.items():
        by_seed, intervals, mean_draws = {}, {}, {}
        for name in SCORES[kind]:
            by_seed[name] = np.array([plain[i].overall[name][0] for i in numbers])
            mean_draws[name] = np.mean([draws[i][name] for i in numbers], axis=0)
            without = np.mean([left_out[i][name] for i in numbers], axis=0)
            value = float(by_seed[name].mean())
            intervals[name] = (
                Interval(value)
                if name in WITHOUT_INTERVAL
                else score_interval(value, mean_draws[name], without, blocks.count)
            )
        classes = {
            name: np.mean([plain[i].classes[name][0] for i in numbers], axis=0)
            for name in plain[0].classes
        }
        own = tuple(results[i] for i in numbers)
        rows.append(Row(*names, own, intervals, classes, by_seed, mean_draws, blocks.count))
    return rows


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference in one score between an encoder and a control, positive if it is ahead."""

    encoder: str
    control: str
    protocol: str
    fraction: float
    score: str
    over_samples: Interval  # over resamples of the test blocks, paired
    over_seeds: Interval  # Student's, corrected for overlapping test sets; no bounds for one seed
    p_value: float  # two-sided, of no difference, from the paired resamples of the test blocks
    resolved: bool  # whether all available intervals exclude zero


def compare(row: Row, control: Row, kind: str, test_to_train: float) -> list[Difference]:
    """Return the paired differences of two rows of one protocol, for every score with intervals.

    ``test_to_train``: ratio of test to training samples if every seed drew its own split, else 0.
    """
    differences = []
    for score in (name for name in SCORES[kind] if name not in WITHOUT_INTERVAL):
        # a row without seeds is compared with every seed of the other
        by_seed = np.subtract(*np.broadcast_arrays(row.by_seed[score], control.by_seed[score]))
        paired = row.draws[score] - control.draws[score]
        samples, p_value = difference_interval(float(by_seed.mean()), paired, row.num_blocks)
        seeds = repeated_split_interval(by_seed, test_to_train)
        resolved = samples.excludes_zero and (len(by_seed) == 1 or seeds.excludes_zero)
        names = row.encoder, control.encoder, row.protocol, row.fraction, score
        differences.append(Difference(*names, samples, seeds, p_value, resolved))
    return differences


def compare_with_all(
    rows: Sequence[Row], encoder: str, kind: str, test_to_train: float
) -> list[dict[str, Any]]:
    """Return the differences of an encoder's rows to all others of their protocol, as plain data.

    ``p_holm`` is the p-value corrected for the number of comparisons (Holm 1979).
    """
    differences = [
        asdict(difference)
        for row in rows
        for other in rows
        if row.encoder == encoder != other.encoder
        and (row.protocol, row.fraction) == (other.protocol, other.fraction)
        for difference in compare(row, other, kind, test_to_train)
    ]
    families: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for one in differences:
        families.setdefault((one["protocol"], one["fraction"], one["score"]), []).append(one)
    for family in families.values():
        corrected = holm([one["p_value"] for one in family])
        for one, p_value in zip(family, corrected, strict=True):
            one["p_holm"] = p_value
    return differences


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm 1979); NaN is no test, and stays."""
    corrected, highest = list(p_values), 0.0
    tests = [k for k, p_value in enumerate(p_values) if not math.isnan(p_value)]
    for rank, k in enumerate(sorted(tests, key=lambda k: p_values[k])):
        highest = max(highest, p_values[k] * (len(tests) - rank))
        corrected[k] = min(highest, 1.0)
    return corrected
