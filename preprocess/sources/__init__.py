"""Where patches come from: a source's settings come in, the source that reads them goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from preprocess.config import SourceConfig
from preprocess.sources.base import Source
from preprocess.sources.bigearthnet import BigEarthNetV1
from preprocess.sources.bigearthnet_v2 import BigEarthNetV2
from preprocess.sources.geotiff import Geotiff
from preprocess.sources.safe import safe_l2a
from preprocess.sources.simulated_safe import simulated
from preprocess.sources.stac_cog import cog_l2a

# A new source is a file in this folder, its settings in preprocess.config, and a line here.
SOURCES: dict[str, Callable[[Any], Source]] = {
    "bigearthnet_v1": BigEarthNetV1,
    "bigearthnet_v2": BigEarthNetV2,
    "safe_l2a": safe_l2a,
    "cog_l2a": cog_l2a,
    "geotiff": Geotiff,
    "simulated": simulated,
}


def open_source(config: SourceConfig) -> Source:
    """Return the source that reads what the settings describe.

    Raises:
        ValueError: there is no such kind, or the root is empty.
    """
    if config.kind not in SOURCES:
        raise ValueError(f"source.kind is {config.kind!r}; choose one of {', '.join(SOURCES)}")
    if not config.root:
        raise ValueError(f"source.root is empty; give the folder of {config.kind}: source.root=DIR")
    return SOURCES[config.kind](config)
