"""The manifest of a packed source: written last by packing, read first by everybody else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preprocess.shards.atomic_io import write_json
from preprocess.shards.compression import NO_CODEC
from preprocess.shards.format import FORMAT, FORMAT_VERSION, UNIT, ShardLayout

MANIFEST_NAME = "manifest.json"
_CHECKSUM = "sha256"


@dataclass(frozen=True, slots=True)
class ShardOrigin:
    """What shards and manifest say of their source.

    Attributes:
        source: name of the source.
        simulated: True when the patches were synthesised, never measured.
        processing_level: L1C or L2A; empty if unknown.
    """

    source: str
    simulated: bool
    processing_level: str = ""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard file.

    Attributes:
        file: name relative to the manifest.
        rows: number of samples.
        size_bytes: size of the whole file.
        sha256: of the whole file.
        offsets: byte offset in the file of each band group's contiguous data set; empty if the
            pixels are compressed.
        codec: how they are compressed: none, gzip or zstd; bitshuffle-lz4 in older packs.
    """

    file: str
    rows: int
    size_bytes: int
    sha256: str
    offsets: dict[str, int]
    codec: str = NO_CODEC


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """Exact statistics of one band of one source over valid pixels, in stored values.

    Nodata (0) and saturated (65535) pixels are left out of all but ``nodata_fraction``.
    ``clipped_fraction`` is the share stored as 1, which stands for all reflectances up to 0.0001,
    the negative ones among them.
    """

    count: int
    mean: float
    std: float
    minimum: int
    maximum: int
    percentile_1: int
    percentile_99: int
    nodata_fraction: float
    clipped_fraction: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a reader must know of a packed source before it opens a shard.

    Attributes:
        source: name of the source; statistics and normalisation belong to it.
        simulated: True when the patches were synthesised, never measured.
        processing_level: L1C (top of atmosphere) or L2A (surface); empty if unknown.
        layout: band groups and label sets of every sample.
        shards: the shard files, in order.
        statistics: per band name.
        provenance: configuration, versions, counts and reasons of rejected inputs.
    """

    source: str
    simulated: bool
    layout: ShardLayout
    shards: tuple[ShardEntry, ...]
    statistics: dict[str, BandStatistics]
    provenance: dict[str, Any] = field(default_factory=dict)
    processing_level: str = ""

    @property
    def rows(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any packed byte changes."""
        digest = hashlib.sha256(json.dumps(self.layout.to_json(), sort_keys=True).encode())
        for shard in self.shards:
            digest.update(shard.sha256.encode())
        return digest.hexdigest()[:16]

    def write(self, folder: Path) -> Path:
        """Write ``manifest.json`` atomically; call it after every shard is in place."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "unit": UNIT}
        body = {**asdict(self), "layout": self.layout.to_json()}
        counts = {"rows": self.rows, "fingerprint": self.fingerprint}
        data = {**head, **counts, **body}
        write_json(folder / MANIFEST_NAME, {**data, _CHECKSUM: _checksum(data)})
        return folder / MANIFEST_NAME


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a packed source.

    Raises:
        ValueError: there is none, or it is not ours, damaged, or of another format version.
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
        return _from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it and give the command of packing again: it is "
            "written anew when every shard has the checksum that packing noted"
        ) from error


def _checksum(data: dict[str, Any]) -> str:
    """Return the SHA-256 of what a manifest says, however its JSON is laid out."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _from_json(data: dict[str, Any]) -> Manifest:
    return Manifest(
        source=data["source"],
        simulated=data["simulated"],
        layout=ShardLayout.from_json(data["layout"]),
        shards=tuple(ShardEntry(**entry) for entry in data["shards"]),
        statistics={band: BandStatistics(**values) for band, values in data["statistics"].items()},
        provenance=data["provenance"],
        processing_level=data.get("processing_level", ""),
    )
