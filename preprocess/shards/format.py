"""The shard format (one HDF5 file per shard): data set names, dtypes, checksums, codecs, patches.

``docs/shard-format.md`` describes the file.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

FORMAT = "simclr-s2-shard"
FORMAT_VERSION = 1
UNIT = "reflectance x 10000, offset removed"
NODATA = 0  # never a reflectance: dark pixels are clipped to 1 when an offset is removed
SATURATED = 65535  # as delivered by ESA; excluded from statistics
PIXEL_DTYPE = np.dtype("<u2")
NUM_PIXEL_VALUES = 65536

UNKNOWN_LABEL = 255  # an entire row of it: this patch is not labelled in this label set

PATCHES = "patches"  # by group: (rows, bands, size_px, size_px), contiguous unless compressed
INDEX = "index"  # by field: one value per row
LABELS, FRACTIONS = "labels", "fractions"  # by set: (rows, classes) uint8 and float32
HISTOGRAM = "statistics/histogram"  # counts of the stored values of each band

# Text is stored as fixed-width bytes: variable-length strings are in a heap that a checksum of
# the data set does not cover. "S" has the width of the longest value in the shard.
INDEX_FIELDS: dict[str, str] = {
    "id": "S",  # unique within the source
    "path": "S",  # file or folder it was read from, relative to the source's root
    "product": "S",  # ESA product or scene that the patch was cut from, if known
    "tile": "S",  # MGRS tile, five characters, if known
    "place": "S",  # ground cell, the same on every date: equal text means equal ground
    "block": "S",  # ground that splits never divide, over all dates and tiles; may be empty
    "acquired": "S",  # ISO 8601, UTC, if known
    "split": "S",  # train, validation, test, or empty
    "baseline": "S",  # processing baseline, "02.06", if known
    "offset": "<i2",  # added to the digital numbers while packing
    "offset_authority": "S",  # origin: xml, stac:KEY, tags, name, user or source
    "epsg": "<i4",  # 0 if the file has no coordinate system, or one without a code
    "transform": "<f8",  # (rows, 6): affine a b c d e f of the finest group, in CRS units
    "valid_fraction": "<f4",  # share of pixels of the finest group that are not nodata
    "crc32": "<u4",  # zlib.crc32 over the pixels of all groups, in layout order
}
# Present only in shards in which some value is not empty.
OPTIONAL_INDEX_FIELDS: dict[str, str] = {
    "crs_wkt": "S",  # well-known text of a coordinate system without an EPSG code
}
# An additional index field: zlib.crc32 over a row's index fields, label sets and fraction sets.
FACTS_CRC32 = "facts_crc32"

Transform = tuple[float, float, float, float, float, float]
Labels = dict[str, tuple[str, ...]]
Fractions = dict[str, npt.NDArray[np.float32]]

NO_TRANSFORM: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Bands that share one grid."""

    name: str  # name of the data set, such as b10 for 10 m
    bands: tuple[str, ...]  # canonical names in channel order
    size_px: int  # side of the square patch in pixels
    ground_resolution_m: float  # side of a pixel in metres, as stored

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (bands, size_px, size_px)."""
        return (len(self.bands), self.size_px, self.size_px)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in this group."""
        # plain ints: computed for every read, where numpy's product took half the time
        return len(self.bands) * self.size_px**2 * PIXEL_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Class names of one labelling of the patches; they define the column order."""

    name: str  # bigearthnet19, irrigation_regular, eurosat, ...
    kind: str  # single (exactly one class per patch) or multi (any number)
    classes: tuple[str, ...]  # names in column order

    def __post_init__(self) -> None:
        if self.kind not in ("single", "multi"):
            raise ValueError(f"label set {self.name}: kind is {self.kind!r}, not single or multi")


@dataclass(frozen=True, slots=True)
class FractionSet:
    """Classes of a patch's ground shares, from a land-cover map or a scene classification."""

    name: str  # corine, scl, ...
    classes: tuple[str, ...]  # names in column order


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Layout of all samples of a source: band groups, finest first, label and fraction sets."""

    groups: tuple[GroupLayout, ...]
    label_sets: tuple[LabelSet, ...] = ()
    fraction_sets: tuple[FractionSet, ...] = ()

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands in group order."""
        return tuple(band for group in self.groups for band in group.bands)

    @property
    def sample_bytes(self) -> int:
        """Pixel bytes of one sample over all groups (160,000 for BigEarthNet)."""
        return sum(group.sample_bytes for group in self.groups)

    def label_set(self, name: str) -> LabelSet:
        """Return a label set by name.

        Raises:
            ValueError: no label set has that name; the message lists the existing ones.
        """
        for candidate in self.label_sets:
            if candidate.name == name:
                return candidate
        names = ", ".join(labels.name for labels in self.label_sets) or "none: unlabelled patches"
        raise ValueError(f"no label set {name!r} in these shards; they hold: {names}")

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardLayout:
        """Rebuild a layout from the result of ``to_json``."""

        def tupled(one: dict[str, Any], key: str) -> dict[str, Any]:
            """Restore the tuple that JSON holds as a list."""
            return {**one, key: tuple(one[key])}

        return cls(
            tuple(GroupLayout(**tupled(one, "bands")) for one in data["groups"]),
            tuple(LabelSet(**tupled(one, "classes")) for one in data["label_sets"]),
            tuple(FractionSet(**tupled(one, "classes")) for one in data.get("fraction_sets", ())),
        )


