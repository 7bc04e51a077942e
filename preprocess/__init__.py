"""Rasters to shards: Sentinel-2 patches of many sources, packed once into sharded HDF5."""
