"""Exact band statistics from histograms, and the manifest that is made from finished shards.

A histogram over all 65,536 values loses nothing and merges by addition, so parts of a source
packed by different tasks give the same statistics to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import (
    HISTOGRAM,
    INDEX,
    LABELS,
    NODATA,
    NUM_PIXEL_VALUES,
    SATURATED,
    UNKNOWN_LABEL,
    ShardLayout,
)
from preprocess.shards.manifest import BandStatistics, Manifest, ShardEntry, ShardOrigin
from preprocess.shards.reader import open_shard

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
        return BandStatistics(0, 0.0, 0.0, 0, 0, 0, 0, nodata / total if total else 0.0, 0.0)
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
        clipped_fraction=int(valid[NODATA + 1]) / count,
    )


def _percentile(values: npt.NDArray[np.int64], weights: npt.NDArray[np.int64], percent: int) -> int:
    # whole numbers only: a rounded rank could fall on the neighbouring value
    rank = -(-int(weights.sum()) * percent // 100)
    return int(values[np.searchsorted(weights.cumsum(), rank)])


LabelCounts = dict[str, dict[str, int]]
UNKNOWN = "unknown"
SIMULATED_NOTICE = "simulated patches: synthesised by a program, never measured"
_OF_PRODUCTS = ("product", "baseline", "offset", "offset_authority")


def build_manifest(
    folder: Path, origin: ShardOrigin, layout: ShardLayout, entries: Sequence[ShardEntry]
) -> Manifest:
    """Return the manifest of finished shards; writing it is left to the caller."""
    provenance: dict[str, Any] = {"notice": SIMULATED_NOTICE} if origin.simulated else {}
    total = empty_histogram(len(layout.bands))
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            total += file[HISTOGRAM][()]
    return Manifest(
        source=origin.source,
        simulated=origin.simulated,
        processing_level=origin.processing_level,
        layout=layout,
        shards=tuple(entries),
        statistics=statistics_of(total, layout),
        provenance={
            **provenance,
            "label_counts": label_counts(folder, entries, layout),
            "products": products_of(folder, entries),
        },
    )


def statistics_of(histogram: Histogram, layout: ShardLayout) -> dict[str, BandStatistics]:
    """Return statistics by band from counts (bands of the layout, 65536)."""
    return {band: summarise(counts) for band, counts in zip(layout.bands, histogram, strict=True)}


def products_of(folder: Path, entries: Sequence[ShardEntry]) -> list[dict[str, Any]]:
    """Return each product with its baseline, the offset applied, who decided it, and its rows."""
    counts = Counter[tuple[Any, ...]]()
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            columns = [file[f"{INDEX}/{name}"][()].tolist() for name in _OF_PRODUCTS]
        counts.update(zip(*columns, strict=True))
    return [
        {
            **{
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in zip(_OF_PRODUCTS, key, strict=True)
            },
            "rows": rows,
        }
        for key, rows in sorted(counts.items())
    ]


def label_counts(folder: Path, entries: Sequence[ShardEntry], layout: ShardLayout) -> LabelCounts:
    """Return how many patches carry each class, and how many are unlabelled, by label set."""
    counts = {
        label_set.name: dict.fromkeys((*label_set.classes, UNKNOWN), 0)
        for label_set in layout.label_sets
    }
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            for label_set in layout.label_sets:
                rows = file[f"{LABELS}/{label_set.name}"][()]
                unknown = (rows == UNKNOWN_LABEL).all(axis=1)
                numbers = [*rows[~unknown].sum(axis=0, dtype=int).tolist(), int(unknown.sum())]
                for name, number in zip(counts[label_set.name], numbers, strict=True):
                    counts[label_set.name][name] += number
    return counts