class PatchError(ValueError):
    """An input that cannot become a patch; packing can continue without it."""

    def __init__(self, file: object, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)  # the file or folder at fault, as the source named it
        self.reason = reason  # the fault, in one clause


@dataclass(frozen=True, slots=True)
class PatchRef:
    """Location of one patch, and facts known before its files are opened."""

    id: str  # unique within the source; references are packed in the order of their ids
    # file or folder relative to the root, so that shards can be repaired after rasters have moved
    path: str
    split: str = ""  # train, validation, test, or empty
    # class names by label set, if known from the files' location or a table
    labels: Labels = field(default_factory=dict)
    block: str = ""  # ground that splits never divide; empty without blocks

    def to_json(self) -> str:
        """Return one line of JSON."""
        # not asdict, which copies every value: plans have half a million lines
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> PatchRef:
        """Rebuild a reference from the result of ``to_json``."""
        data: dict[str, Any] = json.loads(line)
        labels = {name: tuple(classes) for name, classes in data.pop("labels").items()}
        return cls(**data, labels=labels)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Patches of one product excluded for one reason: by choice, not because of an error."""

    product: str  # its file or folder, as in PatchRef.path
    reason: str  # phrase that is the same for all patches dropped for this reason
    places: tuple[str, ...] = ()  # their ground cells; empty if the entire product was dropped


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch in the form in which it is stored."""

    id: str  # id of its reference
    pixels: dict[str, npt.NDArray[np.uint16]]  # by band group: (bands, size_px, size_px)
    labels: Labels = field(default_factory=dict)  # by label set; absent: not labelled
    # ground shares by fraction set: (classes,) from 0 to 1; absent: unknown
    fractions: Fractions = field(default_factory=dict)
    path: str = ""  # file or folder it was read from, relative to the root; set by packing
    product: str = ""  # ESA product or scene, if known
    tile: str = ""  # MGRS tile, if known
    place: str = ""  # ground cell, the same on every date, if known
    block: str = ""  # ground that splits never divide, if the source is split by blocks
    acquired: str = ""  # ISO 8601, UTC, if known
    split: str = ""  # train, validation, test, or empty
    baseline: str = ""  # processing baseline such as 02.06, if known
    offset: int = 0  # added to the digital numbers of the files
    offset_authority: str = "source"  # origin: xml, stac:KEY, tags, name, user or source
    epsg: int = 0  # code of the coordinate system; 0 without a system or code
    transform: Transform = NO_TRANSFORM  # affine a b c d e f of the finest group, in CRS units
    crs_wkt: str = ""  # well-known text of a coordinate system without an EPSG code

    @property
    def valid_fraction(self) -> float:
        """Share of the finest group's pixels that hold data in every band."""
        # only the finest group: a hole in a coarse group is wider than the hole in the data
        finest = next(iter(self.pixels.values()))
        return float((finest != NODATA).all(axis=0).mean())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_of(pixels: Mapping[str, npt.NDArray[np.uint16]], layout: ShardLayout) -> int:
    """Return the CRC-32 of one sample over its groups in layout order."""
    checksum = 0
    for group in layout.groups:
        checksum = zlib.crc32(np.ascontiguousarray(pixels[group.name]).data, checksum)
    return checksum


