"""Windows of remote GeoTIFFs, cut without decoding: which byte ranges hold them, and a new header.

The copy is a GeoTIFF of the same size and grid whose other blocks are absent, which GDAL reads as
nodata (sparse files). Compressed blocks arrive as they are: fetching costs no processor time and
cannot change a pixel. Formats: TIFF 6.0; BigTIFF (magic 43).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from preprocess.fetch.partial import RANGE_BYTES, Span

# bytes of each TIFF field type
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
          13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip
_WIDTH, _HEIGHT, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = 256, 257, 277, 278, 284
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SUBFILE = 254  # 1 for an overview, 4 for a mask
_GEO = _SCALE, _TIEPOINT, _GEO_KEYS = 33550, 33922, 34735
_PROJECTED_CRS = 3072  # GeoKey: EPSG code of the projected coordinate system
_POINTERS = frozenset({330, 34665, 34853})  # to other directories, which are not copied
# GDAL's COGs put 8 bytes between blocks (their length before and after), which one request skips
_GAP_BYTES = 16 * 2**10
_MAX_FIELD_BYTES = 64 * 2**20
_MAX_IMAGES = 32
_LONG8 = 16  # field type: unsigned, 64 bits

Read = Callable[[int, int], bytes]
Blocks = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Field:
    """An entry of a TIFF directory: tag, type, number of values, and their bytes."""

    tag: int
    kind: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a TIFF file.

    Attributes:
        fields: its directory, in the order of tags.
        offsets: of its blocks, (rows, columns); 0 marks an absent one.
        counts: bytes of its blocks, of the same shape.
        block: width and height of a block in pixels.
        width: pixels.
        height: pixels.
    """

    fields: tuple[Field, ...]
    offsets: Numbers
    counts: Numbers
    block: tuple[int, int]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A remote GeoTIFF of one band.

    Attributes:
        order: ``<`` or ``>``, the byte order of the file.
        image: its full-resolution image.
        overviews: the coarser ones.
        epsg: projected coordinate system, 0 if none is stated.
        x: easting of the upper left corner, m.
        y: northing of it, m.
        resolution_m: side of a pixel, m.
    """

    order: str
    image: Image
    overviews: tuple[Image, ...]
    epsg: int
    x: float
    y: float
    resolution_m: float


def read_layout(read: Read) -> Layout:
    """Return the layout of a GeoTIFF with one band.

    Args:
        read: returns bytes at an offset; fewer only at the end of the file.

    Raises:
        ValueError: it is no such file, or not one with square pixels.
    """
    order, big, offset = _header(read(0, 16))
    directories: list[dict[int, Field]] = []
    while offset and len(directories) < _MAX_IMAGES:
        fields, offset = _directory(read, order, big, offset)
        directories.append(fields)
    geo = {tag: _numbers(directories[0][tag], order) for tag in _GEO if tag in directories[0]}
    if _SCALE not in geo or _TIEPOINT not in geo:
        raise ValueError("not a GeoTIFF: it does not state where its corner lies")
    scale, tie = geo[_SCALE], geo[_TIEPOINT]
    if scale[0] != scale[1] or scale[0] <= 0 or any(tie[:2]):
        raise ValueError("its pixels are not square, or its grid is not tied to its corner")
    coarser = (d for d in directories[1:] if _SUBFILE in d and d[_SUBFILE].data[:1] == b"\1")
    return Layout(
        order=order,
        image=_image(directories[0], order),
        overviews=tuple(_image(directory, order) for directory in coarser),
        epsg=_epsg(geo.get(_GEO_KEYS)),
        x=float(tie[3]),
        y=float(tie[4]),
        resolution_m=float(scale[0]),
    )


def _image(fields: dict[int, Field], order: str) -> Image:
    def number(tag: int, default: int | None = None) -> int:
        """Return the single value of a tag."""
        if tag not in fields and default is not None:
            return default
        return int(_numbers(fields[tag], order)[0])

    offset_tag, count_tag = _TILES if _TILES[0] in fields else _STRIPS
    try:
        width, height = number(_WIDTH), number(_HEIGHT)
        if offset_tag == _TILES[0]:
            block = number(_TILE_WIDTH), number(_TILE_HEIGHT)
        else:
            block = width, min(number(_ROWS_PER_STRIP, height), height)
        offsets = _numbers(fields[offset_tag], order).astype(np.int64)
        counts = _numbers(fields[count_tag], order).astype(np.int64)
    except KeyError as error:
        raise ValueError(f"not a TIFF: it has no tag {error}") from error
    if number(_SAMPLES, 1) != 1:
        raise ValueError("holds several bands; one is expected")
    if min(*block, width, height) <= 0:
        raise ValueError("not a TIFF: it states sizes of 0")
    shape = (-(-height // block[1]), -(-width // block[0]))
    if offsets.size != shape[0] * shape[1] or counts.size != offsets.size:
        raise ValueError(f"lists {offsets.size} blocks, {shape[0] * shape[1]} are expected")
    ordered = tuple(fields[tag] for tag in sorted(fields))
    return Image(ordered, offsets.reshape(shape), counts.reshape(shape), block, width, height)


def blocks_of(layout: Layout, squares: Blocks, side_m: float) -> Blocks:
    """Return which blocks hold ground of chosen squares, (rows, columns).

    Args:
        layout: of the file.
        squares: (columns, rows), counted from its upper left corner.
        side_m: of a square.
    """
    num_rows, num_columns = layout.image.offsets.shape
    width, height = layout.image.block
    side_px = side_m / layout.resolution_m
    columns = _overlaps(squares.shape[0], side_px, num_columns, width)
    rows = _overlaps(squares.shape[1], side_px, num_rows, height)
    return np.asarray(rows.T @ squares.T @ columns)


def _overlaps(num_squares: int, side_px: float, num_blocks: int, block_px: int) -> Blocks:
    """Return which squares share pixels with which blocks along an axis, (squares, blocks)."""
    edges = (np.arange(num_squares + 1) * side_px).astype(np.int64)
    first, last = edges[:-1, None] // block_px, (edges[1:, None] - 1) // block_px
    blocks = np.arange(num_blocks)
    return np.asarray((first <= blocks) & (blocks <= last))


def overview_for(layout: Layout, resolution_m: float) -> Image | None:
    """Return the overview that GDAL reads for a coarser resolution, None if it would read none."""
    factors = {layout.image.width / image.width: image for image in layout.overviews}
    # the coarsest that is not much coarser than asked for (gdalrasterband.cpp, GetBestOverview)
    near = [factor for factor in factors if factor <= 1.2 * resolution_m / layout.resolution_m]
    return factors[max(near)] if near else None


def plan_copy(
    layout: Layout, wanted: Blocks, overview: Image | None = None
) -> tuple[bytes, list[Span]]:
    """Return the header of a copy that holds wanted blocks and an overview, and what fills it."""
    kept = [(layout.image, wanted & _present(layout.image))]
    if overview is not None:
        kept.append((overview, _present(overview)))
    offsets = np.concatenate([image.offsets[chosen] for image, chosen in kept])
    counts = np.concatenate([image.counts[chosen] for image, chosen in kept])
    absent = [np.zeros_like(image.offsets) for image, _ in kept]
    base = len(_encode(layout.order, kept, absent))
    targets = np.zeros_like(offsets)
    spans: list[Span] = []
    begin = end = 0  # of the last span, in the remote file
    for index in np.argsort(offsets, kind="stable").tolist():
        start, length = int(offsets[index]), int(counts[index])
        near = start - end <= _GAP_BYTES and start + length - begin <= RANGE_BYTES
        if spans and near:
            end = max(end, start + length)
            spans[-1] = replace(spans[-1], length=end - begin)
        else:
            target = spans[-1].target + spans[-1].length if spans else base
            begin, end = start, start + length
            spans.append(Span(begin, length, target))
        targets[index] = spans[-1].target + start - begin
    done = 0
    for placed, (_, chosen) in zip(absent, kept, strict=True):
        count = int(chosen.sum())
        placed[chosen] = targets[done : done + count]
        done += count
    return _encode(layout.order, kept, absent), spans


def _present(image: Image) -> Blocks:
    return np.asarray((image.counts > 0) & (image.offsets > 0))


def _header(head: bytes) -> tuple[str, bool, int]:
    """Return byte order, whether it is a BigTIFF, and the offset of the first directory."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
    if order and len(head) == 16:
        magic = struct.unpack(f"{order}H", head[2:4])[0]
        if magic == 42:
            return order, False, struct.unpack(f"{order}I", head[4:8])[0]
        if magic == 43:
            return order, True, struct.unpack(f"{order}Q", head[8:16])[0]
    raise ValueError("not a TIFF: it begins with other bytes")


