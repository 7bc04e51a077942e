"""Rasters to shards: Sentinel-2 patches of many sources, packed once into sharded HDF5."""

import os

# It outranks locking=False of h5py, and network file systems often refuse locks. Shards need none:
# they are written under temporary names and never changed. HDF5 reads it when h5py is imported.
os.environ.pop("HDF5_USE_FILE_LOCKING", None)
