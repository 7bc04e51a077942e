"""Settings of a run and packed folders come in; how many steps it will train goes out, at most."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.shards.manifest import read_manifest
from simclr.config import TrainConfig


def count_patches(shards: Iterable[str]) -> int:
    """Return the patches of packed folders, whatever split they are of.

    Raises:
        ValueError: a folder holds no packed source.
    """
    return sum(read_manifest(Path(folder)).rows for folder in shards)


def most_steps(run: TrainConfig, patches: int) -> int:
    """Return an upper bound: patches of other splits count here, and are not trained on."""
    steps = run.epochs * (round(patches * run.data.fraction) // run.data.global_batch_size)
    return min(steps, run.max_steps or steps)
