"""Exact band statistics: pixels are counted by value, the counts become mean, deviation, bounds.

A histogram over all 65,536 values loses nothing and merges by addition, so parts of a source
packed by different tasks give the same statistics to the last bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import NODATA, NUM_PIXEL_VALUES, SATURATED
from preprocess.shards.manifest import BandStatistics

Histogram = npt.NDArray[np.int64]


def empty_histogram(num_bands: int) -> Histogram:
    """Return counts of nothing: (num_bands, 65536) int64."""
    return np.zeros((num_bands, NUM_PIXEL_VALUES), np.int64)


def count_values(histogram: Histogram, pixels: npt.NDArray[np.uint16]) -> None:
    """Add pixels (samples, bands, height, width) to a histogram (bands, 65536), in place."""
    for band, counts in enumerate(histogram):
        counts += np.bincount(pixels[:, band].ravel(), minlength=NUM_PIXEL_VALUES)


def summarise(counts: npt.NDArray[np.int64]) -> BandStatistics:
    """Return the statistics of one band from its counts (65536,).

    Percentiles are stored values: the smallest that at least that share of pixels does not
    exceed. A band without a valid pixel has ``count`` 0 and zeros throughout.
    """
    total = int(counts.sum())
    nodata = int(counts[NODATA])
    valid = counts.copy()
    valid[[NODATA, SATURATED]] = 0
    values = np.flatnonzero(valid)
    if not values.size:
        return BandStatistics(0, 0.0, 0.0, 0, 0, 0, 0, nodata / total if total else 0.0)
    weights = valid[values]
    count = int(weights.sum())
    mean = int((values * weights).sum()) / count
    return BandStatistics(
        count=count,
        mean=mean,
        std=float(np.sqrt((weights * (values - mean) ** 2).sum() / count)),
        minimum=int(values[0]),
        maximum=int(values[-1]),
        percentile_1=_percentile(values, weights, 1),
        percentile_99=_percentile(values, weights, 99),
        nodata_fraction=nodata / total,
    )


def _percentile(values: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], percent: int) -> int:
    # whole numbers only: a rounded rank could fall on the neighbouring value
    rank = -(-int(weights.sum()) * percent // 100)
    return int(values[np.searchsorted(weights.cumsum(), rank)])