def facts_in(file: h5py.File, layout: ShardLayout) -> Iterable[npt.NDArray[Any]]:
    """Return all row data of an open shard except pixels, in the order of its checksum."""
    names = [f"{INDEX}/{name}" for name in INDEX_FIELDS]
    names += [name for name in (f"{INDEX}/{n}" for n in OPTIONAL_INDEX_FIELDS) if name in file]
    names += [f"{LABELS}/{labels.name}" for labels in layout.label_sets]
    names += [f"{FRACTIONS}/{shares.name}" for shares in layout.fraction_sets]
    return (file[name][()] for name in names)


def crc32_by_row(columns: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    """Return one CRC-32 per row of columns (rows, ...), over the row's bytes in each column."""
    checksums: list[int] = []
    for column in columns:
        # bytes as stored: text keeps its padding, numbers are little-endian in memory and file
        data = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        before = checksums or [0] * len(data)
        checksums = [zlib.crc32(row.data, old) for row, old in zip(data, before, strict=True)]
    return np.array(checksums, "<u4")


# gzip is built into HDF5. Importing hdf5plugin registers Zstandard, and the bitshuffle-LZ4 of
# older packs.
NO_CODEC = "none"
CODECS = (NO_CODEC, "gzip", "zstd")


def open_shard(path: Path) -> h5py.File:
    """Open a shard read-only and without locks, which network file systems often refuse.

    Raises:
        OSError: the file is missing, cut short, or not HDF5; the message names it.
    """
    try:
        # no chunk cache: a sample is one chunk and is read once
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    except FileNotFoundError:
        raise
    except OSError as error:  # HDF5 reports the fault, but not the file
        raise OSError(f"{path} cannot be read as a shard: {error}; see simclr-verify") from error


def check_codec(codec: str) -> None:
    """Reject a codec that cannot be written here.

    Raises:
        ValueError: the codec is unknown, or hdf5plugin is not installed.
    """
    if codec not in CODECS:
        raise ValueError(f"compression is {codec!r}; choose one of {', '.join(CODECS)}")
    load_filter(codec)


def load_filter(codec: str) -> None:
    """Register the filter of a codec with HDF5, so that data sets can be read.

    Raises:
        ValueError: hdf5plugin is not installed.
    """
    if codec in (NO_CODEC, "gzip"):
        return
    try:
        import hdf5plugin  # noqa: F401  # registers its filters on import
    except ImportError as error:
        raise ValueError(
            "these shards need a package that is not installed: pip install hdf5plugin, or pack "
            "with compression=none or gzip"
        ) from error


def dataset_options(codec: str, sample_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return options for ``create_dataset``: empty for ``none``, else one sample per chunk.

    Levels are the lowest that pay off: reflectances are noisy, so higher levels only cost time.
    """
    if codec == NO_CODEC:
        return {}
    load_filter(codec)
    if codec == "gzip":
        filters: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}
    else:
        import hdf5plugin

        filters = dict(hdf5plugin.Zstd(clevel=3))
    return {"chunks": (1, *sample_shape), "shuffle": True, **filters}
