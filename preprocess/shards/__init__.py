"""The shard format: layout, manifest, reader and writer, the door through which simclr comes in."""

from preprocess.shards.format import (
    NODATA,
    SATURATED,
    UNKNOWN_LABEL,
    FractionSet,
    GroupLayout,
    LabelSet,
    ShardLayout,
)
from preprocess.shards.manifest import BandStatistics, Manifest, ShardEntry, read_manifest
from preprocess.shards.reader import BatchReader, ShardReader, open_readers

__all__ = [
    "NODATA",
    "SATURATED",
    "UNKNOWN_LABEL",
    "BandStatistics",
    "BatchReader",
    "FractionSet",
    "GroupLayout",
    "LabelSet",
    "Manifest",
    "ShardEntry",
    "ShardLayout",
    "ShardReader",
    "open_readers",
    "read_manifest",
]
