"""The shard format: layout, manifest, reader and writer; all that simclr uses of preprocess."""

import os

# It outranks locking=False of h5py, and network file systems often refuse locks. Shards need none:
# they are written under temporary names and never changed. HDF5 reads it when h5py is imported.
os.environ.pop("HDF5_USE_FILE_LOCKING", None)

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
