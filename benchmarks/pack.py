"""Packing against its limit: the same GeoTIFFs read by a bare rasterio loop, in the same run.

Usage: python benchmarks/pack.py [NUM_PATCHES]. Files are simulated patches, uncompressed as those
of BigEarthNet, in the page cache; both ways take turns, so that a busy machine disturbs both.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import rasterio

from preprocess.config import PackConfig, SimulatedConfig
from preprocess.pack import pack
from preprocess.plan import make_or_read_plan
from preprocess.raster import versions
from preprocess.sources import open_source
from preprocess.sources.simulated import write_tree

ROUNDS = 5


def main() -> None:
    """Print rates in patches a second and their ratio."""
    num_patches = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        start = time.perf_counter()
        write_tree(root, num_patches, seed=0)
        print(f"simulated and written: {num_patches / (time.perf_counter() - start):.0f} patches/s")
        files = sorted(root.rglob("*.tif"))
        bare, packed = [], []
        for number in range(ROUNDS):
            bare.append(_seconds_of_bare_loop(files))
            packed.append(_seconds_of_pack(root, num_patches, Path(folder) / f"shards-{number}"))
    ratios = [loop / pack for loop, pack in zip(bare, packed, strict=True)]
    print(f"bare rasterio loop: {num_patches / statistics.median(bare):.0f} patches/s (median)")
    print(f"pack: {num_patches / statistics.median(packed):.0f} patches/s (median)")
    print(f"pack rate / loop rate: {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
          f"{max(ratios):.2f})")  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MiB")


def _seconds_of_bare_loop(files: list[Path]) -> float:
    start = time.perf_counter()
    for file in files:
        with rasterio.open(file) as dataset:
            dataset.read()
    return time.perf_counter() - start


def _seconds_of_pack(root: Path, num_patches: int, output: Path) -> float:
    source = SimulatedConfig(root=str(root), num_patches=num_patches)
    config = PackConfig(source=source, output=str(output))
    make_or_read_plan(config, open_source(source))
    start = time.perf_counter()
    pack(config, progress=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
