"""Random batches of whole patches from disk, beside the usual readers of the same patches.

Usage: python benchmarks/loader.py [NUM_PATCHES]. Simulated patches, warm in the page cache: what is
measured is the software. Peers use two worker processes and keep them between epochs; all of them
read the same patches, in a random order, into batches of 64.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
import torch
from report import Claim, Report, alternate
from torch.utils.data import DataLoader, Dataset

from preprocess.bands import L2A_BANDS
from preprocess.config import PackConfig, SimulatedConfig
from preprocess.pack import pack
from preprocess.shards.reader import open_shard
from simclr.corpus import Corpus, open_corpus
from simclr.loader import Loader
from simclr.order import permute

OURS, BARE = "this loader, 2 threads", "bare pread of the same bytes, 1 thread"
BATCH, WORKERS = 64, 2
CPU = torch.device("cpu")
PATCH_BYTES = 160_000
SHARD_MIB = 8  # many shards: a batch finds few of its patches in the same one
EPOCHS = 8  # of one round of the fast ones: memory is touched for the first time in each

Sample = dict[str, torch.Tensor]


def main() -> None:
    """Measure, print, keep."""
    num_patches = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    report = Report(
        "loader", "Random batches of patches", "patch", BARE, packages=("torch", "rasterio", "h5py")
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        corpus = write(root, num_patches)
        workers = {
            "GeoTIFFs, DataLoader of 2 workers": GeoTiffs(root / "rasters"),
            "a .npy a patch, DataLoader of 2 workers": Arrays(root / "arrays"),
            "h5py, DataLoader of 2 workers": Hdf5(root / "shards"),
        }
        work: dict[str, Callable[[], object]] = {
            OURS: lambda: drain(ours(corpus)),
            BARE: lambda: bare(root / "shards", num_patches),
        }
        for name, data in workers.items():
            loader = DataLoader(
                data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
            )
            work[name] = lambda loader=loader: drain(loader)
        amounts = dict.fromkeys(work, num_patches) | dict.fromkeys(
            (OURS, BARE), EPOCHS * num_patches
        )
        timings = alternate(work, amounts, rounds=5)
        resumed = first_batch_s(corpus)
    report.timings += timings.values()
    best = min(timings[OURS].times(timings[name]) for name in workers)
    report.claims += [
        Claim("times the rate of the best reader with worker processes", best, at_least=10),
        Claim("GB/s of this loader", timings[OURS].rate * PATCH_BYTES / 1e9, at_least=2.5),
        Claim("times the rate of bare pread", timings[OURS].times(timings[BARE]), at_least=0.7),
        Claim("seconds to the first batch when resumed in a late epoch", resumed, at_most=1),
    ]
    report.notes.append("absent, not run: webdataset, mosaicml-streaming")
    report.write()


def write(root: Path, num_patches: int) -> Corpus:
    """Write the same patches as GeoTIFFs, shards, and one array file a patch."""
    source = SimulatedConfig(root=str(root / "rasters"), num_patches=num_patches)
    config = PackConfig(source=source, output=str(root / "shards"), shard_size_mib=SHARD_MIB)
    pack(config, progress=False)
    corpus = open_corpus([str(root / "shards")], L2A_BANDS)
    (root / "arrays").mkdir()
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in corpus.groups}
    for sample in range(num_patches):
        corpus.read_into(np.array([sample]), buffers, np.array([0]))
        flat = np.concatenate([buffer.ravel() for buffer in buffers.values()])
        np.save(root / "arrays" / f"{sample:06d}.npy", flat)
    return corpus


def ours(corpus: Corpus) -> Loader:
    """Return our loader over some epochs in random order."""
    num = corpus.num_samples
    order = np.concatenate([permute(np.arange(num), num, 0, epoch) for epoch in range(EPOCHS)])
    parts = np.array_split(order, EPOCHS * num // BATCH)
    return Loader(
        corpus,
        lambda number: parts[number],
        num_batches=len(parts),
        batch_size=max(map(len, parts)),
        device=CPU,
        num_threads=2,
    )


def drain(batches: Loader | DataLoader[Sample]) -> None:
    """Take every batch."""
    for _ in batches:
        pass


def bare(folder: Path, num_patches: int) -> None:
    """Read as many bytes of the shards as our loader does, in pieces of a patch, at random."""
    descriptors = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.h5"))]
    # as much memory as our slots have: one buffer for all would never leave the processor's cache
    buffers = [memoryview(bytearray(PATCH_BYTES)) for _ in range(3 * BATCH)]
    sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    draws = np.random.default_rng(0).integers(0, min(sizes) - PATCH_BYTES, EPOCHS * num_patches)
    for number, offset in enumerate(draws.tolist()):
        into = buffers[number % len(buffers)]
        os.preadv(descriptors[number % len(descriptors)], [into], offset)
    for descriptor in descriptors:
        os.close(descriptor)


def first_batch_s(corpus: Corpus) -> float:
    """Return how long the first batch of a run takes that is resumed in epoch 1,000."""
    start = time.perf_counter()
    positions = np.arange(BATCH) + corpus.num_samples // 2
    rows = permute(positions, corpus.num_samples, 0, 1000)
    loader = Loader(corpus, lambda _: rows, num_batches=1, batch_size=BATCH, device=CPU)
    next(iter(loader))
    return time.perf_counter() - start


class GeoTiffs(Dataset[Sample]):
    """Twelve files a patch, as they are downloaded."""

    def __init__(self, root: Path) -> None:
        self.folders = sorted({path.parent for path in root.rglob("*.tif")})
        self.files = [sorted(folder.glob("*_B*.tif")) for folder in self.folders]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        sample = {}
        for path in self.files[index]:
            with rasterio.open(path) as dataset:
                sample[path.stem[-3:]] = torch.from_numpy(dataset.read(1).astype(np.int32))
        return sample


class Arrays(Dataset[torch.Tensor]):
    """One array file a patch."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.files[index]))


class Hdf5(Dataset[Sample]):
    """The shards through h5py, opened once in each worker."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.h5"))
        self.rows = list(self._rows())
        self._open: dict[Path, object] = {}

    def _rows(self) -> Iterator[tuple[Path, int]]:
        for path in self.files:
            with open_shard(path) as file:
                yield from ((path, row) for row in range(len(file["index/id"])))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        path, row = self.rows[index]
        if path not in self._open:
            self._open[path] = open_shard(path)
        patches = self._open[path]["patches"]
        return {name: torch.from_numpy(patches[name][row]) for name in patches}


if __name__ == "__main__":
    main()
