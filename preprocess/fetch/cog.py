"""Windows of remote COGs, cut without decoding: their byte ranges, and a new header.

The copy is a GeoTIFF of the same size and grid without the other blocks, which GDAL reads as
nodata (sparse files). Compressed blocks are copied unchanged: fetching costs no CPU time and
cannot change a pixel. Formats: TIFF 6.0 and BigTIFF (magic 43), little-endian and tiled, as GDAL
writes COGs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from preprocess.fetch.http import RANGE_BYTES, Span

# bytes of each TIFF field type, and numpy dtypes of numeric ones
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
          13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip
_NUMBERS = {3: "<u2", 4: "<u4", 8: "<i2", 9: "<i4", 11: "<f4", 12: "<f8", 13: "<u4", 16: "<u8",
            17: "<i8"}  # fmt: skip
_LONG8 = 16  # field type: unsigned, 64 bits
_WIDTH, _HEIGHT, _SAMPLES = 256, 257, 277
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS = 322, 323, 324, 325
_SUBFILE = 254  # 1 for an overview, 4 for a mask
_SCALE, _TIEPOINT, _GEO_KEYS = 33550, 33922, 34735
_PROJECTED_CRS = 3072  # GeoKey: EPSG code of the projected coordinate system
_POINTERS = frozenset({330, 34665, 34853})  # tags of other directories, which are not copied
# GDAL's COGs put 8 bytes between blocks (the length before and after); one request spans them
_GAP_BYTES = 16 * 2**10
_MAX_FIELD_BYTES = 64 * 2**20
_MAX_IMAGES = 32

Read = Callable[[int, int], bytes]  # (offset, length); returns fewer bytes only at the file's end
Blocks = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Field:
    """An entry of a TIFF directory: field type, number of values, and their bytes."""

    kind: int
    count: int
    data: bytes

    def numbers(self) -> npt.NDArray[np.generic]:
        """Return the values; for text and fractions, which are never needed, the raw bytes."""
        return np.frombuffer(self.data, _NUMBERS.get(self.kind, "u1"))


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a TIFF file; sizes in pixels."""

    fields: dict[int, Field]  # directory entries by tag
    offsets: Numbers  # byte offsets of its blocks, (rows, columns); 0 for an absent one
    counts: Numbers  # byte counts of its blocks, same shape
    block: tuple[int, int]  # width and height of a block
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A remote GeoTIFF of one band."""

    image: Image  # full resolution
    overviews: tuple[Image, ...]  # coarser images
    epsg: int  # code of the projected coordinate system; 0 if none is stated
    x: float  # easting of the upper left corner in metres
    y: float  # northing of the upper left corner in metres
    resolution_m: float  # side of a pixel in metres


def read_layout(read: Read) -> Layout:
    """Return the layout of a single-band COG with square pixels; ``ValueError`` for others."""
    head = read(0, 16).ljust(16, b"\0")
    if head[:4] not in (b"II*\0", b"II+\0"):
        raise ValueError("not a TIFF: it begins with other bytes")
    big = head[2] == 43
    (offset,) = struct.unpack_from("<Q", head, 8) if big else struct.unpack_from("<I", head, 4)
    directories: list[dict[int, Field]] = []
    while offset and len(directories) < _MAX_IMAGES:
        fields, offset = _directory(read, big, offset)
        directories.append(fields)
    first, *coarser = directories or [{}]
    if _SCALE not in first or _TIEPOINT not in first:
        raise ValueError("not a GeoTIFF: it does not state where its corner lies")
    scale, tie = first[_SCALE].numbers(), first[_TIEPOINT].numbers()
    if scale[0] != scale[1] or scale[0] <= 0 or any(tie[:2]):
        raise ValueError("its pixels are not square, or its grid is not tied to its corner")
    keys = first[_GEO_KEYS].numbers()[4:].reshape(-1, 4) if _GEO_KEYS in first else ()
    return Layout(
        image=_image(first),
        overviews=tuple(_image(d) for d in coarser if _SUBFILE in d and d[_SUBFILE].data[0] == 1),
        epsg=next((int(k[3]) for k in keys if k[0] == _PROJECTED_CRS and k[1] == 0), 0),
        x=float(tie[3]),
        y=float(tie[4]),
        resolution_m=float(scale[0]),
    )


def _directory(read: Read, big: bool, offset: int) -> tuple[dict[int, Field], int]:
    """Return the fields of a directory, and the offset of the next one."""
    counter, entry, pointer = ("<Q", "<HHQ", "<Q") if big else ("<H", "<HHI", "<I")
    inline = struct.calcsize(pointer)
    size = struct.calcsize(entry) + inline
    (number,) = struct.unpack(counter, _exactly(read, offset, struct.calcsize(counter)))
    if not 0 < number < 1000:
        raise ValueError(f"not a TIFF: its directory has {number} entries")
    table = _exactly(read, offset + struct.calcsize(counter), number * size + inline)
    fields = {}
    for start in range(0, number * size, size):
        tag, kind, count = struct.unpack_from(entry, table, start)
        length = _SIZES.get(kind, 0) * count
        if tag in _POINTERS or not 0 < length <= _MAX_FIELD_BYTES:
            continue
        value = table[start + size - inline : start + size]
        if length > inline:
            value = _exactly(read, struct.unpack(pointer, value)[0], length)
        fields[tag] = Field(kind, count, value[:length])
    return fields, struct.unpack(pointer, table[number * size :])[0]


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise ValueError(f"truncated TIFF: it ends before byte {offset + length}")
    return data


def _image(fields: dict[int, Field]) -> Image:
    needed = (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS)
    missing = [tag for tag in needed if tag not in fields]
    if missing:
        raise ValueError(f"not a tiled TIFF: it has no tag {missing[0]}")
    if _SAMPLES in fields and fields[_SAMPLES].numbers()[0] != 1:
        raise ValueError("holds several bands; one is expected")
    width, height, across, down = (int(fields[tag].numbers()[0]) for tag in needed[:4])
    if min(width, height, across, down) <= 0:
        raise ValueError("not a TIFF: it states sizes of 0")
    shape = (-(-height // down), -(-width // across))
    offsets, counts = (fields[tag].numbers().astype(np.int64) for tag in (_OFFSETS, _COUNTS))
    if offsets.size != shape[0] * shape[1] or counts.size != offsets.size:
        raise ValueError(f"lists {offsets.size} blocks, {shape[0] * shape[1]} are expected")
    return Image(
        fields, offsets.reshape(shape), counts.reshape(shape), (across, down), width, height
    )


def blocks_of(layout: Layout, squares: Blocks, side_m: float) -> Blocks:
    """Return which blocks, (rows, columns), contain ground of squares, (columns, rows)."""
    num_rows, num_columns = layout.image.offsets.shape
    width, height = layout.image.block
    side_px = side_m / layout.resolution_m
    columns = _overlaps(squares.shape[0], side_px, num_columns, width)
    rows = _overlaps(squares.shape[1], side_px, num_rows, height)
    return np.asarray(rows.T @ squares.T @ columns)


def _overlaps(num_squares: int, side_px: float, num_blocks: int, block_px: int) -> Blocks:
    """Return whether squares and blocks share pixels along an axis, (squares, blocks)."""
    edges = (np.arange(num_squares + 1) * side_px).astype(np.int64)
    first, last = edges[:-1, None] // block_px, (edges[1:, None] - 1) // block_px
    blocks = np.arange(num_blocks)
    return np.asarray((first <= blocks) & (blocks <= last))


def overview_for(layout: Layout, resolution_m: float) -> Image | None:
    """Return the overview that GDAL reads for a coarser resolution, or None if it uses none."""
    factors = {layout.image.width / image.width: image for image in layout.overviews}
    # the coarsest that is not much coarser than requested (gdalrasterband.cpp, GetBestOverview)
    near = [factor for factor in factors if factor <= 1.2 * resolution_m / layout.resolution_m]
    return factors[max(near)] if near else None


def plan_copy(
    layout: Layout, wanted: Blocks, overview: Image | None = None
) -> tuple[bytes, list[Span]]:
    """Return the header of a copy with the wanted blocks and an overview, and spans to fill it."""
    images = [layout.image] if overview is None else [layout.image, overview]
    kept = [(image, (image.counts > 0) & (image.offsets > 0)) for image in images]
    kept[0][1][:] &= wanted
    offsets = np.concatenate([image.offsets[chosen] for image, chosen in kept])
    counts = np.concatenate([image.counts[chosen] for image, chosen in kept])
    placed = [np.zeros_like(image.offsets) for image, _ in kept]
    base = len(_encode(kept, placed))
    targets = np.zeros_like(offsets)
    spans: list[Span] = []
    begin = end = 0  # bounds of the last span in the remote file
    for index in np.argsort(offsets, kind="stable").tolist():
        start, length = int(offsets[index]), int(counts[index])
        if spans and start - end <= _GAP_BYTES and start + length - begin <= RANGE_BYTES:
            end = max(end, start + length)
            spans[-1] = replace(spans[-1], length=end - begin)
        else:
            target = spans[-1].target + spans[-1].length if spans else base
            begin, end = start, start + length
            spans.append(Span(begin, length, target))
        targets[index] = spans[-1].target + start - begin
    parts = np.split(targets, np.cumsum([chosen.sum() for _, chosen in kept])[:-1])
    for places, (_, chosen), part in zip(placed, kept, parts, strict=True):
        places[chosen] = part
    return _encode(kept, placed), spans


def _encode(images: list[tuple[Image, Blocks]], offsets: list[Numbers]) -> bytes:
    """Return a TIFF header with one directory per image, for chosen blocks at new offsets.

    Always a BigTIFF, so that entries have a single form.
    """
    header = b"II" + struct.pack("<HHHQ", 43, 8, 0, 16)
    for (image, chosen), places in zip(images, offsets, strict=True):
        arrays = {_OFFSETS: places, _COUNTS: image.counts * chosen}
        new = {tag: Field(_LONG8, a.size, a.astype("<u8").tobytes()) for tag, a in arrays.items()}
        entries, values = b"", b""
        behind = len(header) + 8 + 20 * len(image.fields) + 8  # where longer values begin
        for tag, field in sorted({**image.fields, **new}.items()):
            entries += struct.pack("<HHQ", tag, field.kind, field.count)
            if len(field.data) <= 8:
                entries += field.data.ljust(8, b"\0")
            else:
                entries += struct.pack("<Q", behind + len(values))
                values += field.data + b"\0" * (-len(field.data) % 8)
        following = 0 if image is images[-1][0] else behind + len(values)
        header += struct.pack("<Q", len(image.fields)) + entries
        header += struct.pack("<Q", following) + values
    return header
