"""Samples and their blocks come in; bootstrap counts and 95 % intervals go out.

The same seed gives the same resamples to every encoder, so that a difference between two encoders
is taken resample by resample: what both find easy or hard cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simclr.evaluation.metrics import FloatArray, Indices, Weights

CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
# A percentile interval over fewer blocks is too narrow to be believed.
MIN_BLOCKS = 20
_CHUNK_ELEMENTS = 1 << 22

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Blocks:
    """What a resample draws with replacement.

    Attributes:
        unit: ``tile``, ``place`` or ``patch``.
        of_sample: (N,) number of the block each sample lies in.
        count: number of blocks.
    """

    unit: str
    of_sample: Indices
    count: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its 95 % interval; ends are NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def choose_blocks(units: dict[str, npt.NDArray[np.str_]], num_samples: int) -> Blocks:
    """Take the first unit known for every sample, with 20 blocks at least and shared by samples.

    Args:
        units: names of blocks (N,), coarsest unit first; an empty name means unknown.
        num_samples: N.

    Returns:
        The blocks; single patches where no unit will do.
    """
    for unit, names in units.items():
        found, of_sample = np.unique(names, return_inverse=True)
        if MIN_BLOCKS <= len(found) < num_samples and "" not in found:
            return Blocks(unit, of_sample, len(found))
    return Blocks("patch", np.arange(num_samples), num_samples)


def resamples(blocks: Blocks, num_resamples: int, seed: int) -> Iterator[Weights]:
    """Yield counts (r, N) of ``num_resamples`` resamples of the blocks, some rows at a time.

    Every yield is small enough to stay in memory; the rows depend on the seed alone.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // max(len(blocks.of_sample), 1))
    for start in range(0, num_resamples, rows):
        size = min(rows, num_resamples - start)
        drawn = generator.integers(0, blocks.count, (size, blocks.count))
        drawn += np.arange(size)[:, None] * blocks.count
        counts = np.bincount(drawn.ravel(), minlength=size * blocks.count)
        yield counts.reshape(size, -1)[:, blocks.of_sample].astype(np.int32)


def percentile_interval(value: float, distribution: FloatArray) -> Interval:
    """Return the 95 % percentile interval of a bootstrap distribution (R,).

    Resamples in which the score does not exist (NaN) are left out.
    """
    known = distribution[~np.isnan(distribution)]
    if len(known) == 0:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def two_sided_p(distribution: FloatArray) -> float:
    """Return the p-value of no difference, from resampled paired differences (R,).

    Twice the share of resamples on the rarer side of zero, the observed one counted among them
    (Davison and Hinkley 1997, section 4.2), so that it is never 0.
    """
    known = distribution[~np.isnan(distribution)]
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(known) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979): each in its own place."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.array(p_values)[order] * factors)
    return [float(value) for value in corrected.clip(max=1.0)]


def repeated_split_interval(differences: FloatArray, test_to_train: float) -> Interval:
    """Return Student's interval of a mean over seeds (Nadeau and Bengio 2003, section 4).

    Args:
        differences: (S,) paired differences, one for each seed.
        test_to_train: test samples over training samples where every seed draws its own split of
            the same samples, whose scores are therefore correlated; 0 where all share one split.

    Returns:
        The interval; without ends for a single seed.
    """
    num_seeds = len(differences)
    mean = float(differences.mean())
    if num_seeds < 2:
        return Interval(mean, math.nan, math.nan)
    spread = float(differences.std(ddof=1)) * math.sqrt(1 / num_seeds + test_to_train)
    half = student_quantile(num_seeds - 1) * spread
    return Interval(mean, mean - half, mean + half)


def student_quantile(degrees: int) -> float:
    """Return the two-sided 95 % point of Student's t; beyond 30 degrees by its expansion."""
    if degrees <= len(_STUDENT):
        return _STUDENT[degrees - 1]
    # Abramowitz and Stegun 26.7.5, first term: right to four digits from here on.
    return _NORMAL + (_NORMAL**3 + _NORMAL) / (4 * degrees)
