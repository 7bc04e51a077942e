"""A complete training step, compared with the model alone and with torchgeo's SimCLRTask.

Usage: python benchmarks/step.py [BATCH]. ResNet-18, 12 bands of 120 x 120, adam, one process. The
complete step reads patches from shards, makes both views, and trains; the model alone receives
finished views; torchgeo's task receives normalised patches in memory and has no memory bank.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from report import Claim, Report, Timing, alternate

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig
from simclr.config import AugmentConfig, DataConfig, EncoderName, ModelConfig, TrainConfig
from simclr.distributed import distributed_context
from simclr.loss import contrastive_loss
from simclr.train import Trainer, train_step

WHOLE, ALONE, PEER = "whole step", "model alone", "torchgeo's SimCLRTask"
PEERS_VIEWS = "torchgeo's augmentation alone"
ROUNDS = 5


def main() -> None:
    """Measure, print and save the results."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    packages = ("torch", "torchvision", "torchgeo", "kornia", "lightly")
    report = Report("step", "A training step of ResNet-18", "patch", ALONE, packages)
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder), size)
        with (
            distributed_context(config.world) as context,
            closing(Trainer(config, context, [])) as run,
        ):
            run.resume()
            views = run.views.training_views(next(run.batches), 0)
            work: dict[str, Callable[[], object]] = {
                WHOLE: lambda: train_step(run, next(run.batches)),
                ALONE: lambda: model_alone(run, views),
            }
            peer = torchgeo_step(run, size)
            if peer is None:
                report.notes.append(f"absent, not run: {PEER}")
            else:
                work[PEER], work[PEERS_VIEWS] = peer
            timings = alternate(work, size, rounds=ROUNDS)
    report.timings += timings.values()
    share = timings[WHOLE].times(timings[ALONE])
    report.claims.append(Claim("whole step as a share of the model alone", share, at_least=0.9))
    if PEER in timings:
        times = timings[WHOLE].times(timings[PEER])
        report.claims.append(Claim(f"times the rate of {PEER}", times, at_least=3))
        _bound(report, timings)
    report.write()


def _bound(report: Report, timings: dict[str, Timing]) -> None:
    """Report the largest possible speed-up over the peer if all but the model cost nothing."""
    bound = timings[ALONE].times(timings[PEER])
    report.claims.append(Claim("the model alone, times the rate of the peer's step", bound))
    views = timings[PEER].times(timings[PEERS_VIEWS])
    report.claims.append(Claim("augmentation's share of the peer's step", views))
    report.notes.append(
        "both train the same ResNet-18 in float32: where the model's time is most of a step, no "
        "augmentation, loader or loss can make a whole step faster than the model alone"
    )


def prepare(folder: Path, size: int) -> TrainConfig:
    """Pack simulated patches; return the settings of a sufficiently long run on them."""
    source = SimulatedConfig(root=str(folder / "rasters"), num_patches=4 * size)
    pack(PackConfig(source=source, output=str(folder / "shards")), progress=False)
    return TrainConfig(
        shards=[str(folder / "shards")],
        run_dir=str(folder / "run"),
        epochs=1000,
        data=DataConfig(global_batch_size=size, splits=["train", "validation", "test", ""]),
        augment=AugmentConfig(preset="simclr"),
        model=ModelConfig(encoder=EncoderName.resnet18),
    )


def model_alone(run: Trainer, views: torch.Tensor) -> None:
    """Train on finished views, with the same loss and optimiser."""
    run.optimizer.zero_grad(set_to_none=True)
    _, projections = run.model(views)
    contrastive_loss(projections, run.config.loss).backward()
    run.optimizer.step()


def torchgeo_step(
    run: Trainer, size: int
) -> tuple[Callable[[], object], Callable[[], object]] | None:
    """Return a step of torchgeo's task on patches in memory, and its augmentation alone.

    Return None if torchgeo is not installed.
    """
    try:
        from torchgeo.trainers import SimCLRTask
    except ImportError:
        return None
    warnings.filterwarnings("ignore", message=".*self.log.*")
    task = SimCLRTask(
        "resnet18",
        in_channels=12,
        version=1,
        layers=2,
        hidden_dim=512,
        output_dim=128,
        temperature=run.config.loss.temperature,
        memory_bank_size=0,
        size=120,
    )
    optimizer = torch.optim.Adam(task.parameters(), lr=5e-4)
    patches = torch.randn(size, 12, 120, 120)

    def step() -> None:
        """Make views and train."""
        optimizer.zero_grad(set_to_none=True)
        task.training_step({"image": patches}, 0).backward()
        optimizer.step()

    def views() -> None:
        """Make both views like a step does."""
        with torch.no_grad():
            task.augmentations(patches), task.augmentations(patches)

    return step, views


if __name__ == "__main__":
    main()
