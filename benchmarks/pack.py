"""Packing against its limit: the same GeoTIFFs read by a bare rasterio loop, in the same run.

Usage: python benchmarks/pack.py [NUM_PATCHES]. Files are simulated patches, uncompressed as those
of BigEarthNet, in the page cache. Both ways take turns, and CPU time is told beside the clock's:
on a machine with other work only the former can be compared.
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
    for number, clock in enumerate(("clock", "CPU")):
        loop = [seconds[number] for seconds in bare]
        ours = [seconds[number] for seconds in packed]
        ratio = statistics.median(a / b for a, b in zip(loop, ours, strict=True))
        print(
            f"{clock}: bare rasterio loop {num_patches / statistics.median(loop):.0f} patches/s, "
            f"pack {num_patches / statistics.median(ours):.0f} patches/s, ratio {ratio:.2f}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MiB")


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    clock, cpu = _now()
    return clock - start[0], cpu - start[1]


def _seconds_of_bare_loop(files: list[Path]) -> tuple[float, float]:
    start = _now()
    for file in files:
        with rasterio.open(file) as dataset:
            dataset.read()
    return _since(start)


def _seconds_of_pack(root: Path, num_patches: int, output: Path) -> tuple[float, float]:
    source = SimulatedConfig(root=str(root), num_patches=num_patches)
    config = PackConfig(source=source, output=str(output))
    make_or_read_plan(config, open_source(source))
    start = _now()
    pack(config, progress=False)
    return _since(start)


if __name__ == "__main__":
    main()
