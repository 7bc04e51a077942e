"""Two augmented views per patch, compared with the pipelines of kornia and torchgeo.

Usage: python benchmarks/augmentation.py [BATCH]. 12 bands of 120 x 120 pixels. Ours starts from the
stored values on three grids, and normalises and resamples them; the peers receive normalised
float32 bands already on one grid.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import Claim, Report, alternate

from preprocess.bands import L2A_BANDS
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig
from simclr.data.dataset import open_dataset
from simclr.data.loader import Batch, Loader

OURS = "this augmentation, simclr"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure, print and save the results."""
    torch.set_num_threads(os.cpu_count() or 1)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    packages = ("torch", "kornia", "torchgeo")
    title = "Two views of 12 x 120 x 120 patches"
    report = Report("augmentation", title, "view", packages=packages)
    with tempfile.TemporaryDirectory() as folder:
        batch, maker, plain = prepare(Path(folder), size)
        work: dict[str, Callable[[], object]] = {}
        work[OURS] = lambda: finished(maker.training_views(batch, 0))
        for name, make in PEERS.items():
            try:
                pipeline = make()
            except ImportError:
                report.notes.append(f"absent, not run: {name}")
            else:
                work[name] = lambda pipe=pipeline: finished((pipe(plain), pipe(plain)))
        timings = alternate(work, 2 * size, rounds=7)
    report.timings += timings.values()
    for name in list(timings)[1:]:
        claim = f"times the rate of {name}"
        report.claims.append(Claim(claim, timings[OURS].times(timings[name]), at_least=5))
    report.notes.append(
        f"batches of {size}; the lists are crop, flips or quarter turns, blur 0.5, contrast 0.8, "
        "brightness 0.8, noise 0.2; ours has gain 0.8 as well, torchgeo's no noise and no turns"
    )
    report.write()


def prepare(folder: Path, size: int) -> tuple[Batch, ViewMaker, torch.Tensor]:
    """Return a batch of simulated patches as stored, our view maker, and normalised patches."""
    source = SimulatedConfig(root=str(folder / "rasters"), num_patches=size)
    pack(PackConfig(source=source, output=str(folder / "shards")), progress=False)
    dataset = open_dataset([str(folder / "shards")], L2A_BANDS)
    rows = np.arange(size)
    loader = Loader(dataset, lambda _: rows, num_batches=1, batch_size=size, device=DEVICE)
    batch = next(iter(loader))
    maker = ViewMaker(dataset, AugmentConfig(preset="simclr"), 0, DEVICE)
    return batch, maker, maker.eval_views(batch).contiguous()


def finished(views: object) -> object:
    """Wait for the device and return the views."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return views


def _kornia() -> Callable[[torch.Tensor], torch.Tensor]:
    import kornia.augmentation as K

    return K.AugmentationSequential(
        K.RandomResizedCrop(size=(120, 120), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.RandomVerticalFlip(),
        K.RandomRotation90(times=(0, 3)),
        K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        K.RandomContrast((0.6, 1.4), p=0.8),
        K.RandomBrightness((0.6, 1.4), p=0.8),
        K.RandomGaussianNoise(std=0.1, p=0.2),
        data_keys=["input"],
    ).to(DEVICE)


def _torchgeo() -> Callable[[torch.Tensor], torch.Tensor]:
    from torchgeo.trainers.simclr import simclr_augmentations

    return simclr_augmentations(120, torch.full((12,), 1 / 12)).to(DEVICE)


PEERS = {"kornia": _kornia, "torchgeo's SimCLR": _torchgeo}


if __name__ == "__main__":
    main()
