"""Random batches of complete patches from disk, compared with common readers of the same patches.

Usage: python benchmarks/loader.py [NUM_PATCHES]. Simulated patches, warm in the page cache, so that
the software is measured. Peers use two persistent worker processes; all of them read the same
patches in random order into batches of 64. webdataset and mosaicml-streaming run if installed:
pip install webdataset mosaicml-streaming.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from report import Claim, Report, alternate
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from preprocess.bands import L2A_BANDS
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.format import open_shard
from preprocess.sources.simulated import SimulatedConfig
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.data.loader import Loader
from simclr.data.sampler import permutation

OURS, ALONE = "this loader, 2 threads", "this loader, 1 thread"
RASTERS = "GeoTIFFs, DataLoader"
BARE, BOTH = "bare pread of the same bytes, 1 thread", "the same, 2 processes"
BATCH, WORKERS = 64, 2
CPU = torch.device("cpu")
PATCH_BYTES = 160_000
SHARD_MIB = 8  # many shards, so that few patches of a batch are in the same one
EPOCHS = 32  # per round of fast readers, since training allocates its slots once for all epochs

Sample = dict[str, torch.Tensor]


def main() -> None:
    """Measure, print and save the results."""
    num_patches = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    packages = ("torch", "rasterio", "h5py", "webdataset", "mosaicml-streaming", "numpy")
    report = Report("loader", "Random batches of patches", "patch", BARE, packages=packages)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = write(root, num_patches)
        others = peers(root)
        data = BareHalves(root / "shards", EPOCHS * num_patches)
        halves = DataLoader(data, None, num_workers=WORKERS, persistent_workers=True)
        fast: dict[str, Callable[[], object]] = {
            OURS: lambda: drain(ours(dataset, 2)),
            ALONE: lambda: drain(ours(dataset, 1)),
            BARE: lambda: bare(root / "shards", EPOCHS * num_patches),
            BOTH: partial(drain, halves),
        }
        slow = {name: partial(drain, loader) for name, loader in others.items()}
        amounts = dict.fromkeys(slow, num_patches) | dict.fromkeys(fast, EPOCHS * num_patches)
        amounts[RASTERS] = num_patches // 8
        timings = alternate(fast | slow, amounts, rounds=5)
        resumed = first_batch_s(dataset)
    report.timings += timings.values()
    best = min(timings[OURS].times(timings[name]) for name in others)
    limit = min(timings[BOTH].times(timings[name]) for name in others)
    report.claims += [
        Claim("times the rate of the best reader with worker processes", best, at_least=10),
        Claim("times that best reader, if two processes did nothing but pread", limit),
        Claim("GB/s of this loader", timings[OURS].rate * PATCH_BYTES / 1e9, at_least=2.5),
        Claim("times the rate of bare pread", timings[OURS].times(timings[BARE]), at_least=0.7),
        Claim("times the rate of bare pread in two processes", timings[OURS].times(timings[BOTH])),
        Claim("seconds to the first batch when resumed in a late epoch", resumed, at_most=1),
    ]
    report.notes += [
        f"peers have {WORKERS} worker processes each",
        "two processes that only read show what memory allows",
    ]
    report.write()


def write(root: Path, num_patches: int) -> ShardDataset:
    """Write the same patches as GeoTIFFs, shards, and one array file per patch."""
    source = SimulatedConfig(root=str(root / "rasters"), num_patches=num_patches)
    config = PackConfig(source=source, output=str(root / "shards"), shard_size_mib=SHARD_MIB)
    pack(config, progress=False)
    dataset = open_dataset([str(root / "shards")], L2A_BANDS)
    (root / "arrays").mkdir()
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in dataset.layouts[0]}
    for sample in range(num_patches):
        dataset.read_into(np.array([sample]), buffers, np.array([0]))
        flat = np.concatenate([buffer.ravel() for buffer in buffers.values()])
        np.save(root / "arrays" / f"{sample:06d}.npy", flat)
    return dataset


def ours(dataset: ShardDataset, num_threads: int) -> Loader:
    """Return our loader over some epochs in random order."""
    num = dataset.num_samples
    order = np.concatenate([permutation(num, 0, epoch) for epoch in range(EPOCHS)])
    parts = np.array_split(order, EPOCHS * num // BATCH)
    return Loader(
        dataset,
        lambda number: parts[number],
        num_batches=len(parts),
        batch_size=max(map(len, parts)),
        device=CPU,
        num_threads=num_threads,
    )


def drain(batches: Iterable[object]) -> None:
    """Consume every batch."""
    for _ in batches:
        pass


def bare(folder: Path, num_reads: int, num_buffers: int = 3 * BATCH, seed: int = 0) -> None:
    """Read pieces of a patch's size from random places in the shards, and do nothing else.

    The buffers use as much memory as our slots: fewer would stay in the CPU cache.
    """
    descriptors = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.h5"))]
    buffers = [memoryview(bytearray(PATCH_BYTES)) for _ in range(num_buffers)]
    sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    draws = np.random.default_rng(seed).integers(0, min(sizes) - PATCH_BYTES, num_reads)
    for number, offset in enumerate(draws.tolist()):
        into = buffers[number % len(buffers)]
        os.preadv(descriptors[number % len(descriptors)], [into], offset)
    for descriptor in descriptors:
        os.close(descriptor)


class BareHalves(IterableDataset[int]):
    """The same reads, divided among DataLoader workers, which return no pixels."""

    def __init__(self, folder: Path, num_reads: int) -> None:
        self.folder, self.num_reads = folder, num_reads

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info().id
        bare(self.folder, self.num_reads // WORKERS, 3 * BATCH // WORKERS, worker)
        yield worker


def first_batch_s(dataset: ShardDataset) -> float:
    """Return the time to the first batch of a run resumed in epoch 1,000."""
    start = time.perf_counter()
    middle = dataset.num_samples // 2
    rows = permutation(dataset.num_samples, 0, 1000)[middle : middle + BATCH]
    loader = Loader(dataset, lambda _: rows, num_batches=1, batch_size=BATCH, device=CPU)
    next(iter(loader))
    return time.perf_counter() - start


def peers(root: Path) -> dict[str, Iterable[object]]:
    """Return the importable readers with worker processes, by name."""
    found: dict[str, Iterable[object]] = {}
    plain = {
        RASTERS: GeoTiffs(root / "rasters"),
        "a .npy a patch, DataLoader": Arrays(root / "arrays"),
        "h5py, DataLoader": Hdf5(root / "shards"),
    }
    for name, data in plain.items():
        found[name] = DataLoader(
            data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
        )
    for name, build in {"webdataset": _webdataset, "mosaicml-streaming": _streaming}.items():
        with suppress(ImportError):
            found[name] = build(root)
    return found


def _webdataset(root: Path) -> Iterable[object]:
    """Return patches from tar files, shuffled by shard, then within a buffer of 256 patches."""
    import webdataset

    (root / "tars").mkdir()
    with webdataset.ShardWriter(str(root / "tars" / "%04d.tar"), maxcount=64, verbose=0) as sink:
        for path in sorted((root / "arrays").glob("*.npy")):
            sink.write({"__key__": path.stem, "npy": path.read_bytes()})
    tars = sorted(str(path) for path in (root / "tars").glob("*.tar"))
    data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(256).decode()
    return DataLoader(
        data.to_tuple("npy").map(_first), BATCH, num_workers=WORKERS, persistent_workers=True
    )


def _first(sample: tuple[npt.NDArray[np.uint16]]) -> torch.Tensor:
    return torch.from_numpy(sample[0])


def _streaming(root: Path) -> Iterable[object]:
    """Return patches from MDS shards, shuffled by streaming's default method."""
    import streaming

    columns = {"pixels": f"ndarray:uint16:{PATCH_BYTES // 2}"}
    with streaming.MDSWriter(out=str(root / "mds"), columns=columns, size_limit=8 << 20) as sink:
        for path in sorted((root / "arrays").glob("*.npy")):
            sink.write({"pixels": np.load(path)})
    data = streaming.StreamingDataset(local=str(root / "mds"), shuffle=True, batch_size=BATCH)
    return DataLoader(data, BATCH, num_workers=WORKERS, persistent_workers=True)


class GeoTiffs(Dataset[Sample]):
    """Twelve files per patch, as downloaded."""

    def __init__(self, root: Path) -> None:
        folders = sorted({path.parent for path in root.rglob("*.tif")})
        # only an eighth of them, or this reader would take most of the benchmark's time
        self.files = [sorted(folder.glob("*_B*.tif")) for folder in folders[: len(folders) // 8]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        sample = {}
        for path in self.files[index]:
            with rasterio.open(path) as dataset:
                sample[path.stem[-3:]] = torch.from_numpy(dataset.read(1).astype(np.int32))
        return sample


class Arrays(Dataset[torch.Tensor]):
    """One array file per patch."""

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.files[index]))


class Hdf5(Dataset[Sample]):
    """The shards through h5py, opened once per worker."""

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
