"""The shard format: layout, manifest, reader and writer; all that simclr uses of preprocess."""

from preprocess.shards.format import UNKNOWN_LABEL, GroupLayout, LabelSet, ShardLayout
from preprocess.shards.manifest import Manifest, read_manifest
from preprocess.shards.reader import BatchReader, ShardReader, open_readers

__all__ = [
    "UNKNOWN_LABEL",
    "BatchReader",
    "GroupLayout",
    "LabelSet",
    "Manifest",
    "ShardLayout",
    "ShardReader",
    "open_readers",
    "read_manifest",
]
