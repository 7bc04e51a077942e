"""How pixels are compressed: a codec's name comes in, HDF5 filters or raw chunks' pixels go out.

Chunks are decoded here and not by HDF5, whose pipeline runs under one lock for all threads of a
process. The plug-ins' own functions are called, so that the pixels are the same to the bit.
"""

from __future__ import annotations

import ctypes
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

NO_CODEC = "none"
CODECS = (NO_CODEC, "gzip", "bitshuffle-lz4", "zstd")

# Numbers that the HDF Group has registered.
_DEFLATE, _SHUFFLE, _BITSHUFFLE, _ZSTD = 1, 2, 32008, 32015
_PLUGINS = {_BITSHUFFLE: "bshuf", _ZSTD: "zstd"}
_REVERSE = 0x0100  # H5Z_FLAG_REVERSE: decode

Filter = tuple[int, tuple[int, ...]]
_FilterFunction = Callable[..., int]


@dataclass(frozen=True, slots=True)
class ChunkMap:
    """Where the chunks of one data set are in the file, and how they were encoded.

    Attributes:
        offset: (rows,) int64, of each row's chunk, in bytes.
        size: (rows,) int64, encoded bytes.
        skipped: (rows,) uint32, bit i set: filter i was not applied to this chunk.
        filters: number and parameters of each filter, in the order of encoding.
    """

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    skipped: npt.NDArray[np.uint32]
    filters: tuple[Filter, ...]


def check_codec(codec: str) -> None:
    """Refuse what cannot be written here.

    Raises:
        ValueError: there is no such codec, or hdf5plugin is not installed.
    """
    if codec not in CODECS:
        raise ValueError(f"compression is {codec!r}; choose one of {', '.join(CODECS)}")
    if codec not in (NO_CODEC, "gzip"):
        _hdf5plugin()


def storage_of(codec: str, sample_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what ``create_dataset`` is told: nothing for ``none``, else one sample a chunk.

    Levels are the lowest that pay: reflectances are noisy, and higher ones only take longer.
    """
    if codec == NO_CODEC:
        return {}
    if codec == "gzip":
        filters: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    elif codec == "bitshuffle-lz4":
        filters = dict(_hdf5plugin().Bitshuffle(cname="lz4"))
    else:
        filters = {**_hdf5plugin().Zstd(clevel=3), "shuffle": True}
    return {"chunks": (1, *sample_shape), **filters}


def chunk_map_of(data_set: h5py.Dataset) -> ChunkMap:
    """List the chunks of a data set that has one a row; once a file, as it takes milliseconds."""
    rows = data_set.shape[0]
    offset, size = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    skipped = np.zeros(rows, np.uint32)

    def note(chunk: Any) -> None:
        """Keep what HDF5 tells of one chunk."""
        row = chunk.chunk_offset[0]
        offset[row], size[row], skipped[row] = chunk.byte_offset, chunk.size, chunk.filter_mask

    # one pass; asking for chunks one by one searches the index for each of them
    data_set.id.chunk_iter(note)
    properties = data_set.id.get_create_plist()
    filters = (properties.get_filter(number) for number in range(properties.get_nfilters()))
    return ChunkMap(offset, size, skipped, tuple((code, values) for code, _, values, _ in filters))


def decode(
    chunk: bytearray, filters: Iterable[Filter], skipped: int, out: npt.NDArray[np.uint16]
) -> None:
    """Decode one chunk as it is in the file into a C-contiguous array; no HDF5, no lock.

    Raises:
        ValueError: a filter is unknown here, or the chunk is damaged.
    """
    data: Any = chunk
    for number, (code, values) in reversed(list(enumerate(filters))):
        if not skipped >> number & 1:
            data = _decode_one(code, values, data)
    if len(data) != out.nbytes:
        raise ValueError(f"a chunk holds {len(data)} bytes, a sample {out.nbytes}")
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def _decode_one(code: int, values: tuple[int, ...], data: Any) -> Any:
    if code == _SHUFFLE:
        # all first bytes, then all second ones: (width, values) back to (values, width)
        return np.frombuffer(data, np.uint8).reshape(values[0], -1).T.tobytes()
    if code == _DEFLATE:
        try:
            return zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(f"a chunk is damaged ({error})") from error
    if code not in _PLUGINS:
        raise ValueError(f"a chunk is encoded by HDF5 filter {code}, which is not known here")
    return _through_plugin(_plugin(_PLUGINS[code]), values, data)


def _through_plugin(function: _FilterFunction, values: tuple[int, ...], data: Any) -> bytes:
    """Call a filter as HDF5 would: it frees the buffer that it is given and allocates another."""
    libc = _libc()
    buffer = ctypes.c_void_p(libc.malloc(len(data)))
    ctypes.memmove(buffer, bytes(data), len(data))
    capacity = ctypes.c_size_t(len(data))
    parameters = (ctypes.c_uint * len(values))(*values)
    try:
        length = function(
            _REVERSE, len(values), parameters, len(data), ctypes.byref(capacity),
            ctypes.byref(buffer),
        )  # fmt: skip
        # older builds of zstd hand on its error code, a negative number, as a size
        if not 0 < length <= sys.maxsize:
            raise ValueError("a chunk is damaged: its codec cannot decode it")
        return ctypes.string_at(buffer, length)
    finally:
        libc.free(buffer)


class _FilterClass(ctypes.Structure):
    """H5Z_class2_t of HDF5's H5Zpublic.h."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        (
            "filter",
            ctypes.CFUNCTYPE(
                ctypes.c_size_t,
                ctypes.c_uint,
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_uint),
                ctypes.c_size_t,
                ctypes.POINTER(ctypes.c_size_t),
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
    )


@cache
def _plugin(name: str) -> _FilterFunction:
    (path,) = Path(_hdf5plugin().PLUGIN_PATH).glob(f"libh5{name}.*")
    library = ctypes.CDLL(str(path))  # calls through it release the interpreter's lock
    library.H5PLget_plugin_info.restype = ctypes.POINTER(_FilterClass)
    function: _FilterFunction = library.H5PLget_plugin_info().contents.filter
    return function


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    return libc


@cache
def _hdf5plugin() -> Any:
    """Import the filters; that alone makes them known to HDF5.

    Raises:
        ValueError: they are not installed.
    """
    try:
        import hdf5plugin
    except ImportError as error:
        raise ValueError(
            "these shards need the package hdf5plugin, which is not installed: pip install "
            "'simclr-s2[compression]', or pack with compression=none or gzip"
        ) from error
    return hdf5plugin
