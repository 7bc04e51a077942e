"""Packing compared with a bare rasterio loop over the same GeoTIFFs, in the same run.

Usage: python benchmarks/pack.py [NUM_PATCHES]. Files are simulated patches, uncompressed like those
of BigEarthNet, in the page cache. Packing opens, checks and reads them, computes checksums and
statistics, and writes, flushes and reads back its shards; the loop only reads. Both use one thread
of one process, so that CPU time is the time of one core, the fairer measure on a machine with
other load.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import rasterio
from report import Claim, Report, alternate, peak_mib

from preprocess import raster
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.plan import make_or_read_plan
from preprocess.sources import open_source
from preprocess.sources.simulated import SimulatedConfig, write_tree

OURS, BARE, TUNED = "pack", "bare rasterio loop", "the same loop, GDAL told what pack tells it"
ROUNDS = 5


def main() -> None:
    """Measure, print and save the results."""
    num_patches = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    packages = ("rasterio", "h5py", "numpy")
    report = Report("pack", "GeoTIFFs to shards, one core", "patch", BARE, packages)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        write_tree(root, num_patches, seed=0)
        files = sorted(root.rglob("*.tif"))
        packs = [planned(root, num_patches, Path(folder) / str(n)) for n in range(ROUNDS + 1)]
        work = {
            OURS: lambda: pack(packs.pop(), progress=False),
            BARE: lambda: read_all(files),
            TUNED: lambda: read_all_tuned(files),
        }
        timings = alternate(work, num_patches, rounds=ROUNDS)
    ours, bare, tuned = timings[OURS], timings[BARE], timings[TUNED]
    report.timings += timings.values()
    per_core = num_patches / sorted(ours.cpu_s)[ROUNDS // 2]
    report.claims += [
        Claim("times the bare loop, in CPU time", ours.times(bare, "cpu_s"), at_least=0.9),
        Claim("times the bare loop, by the clock", ours.times(bare), at_least=0.9),
        Claim("times the tuned loop, in CPU time", ours.times(tuned, "cpu_s")),
        Claim("patches per CPU second", per_core),
        Claim("MiB at most in memory", peak_mib(), at_most=1024),
    ]
    report.notes.append(f"{num_patches} patches of 12 files, GDAL {rasterio.__gdal_version__}")
    report.write()


def planned(root: Path, num_patches: int, output: Path) -> PackConfig:
    """Return settings of a pack whose plan is already written."""
    source = SimulatedConfig(root=str(root), num_patches=num_patches)
    config = PackConfig(source=source, output=str(output))
    make_or_read_plan(config, open_source(source))
    return config


def read_all(files: list[Path]) -> None:
    """Read every file in the obvious way."""
    for file in files:
        with rasterio.open(file) as dataset:
            dataset.read()


def read_all_tuned(files: list[Path]) -> None:
    """Read every file with packing's GDAL options."""
    with raster.session():
        read_all(files)


if __name__ == "__main__":
    main()
