"""The shard format, one HDF5 file each: data set names, dtypes, checksums, codecs, and patches.

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
NODATA = 0  # never a reflectance: a dark pixel is clipped at 1 when an offset is removed
SATURATED = 65535  # as delivered by ESA; left out of statistics
PIXEL_DTYPE = np.dtype("<u2")
NUM_PIXEL_VALUES = 65536

UNKNOWN_LABEL = 255  # a whole row of it: this patch has no answer in this label set

PATCHES = "patches"  # by group: (rows, bands, size_px, size_px), contiguous unless compressed
INDEX = "index"  # by field: one value a row
LABELS, FRACTIONS = "labels", "fractions"  # by set: (rows, classes) uint8 and float32
HISTOGRAM = "statistics/histogram"  # counts of the stored values of each band

# Text is stored as fixed-width bytes: variable-length strings live in a heap that a checksum of
# the data set does not cover. "S" takes the width of the longest value in the shard.
INDEX_FIELDS: dict[str, str] = {
    "id": "S",  # unique within the source
    "path": "S",  # file or folder it was read from, relative to the root of the source
    "product": "S",  # the ESA product or scene the patch was cut from, if known
    "tile": "S",  # MGRS tile, five characters, if known
    "place": "S",  # ground cell: the same on every date, equal text is equal ground
    "block": "S",  # ground that splits keep whole, of all dates and tiles; empty without blocks
    "acquired": "S",  # ISO 8601, UTC, if known
    "split": "S",  # train, validation, test, or empty
    "baseline": "S",  # processing baseline, "02.06", if known
    "offset": "<i2",  # added to the digital number while packing
    "offset_authority": "S",  # who decided: xml, name, user, source
    "epsg": "<i4",  # 0 when the file has no coordinate system, or one without a code
    "transform": "<f8",  # (rows, 6): affine a b c d e f of the finest group, in CRS units
    "valid_fraction": "<f4",  # share of pixels of the finest group that are not nodata
    "crc32": "<u4",  # zlib.crc32 over the pixels of all groups, in layout order
}
# Of shards in which any value of it is not empty.
OPTIONAL_INDEX_FIELDS: dict[str, str] = {
    "crs_wkt": "S",  # well-known text of a coordinate system that has no EPSG code
}
# Beside these: zlib.crc32 over the row in all index fields, label sets and fraction sets.
FACTS_CRC32 = "facts_crc32"

Transform = tuple[float, float, float, float, float, float]
Labels = dict[str, tuple[str, ...]]
Fractions = dict[str, npt.NDArray[np.float32]]

NO_TRANSFORM: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Bands that share one grid."""

    name: str  # of the data set, b10 for 10 m
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
        # plain ints: asked for with every read, where numpy's product took half the time
        return len(self.bands) * self.size_px**2 * PIXEL_DTYPE.itemsize


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Class names of one labelling of the patches; order always travels as names."""

    name: str  # bigearthnet19, irrigation_regular, eurosat, ...
    kind: str  # single (exactly one class a patch) or multi (any number)
    classes: tuple[str, ...]  # names in column order

    def __post_init__(self) -> None:
        if self.kind not in ("single", "multi"):
            raise ValueError(f"label set {self.name}: kind is {self.kind!r}, not single or multi")


@dataclass(frozen=True, slots=True)
class FractionSet:
    """Shares of a patch's ground by class: cover of a map, or what a scene classification saw."""

    name: str  # corine, scl, ...
    classes: tuple[str, ...]  # names in column order


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """What every sample of a source looks like: band groups, finest first, labels, fractions."""

    groups: tuple[GroupLayout, ...]
    label_sets: tuple[LabelSet, ...] = ()
    fraction_sets: tuple[FractionSet, ...] = ()

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands, group by group."""
        return tuple(band for group in self.groups for band in group.bands)

    @property
    def sample_bytes(self) -> int:
        """Pixel bytes of one sample over all groups (160,000 for BigEarthNet)."""
        return sum(group.sample_bytes for group in self.groups)

    def label_set(self, name: str) -> LabelSet:
        """Return a label set by name.

        Raises:
            ValueError: there is none of that name; the message lists those there are.
        """
        for candidate in self.label_sets:
            if candidate.name == name:
                return candidate
        names = ", ".join(labels.name for labels in self.label_sets) or "none: unlabelled patches"
        raise ValueError(f"no label set {name!r} in these shards; they hold: {names}")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ShardLayout:
        """Rebuild from ``to_json``."""

        def tupled(one: dict[str, Any], key: str) -> dict[str, Any]:
            return {**one, key: tuple(one[key])}

        return cls(
            tuple(GroupLayout(**tupled(one, "bands")) for one in data["groups"]),
            tuple(LabelSet(**tupled(one, "classes")) for one in data["label_sets"]),
            tuple(FractionSet(**tupled(one, "classes")) for one in data.get("fraction_sets", ())),
        )


class PatchError(ValueError):
    """An input that cannot become a patch; packing can go on without it."""

    def __init__(self, file: object, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)  # the file or folder at fault, as the source named it
        self.reason = reason  # what is wrong with it, in one clause


@dataclass(frozen=True, slots=True)
class PatchRef:
    """Where one patch is, and what is known of it before its files are opened."""

    id: str  # unique within the source; references are packed in the order of their ids
    # file or folder relative to the root: shards can be repaired from where rasters have moved to
    path: str
    split: str = ""  # train, validation, test, or empty
    # class names by label set, where the place of the files or a table tells them
    labels: Labels = field(default_factory=dict)
    block: str = ""  # ground that splits keep whole; empty without blocks

    def to_json(self) -> str:
        """Return one line of JSON."""
        # not asdict, which copies all it meets: plans have half a million lines
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> PatchRef:
        """Rebuild from ``to_json``."""
        data: dict[str, Any] = json.loads(line)
        labels = {name: tuple(classes) for name, classes in data.pop("labels").items()}
        return cls(**data, labels=labels)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Patches of one product that were left out for one reason: a choice, not an error."""

    product: str  # file or folder of it, as in PatchRef.path
    reason: str  # a phrase, the same for all that it applies to
    places: tuple[str, ...] = ()  # their ground cells; empty if the whole product was dropped


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch as it is stored."""

    id: str  # that of its reference
    pixels: dict[str, npt.NDArray[np.uint16]]  # by band group, (bands, size_px, size_px) stored
    labels: Labels = field(default_factory=dict)  # by label set; absent: no answer for this patch
    # shares of the ground by fraction set, (classes,) from 0 to 1; absent: unknown
    fractions: Fractions = field(default_factory=dict)
    path: str = ""  # file or folder it was read from, relative to the root; packing fills it in
    product: str = ""  # ESA product or scene, if known
    tile: str = ""  # MGRS tile, if known
    place: str = ""  # ground cell, the same on every date, if known
    block: str = ""  # ground that splits keep whole, if the source is split by blocks
    acquired: str = ""  # ISO 8601, UTC, if known
    split: str = ""  # train, validation, test, or empty
    baseline: str = ""  # processing baseline such as 02.06, if known
    offset: int = 0  # added to the digital numbers of the files
    offset_authority: str = "source"  # who said so: xml, name, user, source
    epsg: int = 0  # of the coordinate system; 0 without one, or without a code for it
    transform: Transform = NO_TRANSFORM  # affine a b c d e f of the finest group, in CRS units
    crs_wkt: str = ""  # well-known text of a coordinate system that has no EPSG code

    @property
    def valid_fraction(self) -> float:
        """Share of the finest group's pixels that hold data in every band."""
        # the finest group alone: a hole in a coarse one is wider than the hole in the data
        finest = next(iter(self.pixels.values()))
        return float((finest != NODATA).all(axis=0).mean())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_of(pixels: Mapping[str, npt.NDArray[np.uint16]], layout: ShardLayout) -> int:
    """Return the checksum of one sample: its groups one after the other, in layout order."""
    checksum = 0
    for group in layout.groups:
        checksum = zlib.crc32(np.ascontiguousarray(pixels[group.name]).data, checksum)
    return checksum


