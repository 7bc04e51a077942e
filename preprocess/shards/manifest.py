"""The manifest of a packed source: written last by packing, read first by all readers.

Histograms over all 65,536 values are lossless: those of a source's parts add up exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards.atomic_io import write_json
from preprocess.shards.format import (
    FORMAT,
    FORMAT_VERSION,
    HISTOGRAM,
    INDEX,
    LABELS,
    NO_CODEC,
    NODATA,
    NUM_PIXEL_VALUES,
    SATURATED,
    UNIT,
    UNKNOWN_LABEL,
    ShardLayout,
    open_shard,
)

MANIFEST_NAME = "manifest.json"
SIMULATED_NOTICE = "simulated patches: synthesised by a program, never measured"
_CHECKSUM = "sha256"
_UNKNOWN = "unknown"
_OF_PRODUCTS = ("product", "baseline", "offset", "offset_authority")

Histogram = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """Source information stored in shards and manifest."""

    source: str
    simulated: bool  # the patches were synthesised, never measured
    processing_level: str = ""  # L1C or L2A; empty if unknown


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard file."""

    file: str  # name relative to the manifest
    rows: int
    size_bytes: int
    sha256: str  # checksum of the entire file
    # byte offset of each band group's contiguous data set; empty if pixels are compressed
    offsets: dict[str, int]
    codec: str = NO_CODEC  # none, gzip or zstd; bitshuffle-lz4 in older packs


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """Exact statistics of one band of one source over valid pixels, in stored values.

    Nodata (0) and saturated (65535) pixels are excluded from all but ``nodata_fraction``.
    ``clipped_fraction`` is the share stored as 1, which represents all reflectances up to 0.0001,
    including negative ones; None in manifests written before it was counted.
    """

    count: int
    mean: float
    std: float
    minimum: int
    maximum: int
    percentile_1: int
    percentile_99: int
    nodata_fraction: float
    clipped_fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a reader must know about a packed source before opening a shard."""

    source: str  # name, to which statistics and normalisation belong
    simulated: bool  # the patches were synthesised, never measured
    layout: ShardLayout  # band groups and label sets of every sample
    shards: tuple[ShardEntry, ...]
    statistics: dict[str, BandStatistics]  # by band name
    # configuration, versions, counts of patches, reasons for rejection
    provenance: dict[str, Any] = field(default_factory=dict)
    processing_level: str = ""  # L1C (top of atmosphere) or L2A (surface); empty if unknown

    @property
    def origin(self) -> ShardOrigin:
        """Source information as stored in its shards."""
        return ShardOrigin(self.source, self.simulated, self.processing_level)

    @property
    def rows(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change if any packed byte changes."""
        digest = hashlib.sha256(json.dumps(self.layout.to_json(), sort_keys=True).encode())
        for shard in self.shards:
            digest.update(shard.sha256.encode())
        return digest.hexdigest()[:16]

    def write(self, folder: Path) -> Path:
        """Write ``manifest.json`` atomically; call it after every shard is in place."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "unit": UNIT}
        data = {**head, "rows": self.rows, "fingerprint": self.fingerprint, **asdict(self)}
        write_json(folder / MANIFEST_NAME, {**data, _CHECKSUM: _checksum(data)})
        return folder / MANIFEST_NAME


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a packed source.

    Raises:
        ValueError: there is none, or it is foreign, damaged, or of another format version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST_NAME}: not packed, or packing not finished")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not readable JSON ({error}); remove it, and the same simclr-pack makes it "
            "again from the shards"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of {FORMAT}")
    if data.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} is of format version {data.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; pack the source again"
        )
    try:
        found = data.pop(_CHECKSUM)
        if found != _checksum(data):
            raise ValueError(f"its {_CHECKSUM} is not that of its content")
        statistics = data["statistics"].items()
        return Manifest(
            source=data["source"],
            simulated=data["simulated"],
            layout=ShardLayout.from_json(data["layout"]),
            shards=tuple(ShardEntry(**entry) for entry in data["shards"]),
            statistics={band: BandStatistics(**values) for band, values in statistics},
            provenance=data["provenance"],
            processing_level=data.get("processing_level", ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it and give the command of packing again: it is "
            "written anew when every shard has the checksum that packing noted"
        ) from error


def _checksum(data: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, independent of its JSON layout."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def empty_histogram(num_bands: int) -> Histogram:
    """Return zero counts: (num_bands, 65536) int64."""
    return np.zeros((num_bands, NUM_PIXEL_VALUES), np.int64)


def summarise(counts: npt.NDArray[np.int64]) -> BandStatistics:
    """Return the statistics of one band from its counts (65536,).

    A percentile is the smallest stored value that at least that share of pixels does not exceed.
    Without valid pixels, all but ``nodata_fraction`` is 0.
    """
    total, nodata = int(counts.sum()), int(counts[NODATA])
    valid = counts.copy()
    valid[[NODATA, SATURATED]] = 0
    values = np.flatnonzero(valid)
    if not values.size:
        return BandStatistics(0, 0.0, 0.0, 0, 0, 0, 0, nodata / total if total else 0.0, 0.0)
    weights = valid[values]
    count = int(weights.sum())
    mean = int((values * weights).sum()) / count
    # integers only: a rounded rank could select the neighbouring value
    ranks = [-(-count * percent // 100) for percent in (1, 99)]
    percentile_1, percentile_99 = values[np.searchsorted(weights.cumsum(), ranks)].tolist()
    return BandStatistics(
        count=count,
        mean=mean,
        std=float(np.sqrt((weights * (values - mean) ** 2).sum() / count)),
        minimum=int(values[0]),
        maximum=int(values[-1]),
        percentile_1=percentile_1,
        percentile_99=percentile_99,
        nodata_fraction=nodata / total,
        clipped_fraction=int(valid[NODATA + 1]) / count,
    )


def _counted(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of label counts: the classes, and a key of its own for unlabelled patches."""
    unlabelled = _UNKNOWN
    while unlabelled in classes:  # a folder of images may well have this name
        unlabelled = f"({unlabelled})"
    return (*classes, unlabelled)


