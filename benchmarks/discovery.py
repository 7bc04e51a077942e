"""Discovery of large archives, compared with a bare listing of the same folders.

Usage: python benchmarks/discovery.py [NUM_PATCHES]. Creates trees of 600,000 empty patch folders
like both BigEarthNet releases, with split lists and a table of as many rows, and as many empty
GeoTIFFs in class folders, in /dev/shm if it exists, and removes them at the end. Each measurement
runs in a separate process, so that peak memory is measured separately.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from report import Claim, Report, Timing, measured, measured_by_child

from preprocess.config import PackConfig, SourceConfig
from preprocess.plan import make_or_read_plan, read_plan
from preprocess.sources import open_source
from preprocess.sources.bigearthnet import (
    V1_TREE,
    V2_TREE,
    BigEarthNetV1Config,
    BigEarthNetV2Config,
)
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.labels import CLASSES_19

NUM_PATCHES = 600_000
PATCHES_PER_PRODUCT = 4800
ROUNDS = 3
MEMORY_MIB = 1024  # memory limit of each measurement
PARTS = 64
SPLITS = ("train", "validation", "test")

Measured = dict[str, float]


def main() -> None:
    """Create the trees, measure in child processes, print and save the report."""
    if sys.argv[1:2] == ["child"]:
        json.dump(measured(lambda: WORK[sys.argv[2]](Path(sys.argv[3]))), sys.stdout)
        return
    num_patches = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_PATCHES
    home = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=home, prefix="discovery-") as folder:
        make_v1(Path(folder) / "v1", num_patches)
        make_v2(Path(folder) / "v2", num_patches)
        make_classes(Path(folder) / "classes", num_patches)
        found = {name: [measured_by_child(name, folder) for _ in range(ROUNDS)] for name in WORK}
    _report(num_patches, found)


def make_v1(root: Path, num_patches: int) -> None:
    """Create a flat tree of patch folders, and three split lists that cover all of them."""
    (root / V1_TREE).mkdir(parents=True)
    lists = [(root / f"{split}.csv").open("w", encoding="utf-8") for split in SPLITS]
    for number, (stamp, _, column, row) in enumerate(_patches(num_patches)):
        name = f"S2A_MSIL2A_{stamp}_{column}_{row}"
        (root / V1_TREE / name).mkdir()
        lists[number % len(lists)].write(name + "\n")
    for file in lists:
        file.close()


def make_v2(root: Path, num_patches: int) -> None:
    """Create product folders of patch folders, and a table with one row per patch."""
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.default_rng(0)
    ids, labels = [], []
    for stamp, tile, column, row in _patches(num_patches):
        product = f"S2A_MSIL2A_{stamp}_N9999_R022_T{tile}"
        ids.append(f"{product}_{column:02d}_{row:02d}")
        labels.append([CLASSES_19[code] for code in random.integers(0, len(CLASSES_19), 3)])
        (root / V2_TREE / product / ids[-1]).mkdir(parents=True)
    splits = [SPLITS[number % len(SPLITS)] for number in range(num_patches)]
    table = pa.table({"patch_id": ids, "labels": labels, "split": splits, "s2v1_name": ids})
    parquet.write_table(table, root / "metadata.parquet")


def make_classes(root: Path, num_patches: int) -> None:
    """Create class folders of empty files."""
    for number in range(num_patches):
        folder = root / CLASSES_19[number % len(CLASSES_19)].replace("/", " ")
        if number < len(CLASSES_19):
            folder.mkdir(parents=True)
        (folder / f"patch_{number:06d}.tif").touch()


def _patches(num_patches: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield time, tile, column and row; each product has its own time and tile."""
    for number in range(num_patches):
        product, square = divmod(number, PATCHES_PER_PRODUCT)
        column, row = divmod(square, 90)
        day, minute = 1 + product % 28, product // 28
        yield f"201706{day:02d}T10{minute:02d}31", f"33U{chr(65 + product % 8)}P", column, row


WORK: dict[str, Callable[[Path], int]] = {
    "bare listing, v1": lambda root: len(_names(root / "v1" / V1_TREE)),
    "discovery and plan, v1": lambda root: _plan(
        BigEarthNetV1Config(
            root=str(root / "v1"),
            **{f"{split}_list": str(root / "v1" / f"{split}.csv") for split in SPLITS},
        ),
        root,
    ),
    "bare listing, v2": lambda root: sum(
        len(_names(root / "v2" / V2_TREE / product)) for product in _names(root / "v2" / V2_TREE)
    ),
    "discovery and plan, v2": lambda root: _plan(BigEarthNetV2Config(root=str(root / "v2")), root),
    "discovery and plan, GeoTIFFs": lambda root: _plan(
        GeotiffConfig(root=str(root / "classes"), file_bands=["B02", "B03"], boa_offset=0), root
    ),
    f"one of {PARTS} parts reads the plan": lambda root: _read_part(root),
}


def _read_part(root: Path) -> int:
    """Read one part of a plan as each task of a job array does; return patches times parts."""
    plan = read_plan(next(root.glob("shards-v2-*")))
    return sum(len(refs) for _, refs in plan.shards(0, PARTS)) * PARTS


def _plan(source: SourceConfig, root: Path) -> int:
    output = Path(tempfile.mkdtemp(dir=root, prefix=f"shards-{source.kind[-2:]}-"))
    config = PackConfig(source=source, output=str(output))
    return make_or_read_plan(config, open_source(source)).num_refs


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _report(num_patches: int, found: dict[str, list[Measured]]) -> None:
    title = f"Discovery of {num_patches:,} patches in each of three archives"
    report = Report("discovery", title, "patches", packages=("numpy", "pyarrow"))
    for name, rounds in found.items():
        wall, cpu = (tuple(entry[key] for entry in rounds) for key in ("wall_s", "cpu_s"))
        report.timings.append(Timing(name, rounds[0]["found"], wall, cpu))
        peak = max(entry["peak_mib"] for entry in rounds)
        report.claims.append(Claim(f"peak memory, {name}, MiB", peak, at_most=MEMORY_MIB))
    for archive in ("v1", "v2", "GeoTIFFs"):
        number = found[f"discovery and plan, {archive}"][0]["found"]
        claim = Claim(f"patches in the plan, {archive}", number, at_least=num_patches)
        report.claims.append(claim)
    imports = max(entry["imports_mib"] for rounds in found.values() for entry in rounds)
    report.notes.append(f"Of every peak, {imports:.0f} MiB are the interpreter and its imports.")
    report.notes.append(
        "Folders are empty and lie in memory; on a shared file system listing takes the time of "
        "its metadata server. Discovery lists each folder once and opens no patch."
    )
    report.write()


if __name__ == "__main__":
    main()