def facts_in(file: h5py.File, layout: ShardLayout) -> Iterable[npt.NDArray[Any]]:
    """Yield all that an open shard holds by row beside pixels, in the order of its checksum."""
    names = [f"{INDEX}/{name}" for name in INDEX_FIELDS]
    names += [name for name in (f"{INDEX}/{n}" for n in OPTIONAL_INDEX_FIELDS) if name in file]
    names += [f"{LABELS}/{labels.name}" for labels in layout.label_sets]
    names += [f"{FRACTIONS}/{shares.name}" for shares in layout.fraction_sets]
    return (file[name][()] for name in names)


def crc32_by_row(columns: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.uint32]:
    """Return a checksum a row over columns (rows, ...): the row's bytes, column after column."""
    checksums: list[int] = []
    for column in columns:
        # bytes as stored: text keeps its padding, numbers are little-endian in memory and file
        data = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        before = checksums or [0] * len(data)
        checksums = [zlib.crc32(row.data, old) for row, old in zip(data, before, strict=True)]
    return np.array(checksums, "<u4")


# HDF5 itself has gzip. Zstandard, and bitshuffle-LZ4 of older packs, come with hdf5plugin, whose
# import makes them known to HDF5.
NO_CODEC = "none"
CODECS = (NO_CODEC, "gzip", "zstd")


def open_shard(path: Path) -> h5py.File:
    """Open a shard read-only; without locks, which network file systems often refuse.

    Raises:
        OSError: the file is missing, cut short, or not HDF5; the message names it.
    """
    try:
        # no chunk cache: a sample is one chunk, and is read once
        return h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    except FileNotFoundError:
        raise
    except OSError as error:  # HDF5 tells what is wrong, but not with which file
        raise OSError(f"{path} cannot be read as a shard: {error}; see simclr-verify") from error


def check_codec(codec: str) -> None:
    """Refuse a codec that cannot be written here.

    Raises:
        ValueError: there is no such codec, or hdf5plugin is not installed.
    """
    if codec not in CODECS:
        raise ValueError(f"compression is {codec!r}; choose one of {', '.join(CODECS)}")
    load_filter(codec)


def load_filter(codec: str) -> None:
    """Make the filter of a codec known to HDF5, so that data sets can be read.

    Raises:
        ValueError: hdf5plugin is not installed.
    """
    if codec in (NO_CODEC, "gzip"):
        return
    try:
        import hdf5plugin  # noqa: F401  # importing it is enough
    except ImportError as error:
        raise ValueError(
            "these shards need a package that is not installed: pip install hdf5plugin, or pack "
            "with compression=none or gzip"
        ) from error


def dataset_options(codec: str, sample_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of ``create_dataset``: none for ``none``, else one sample per chunk.

    Levels are the lowest that pay: reflectances are noisy, and higher levels only take longer.
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
