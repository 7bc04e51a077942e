"""HDF5 as shards use it: opened without locks, pixels compressed by one of a few filters.

HDF5 itself has gzip. Zstandard, and bitshuffle-LZ4 of older packs, come with hdf5plugin, whose
import makes them known to HDF5.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import h5py

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
    if codec not in (NO_CODEC, "gzip"):
        _hdf5plugin()


def dataset_options(codec: str, sample_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of ``create_dataset``: none for ``none``, else one sample per chunk.

    Levels are the lowest that pay: reflectances are noisy, and higher levels only take longer.
    """
    if codec == NO_CODEC:
        return {}
    if codec == "gzip":
        filters: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}
    else:
        filters = dict(_hdf5plugin().Zstd(clevel=3))
    return {"chunks": (1, *sample_shape), "shuffle": True, **filters}


def _hdf5plugin() -> ModuleType:
    try:
        import hdf5plugin
    except ImportError as error:
        raise ValueError(
            "these shards need the package hdf5plugin, which is not installed: pip install "
            "'simclr-s2[compression]', or pack with compression=none or gzip"
        ) from error
    module: ModuleType = hdf5plugin
    return module
