"""Rasters to shards: Sentinel-2 patches from many sources, packed once into sharded HDF5."""

import os

# The variable overrides h5py's locking=False, and network file systems often refuse locks. Shards
# need none: written under temporary names, never changed. HDF5 reads it when h5py is imported.
os.environ.pop("HDF5_USE_FILE_LOCKING", None)
