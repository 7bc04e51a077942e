"""Packed patches and settings of augmentation come in; a sheet of what training sees goes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.figures.canvas import canvas
from jobs.figures.inspection import spread
from jobs.figures.page import Page
from jobs.figures.shards import TRUE_COLOUR
from jobs.inspection import InspectConfig
from preprocess.shards import read_manifest
from simclr.augment.presets import OPERATIONS
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig
from simclr.corpus import Corpus, open_corpus
from simclr.loader import Batch, Loader

PAGE_NAME = "augment.html"
_CPU = torch.device("cpu")
_MOST = 8  # more rows than this are too small to see
_REACH = 2.5  # standard deviations between grey and black or white

Views = NDArray[np.float32]  # (B, 3, S, S), normalised


def inspect_views(config: InspectConfig, output: Path) -> Path:
    """Draw patches x operations, and two views of each patch under the preset; return the page.

    Raises:
        ValueError: a setting of the augmentation is refused.
    """
    packed = read_manifest(Path(config.shards)).layout.bands
    bands = list(TRUE_COLOUR if set(TRUE_COLOUR) <= set(packed) else packed[:1])
    corpus = open_corpus([config.shards], bands)
    batch = _batch(corpus, min(config.patches, _MOST))
    output.mkdir(parents=True, exist_ok=True)
    columns = {"as packed": ViewMaker(corpus, AugmentConfig(preset="none"), 0, _CPU).plain(batch)}
    for name in OPERATIONS:
        # the size and the variant are the user's; only the list is ours
        single = replace(config.augment, preset="list", operations=[name], couplets=[])
        columns[name] = _views(corpus, single, config.seed, batch)[0]
    path = _draw(output / "operations.png", columns)
    page = Page("What training sees").heading("One operation at a time")
    page.picture(path, "Each row is a patch, each column one operation with drawn parameters.")
    first, second = _views(corpus, config.augment, config.seed, batch)
    views = {"as packed": columns["as packed"], "first view": first, "second view": second}
    path = _draw(output / "views.png", views)
    page.heading(f"Two views: {config.augment.preset}")
    page.picture(path, "The two views that are to be recognised as one patch, in epoch 0.")
    return page.write(output / PAGE_NAME)


def _batch(corpus: Corpus, count: int) -> Batch:
    rows = spread(corpus.num_samples, count)
    loader = Loader(corpus, lambda _: rows, num_batches=1, batch_size=len(rows), device=_CPU)
    return next(iter(loader))


def _views(
    corpus: Corpus, config: AugmentConfig, seed: int, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    views = ViewMaker(corpus, config, seed, _CPU).two_views(batch, 0)
    return views[: len(views) // 2], views[len(views) // 2 :]


def _draw(path: Path, columns: dict[str, torch.Tensor]) -> Path:
    rows = len(next(iter(columns.values())))
    with canvas(path, 1.25 * len(columns), 1.3 * rows + 0.3) as figure:
        places = figure.subplots(rows, len(columns), squeeze=False)
        for column, (name, views) in enumerate(columns.items()):
            places[0, column].set_title(name, fontsize=8)
            for row in range(rows):
                places[row, column].imshow(_image(views[row]), interpolation="nearest")
                places[row, column].set_axis_off()
    return path


def _image(view: torch.Tensor) -> NDArray[np.float32]:
    """Return (S, S, 3) from 0 to 1 of a normalised view: its mean in grey, for all alike."""
    channels = view if len(view) == 3 else view[:1].expand(3, -1, -1)
    grey = (channels / (2 * _REACH) + 0.5).clamp(0, 1)
    image: NDArray[np.float32] = grey.permute(1, 2, 0).numpy()
    return image