def _directory(read: Read, order: str, big: bool, offset: int) -> tuple[dict[int, Field], int]:
    """Return the fields of a directory, and the offset of the next one."""
    counter, entry = (f"{order}Q", f"{order}HHQ") if big else (f"{order}H", f"{order}HHI")
    inline, pointer = (8, f"{order}Q") if big else (4, f"{order}I")
    size = struct.calcsize(entry) + inline
    number = struct.unpack(counter, _exactly(read, offset, struct.calcsize(counter)))[0]
    if not 0 < number < 1000:
        raise ValueError(f"not a TIFF: its directory has {number} entries")
    begin, length = offset + struct.calcsize(counter), number * size
    table = _exactly(read, begin, length + inline)
    fields = {}
    for start in range(0, number * size, size):
        tag, kind, count = struct.unpack_from(entry, table, start)
        length = _SIZES.get(kind, 0) * count
        if tag in _POINTERS or not 0 < length <= _MAX_FIELD_BYTES:
            continue
        value = table[start + size - inline : start + size]
        if length > inline:
            value = _exactly(read, struct.unpack(pointer, value)[0], length)
        fields[tag] = Field(tag, kind, count, value[:length])
    return fields, struct.unpack(pointer, table[number * size :])[0]


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise ValueError(f"truncated TIFF: it ends before byte {offset + length}")
    return data


