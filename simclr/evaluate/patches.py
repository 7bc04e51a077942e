"""A corpus and numbers of samples come in; batches of their plain views go out, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from simclr.augment.views import ViewMaker
from simclr.corpus import Corpus
from simclr.evaluate.ranking import BoolArray, Indices
from simclr.loader import Loader
from simclr.order import permute


@dataclass(frozen=True, slots=True)
class Patches:
    """Labelled samples of a corpus as a network sees them: normalised, on one grid.

    Attributes:
        corpus: where they are.
        maker: makes plain views.
        rows: (n,) their numbers in the corpus.
        truth: (N, C) of all samples of the corpus.
        kind: of the task: ``single``, ``binary`` or ``multi``.
        device: where views are made.
    """

    corpus: Corpus
    maker: ViewMaker
    rows: Indices
    truth: BoolArray
    kind: str
    device: torch.device

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """Shape of a view: (C, S, S)."""
        size_px = self.maker.view_size_px
        return (len(self.corpus.bands), size_px, size_px)

    def only(self, rows: Indices) -> Patches:
        """Return some samples of the same corpus."""
        return replace(self, rows=rows)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the views of every sample once, in order: (B, C, S, S) float32."""
        count = -(-len(self.rows) // batch_size)
        for batch in self._loader(np.array_split(self.rows, max(count, 1))):
            yield self.maker.plain(batch)

    def shuffled(
        self, batch_size: int, num_steps: int, seed: int
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield epoch, sample ids (B,), views (B, C, S, S) and truth (B, C) for each step.

        An epoch shows every sample once. No batch is smaller than ``batch_size`` unless there are
        fewer samples: a last batch of one would leave BatchNorm without statistics.
        """
        per_epoch = steps_per_epoch(len(self.rows), batch_size)
        plan = [
            part
            for epoch in range(-(-num_steps // per_epoch))
            for part in np.array_split(self._permuted(seed, epoch), per_epoch)
        ][:num_steps]
        for step, batch in enumerate(self._loader(plan)):
            truth = torch.from_numpy(self.truth[plan[step]]).to(self.device)
            yield step // per_epoch, batch.sample_id, self.maker.plain(batch), truth

    def _permuted(self, seed: int, epoch: int) -> Indices:
        positions = np.arange(len(self.rows), dtype=np.int64)
        return self.rows[permute(positions, len(self.rows), seed, epoch)]

    def _loader(self, plan: list[Indices]) -> Loader:
        return Loader(
            self.corpus,
            lambda number: plan[number],
            num_batches=len(plan),
            batch_size=max(map(len, plan)),
            device=self.device,
        )


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return how many batches of at least ``batch_size`` samples an epoch has."""
    return max(1, num_samples // batch_size)
