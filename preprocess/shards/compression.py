"""Compression of pixels by HDF5 filters; used by the writer, the reader and verify.

HDF5 itself has gzip. Zstandard, and bitshuffle-LZ4 of older packs, come with hdf5plugin, whose
import makes them known to HDF5.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

NO_CODEC = "none"
CODECS = (NO_CODEC, "gzip", "zstd")


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