def build_manifest(
    folder: Path, origin: ShardOrigin, layout: ShardLayout, entries: Sequence[ShardEntry]
) -> Manifest:
    """Return the manifest of finished shards, without writing it."""
    total = empty_histogram(len(layout.bands))
    products = Counter[tuple[Any, ...]]()
    labels = {s.name: dict.fromkeys(_counted(s.classes), 0) for s in layout.label_sets}
    for entry in entries:
        with open_shard(folder / entry.file) as file:
            total += file[HISTOGRAM][()]
            columns = [file[f"{INDEX}/{name}"][()].tolist() for name in _OF_PRODUCTS]
            products.update(zip(*columns, strict=True))
            for name, counts in labels.items():
                rows = file[f"{LABELS}/{name}"][()]
                unknown = (rows == UNKNOWN_LABEL).all(axis=1)
                found = [*rows[~unknown].sum(axis=0, dtype=int).tolist(), int(unknown.sum())]
                for label, count in zip(counts, found, strict=True):
                    counts[label] += count
    product_rows = []
    for key, count in sorted(products.items()):
        values = [value.decode() if isinstance(value, bytes) else value for value in key]
        product_rows.append(dict(zip((*_OF_PRODUCTS, "rows"), (*values, count), strict=True)))
    by_band = zip(layout.bands, total, strict=True)
    provenance: dict[str, Any] = {"notice": SIMULATED_NOTICE} if origin.simulated else {}
    provenance |= {"label_counts": labels, "products": product_rows}
    return Manifest(
        source=origin.source,
        simulated=origin.simulated,
        processing_level=origin.processing_level,
        layout=layout,
        shards=tuple(entries),
        statistics={band: summarise(counts) for band, counts in by_band},
        provenance=provenance,
    )