def _numbers(field: Field, order: str) -> npt.NDArray[np.generic]:
    """Return the values of a field; of text and fractions its bytes, which nobody asks for."""
    kinds = {3: "u2", 4: "u4", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8"}
    return np.frombuffer(field.data, np.dtype(order + kinds.get(field.kind, "u1")))


def _epsg(keys: npt.NDArray[np.generic] | None) -> int:
    """Return the code in a directory of GeoKeys: four numbers a key, the last its value."""
    for key in [] if keys is None else keys[4:].reshape(-1, 4).tolist():
        if key[0] == _PROJECTED_CRS and key[1] == 0:
            return int(key[3])
    return 0


def _encode(order: str, images: list[tuple[Image, Blocks]], offsets: list[Numbers]) -> bytes:
    """Return a TIFF header with a directory an image, for chosen blocks at other offsets.

    Always a BigTIFF, whose entries have one form.
    """
    mark = b"II" if order == "<" else b"MM"
    header = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    for (image, chosen), places in zip(images, offsets, strict=True):
        tags = _TILES if any(field.tag == _TILES[0] for field in image.fields) else _STRIPS
        arrays = dict(zip(tags, (places, image.counts * chosen), strict=True))
        entries, values = b"", b""
        behind = len(header) + 8 + 20 * len(image.fields) + 8  # where longer values begin
        for field in image.fields:
            kind, count, data = field.kind, field.count, field.data
            if field.tag in arrays:
                array = arrays[field.tag]
                kind, count, data = _LONG8, array.size, array.astype(f"{order}u8").tobytes()
            entries += struct.pack(f"{order}HHQ", field.tag, kind, count)
            if len(data) <= 8:
                entries += data.ljust(8, b"\0")
            else:
                entries += struct.pack(f"{order}Q", behind + len(values))
                values += data + b"\0" * (-len(data) % 8)
        last = image is images[-1][0]
        following = 0 if last else behind + len(values)
        header += struct.pack(f"{order}Q", len(image.fields)) + entries
        header += struct.pack(f"{order}Q", following) + values
    return header
