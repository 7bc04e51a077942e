"""Finished shards come in, their manifest with band statistics and label counts goes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preprocess.shards.layout import HISTOGRAM, INDEX, LABELS, UNKNOWN_LABEL, ShardLayout
from preprocess.shards.manifest import BandStatistics, Manifest, ShardEntry
from preprocess.shards.reader import open_shard
from preprocess.shards.writer import ShardOrigin
from preprocess.statistics import Histogram, empty_histogram, summarise

LabelCounts = dict[str, dict[str, int]]
UNKNOWN = "unknown"
_OF_PRODUCTS = ("product", "baseline", "offset", "offset_authority")

SIMULATED_NOTICE = "simulated patches: synthesised by a program, never measured"


def build_manifest(
    folder: Path, origin: ShardOrigin, layout: ShardLayout, entries: Sequence[ShardEntry]
) -> Manifest:
    """Return the manifest of finished shards; writing it is left to the caller."""
    provenance: dict[str, Any] = {"notice": SIMULATED_NOTICE} if origin.simulated else {}
    return Manifest(
        source=origin.source,
        simulated=origin.simulated,
        layout=layout,
        shards=tuple(entries),
        statistics=band_statistics(folder, entries, layout),
        provenance={
            **provenance,
            "label_counts": label_counts(folder, entries, layout),
            "products": products_of(folder, entries),
        },
    )


def band_statistics(
    folder: Path, entries: Sequence[ShardEntry], layout: ShardLayout
) -> dict[str, BandStatistics]:
    """Return exact statistics by band over all shards, from the histogram that each holds."""
    total = empty_histogram(len(layout.bands))
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            total += file[HISTOGRAM][()]
    return statistics_of(total, layout)


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
    names = (*_OF_PRODUCTS, "rows")
    return [
        dict(zip(names, [*(_as_text(value) for value in key), rows], strict=True))
        for key, rows in sorted(counts.items())
    ]


def _as_text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def label_counts(folder: Path, entries: Sequence[ShardEntry], layout: ShardLayout) -> LabelCounts:
    """Return how many patches carry each class, and how many have no answer, by label set."""
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
