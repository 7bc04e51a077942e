"""The registry of sources: each kind with its settings and the class that reads it.

Packing and the command line access sources only through this table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from preprocess.config import SourceConfig
from preprocess.sources.base import Source
from preprocess.sources.bigearthnet import (
    BigEarthNetV1,
    BigEarthNetV1Config,
    BigEarthNetV2,
    BigEarthNetV2Config,
)
from preprocess.sources.geotiff import Geotiff
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.l2a_files import CogL2AConfig, SafeL2AConfig, cog_l2a, safe_l2a
from preprocess.sources.simulated import Simulated, SimulatedConfig


class Kind(NamedTuple):
    """One kind of source."""

    config: type[SourceConfig]  # settings; the first line of the docstring is the kind's help
    open: Callable[[Any], Source]  # returns the source for given settings


SOURCES: dict[str, Kind] = {
    "bigearthnet_v1": Kind(BigEarthNetV1Config, BigEarthNetV1),
    "bigearthnet_v2": Kind(BigEarthNetV2Config, BigEarthNetV2),
    "safe_l2a": Kind(SafeL2AConfig, safe_l2a),
    "cog_l2a": Kind(CogL2AConfig, cog_l2a),
    "geotiff": Kind(GeotiffConfig, Geotiff),
    "simulated": Kind(SimulatedConfig, Simulated),
}


def open_source(config: SourceConfig) -> Source:
    """Return the source for the settings; ``ValueError`` for an unknown kind or without a root."""
    if config.kind not in SOURCES:
        raise ValueError(f"source.kind is {config.kind!r}; choose one of {', '.join(SOURCES)}")
    if not config.root:
        raise ValueError(f"source.root is empty; give the folder of {config.kind}: source.root=DIR")
    return SOURCES[config.kind].open(config)
