"""Batches of a whole data set for tests."""

from __future__ import annotations

import numpy as np
import torch

from simclr.data.dataset import ShardDataset
from simclr.data.loader import Loader


def sequential_batches(dataset: ShardDataset, batch_size: int, device: torch.device) -> Loader:
    """Return a loader that reads every sample once, in order; the last batch may be shorter."""
    samples = np.arange(dataset.num_samples)
    return Loader(
        dataset,
        lambda number: samples[number * batch_size : (number + 1) * batch_size],
        num_batches=-(-dataset.num_samples // batch_size),
        batch_size=min(batch_size, dataset.num_samples),
        device=device,
    )
