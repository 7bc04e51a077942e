"""The samples of packed sources, numbered consecutively; used by loader, sampler and views."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards import (
    BatchReader,
    GroupLayout,
    LabelSet,
    Manifest,
    ShardReader,
    open_readers,
    read_manifest,
)
from simclr.config import require


class ShardDataset:
    """The selected samples of packed sources; sample ``i`` is found in O(log shards).

    Attributes:
        manifests: one per packed source.
        bands: selected bands, in the order of the channels of a view.
        sources: names of the packed sources.
        simulated: True if any source was simulated rather than measured.
        fingerprint: sixteen hex digits that change with any packed byte or the order of sources.
        layouts: L distinct lists of band groups with a selected band, finest first.
        sample_id: (num_samples,) int64, position among all packed rows; unchanged by selection.
        source: (num_samples,) int64, index into ``manifests``.
    """

    def __init__(
        self, folders: Sequence[Path], manifests: Sequence[Manifest], bands: Sequence[str]
    ) -> None:
        self.manifests = tuple(manifests)
        self.bands = tuple(bands)
        self.sources = tuple(manifest.source for manifest in manifests)
        self.simulated = any(manifest.simulated for manifest in manifests)
        text = ":".join(manifest.fingerprint for manifest in manifests)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        needed = [_needed_groups(manifest, bands) for manifest in manifests]
        self.layouts = tuple(dict.fromkeys(needed))
        self._layout_of_source = np.array([self.layouts.index(groups) for groups in needed])
        self._readers: list[ShardReader] = []
        for folder, manifest in zip(folders, manifests, strict=True):
            self._readers += open_readers(folder, manifest)
        rows_of_source = [manifest.rows for manifest in manifests]
        self._batches = BatchReader(self._readers)
        self.sample_id = np.arange(sum(rows_of_source), dtype=np.int64)
        self.source = np.repeat(np.arange(len(manifests), dtype=np.int64), rows_of_source)

    @property
    def num_samples(self) -> int:
        """Number of selected samples."""
        return len(self.sample_id)

    def layout_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index into ``layouts`` of each sample (n,): (n,) int64."""
        return self._layout_of_source[self.source[samples]]

    @property
    def size_px(self) -> int:
        """Side of all patches on their finest grid; ValueError if sources differ."""
        sizes: list[int] = [self.layouts[n][0].size_px for n in self._layout_of_source]
        if len(set(sizes)) > 1:
            pairs = zip(self.sources, sizes, strict=True)
            raise ValueError(
                f"patches have {' and '.join(f'{size} px in {name}' for name, size in pairs)}; set "
                "the side that all views are to have, augment.view_size_px=64 for example"
            )
        return sizes[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of selected samples per source."""
        return tuple(np.bincount(self.source, minlength=len(self.manifests)).tolist())

    @property
    def normalisation(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean and standard deviation per source and selected band, in stored values."""
        return {
            manifest.source: {
                band: {"mean": manifest.statistics[band].mean, "std": manifest.statistics[band].std}
                for band in self.bands
            }
            for manifest in self.manifests
        }

    def read_into(
        self,
        samples: npt.NDArray[np.int64],
        buffers: Mapping[str, npt.NDArray[np.uint16]],
        places: npt.NDArray[np.int64],
    ) -> None:
        """Read the pixels of samples of one layout into rows ``places`` of a batch; thread-safe.

        With samples in ascending order, files are read sequentially. ``buffers`` holds (batch,
        bands, size_px, size_px) uint16 for each group of the layout.
        """
        self._batches.read_into(self.sample_id[samples], buffers, places)

    def index(self, field: str) -> npt.NDArray[Any]:
        """Return an index field of the selected samples (see ``preprocess.shards.format``)."""
        parts = [reader.index(field) for reader in self._readers]
        return np.concatenate(parts)[self.sample_id]

    def places(self) -> npt.NDArray[np.int64]:
        """Return the place number of each selected sample, in order of first samples.

        The same ground has the same number, whatever the date and the source. A sample without a
        named place is a place of its own.
        """
        names = self.index("place")
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        first_of = np.where(names == "", np.arange(len(names)), first[inverse])
        return np.unique(first_of, return_inverse=True)[1].astype(np.int64)

    def label_set(self, name: str) -> LabelSet:
        """Return a label set's kind and classes; ValueError if a source lacks it or differs."""
        first, *more = (manifest.layout.label_set(name) for manifest in self.manifests)
        if any(labels != first for labels in more):
            raise ValueError(f"label set {name!r} differs between {', '.join(self.sources)}")
        return first

    def labels(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the labels of the selected samples: (num_samples, classes), 255 if unknown."""
        self.label_set(name)
        parts = [reader.labels(name) for reader in self._readers]
        return np.concatenate(parts)[self.sample_id]

    def select(self, chosen: npt.NDArray[np.int64]) -> None:
        """Keep only these samples, given by their current numbers."""
        self.sample_id = self.sample_id[chosen]
        self.source = self.source[chosen]

    def missing_shards(self) -> list[Path]:
        """Return the shard files that no longer exist."""
        return [reader.path for reader in self._readers if not reader.path.exists()]

    def thin(self, fraction: float, seed: int, *, whole_places: bool = False) -> None:
        """Keep a fraction of the samples, or of the places; the same ones for the same seed."""
        unit = self.places() if whole_places else np.arange(self.num_samples, dtype=np.int64)
        num = int(unit.max(initial=-1)) + 1
        kept = np.random.default_rng(seed).permutation(num)[: round(fraction * num)]
        self.select(np.flatnonzero(np.isin(unit, kept)))


def open_dataset(
    shards: Sequence[str],
    bands: Sequence[str],
    splits: Sequence[str] | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    *,
    whole_places: bool = False,
) -> ShardDataset:
    """Open packed sources as one dataset.

    Args:
        shards: folders, each with a manifest.
        bands: canonical names of the bands to read.
        splits: splits to keep; None keeps all, an empty name selects patches without a split.
        fraction: share of these samples to keep.
        seed: determines the subset.
        whole_places: ``fraction`` applies to places, each with all its dates.

    Raises:
        ValueError: a folder is not packed, sources share a name, a band is missing, or no samples
            are left.
    """
    require(bool(shards), "shards is empty; give at least one packed folder, shards=[DIR]")
    folders = [Path(folder) for folder in shards]
    manifests = [read_manifest(folder) for folder in folders]
    names = Counter(manifest.source for manifest in manifests)
    for name, count in names.items():
        require(
            count == 1,
            f"source {name!r} is given {count} times; normalisation goes by source name, so pack "
            "one with another source.name",
        )
    dataset = ShardDataset(folders, manifests, bands)
    if splits is not None:
        dataset.select(np.flatnonzero(np.isin(dataset.index("split"), list(splits))))
    if fraction < 1:
        dataset.thin(fraction, seed, whole_places=whole_places)
    require(
        dataset.num_samples > 0,
        f"no patches left in {', '.join(dataset.sources)} with splits {list(splits or [])} "
        f"and fraction {fraction}; patches without a split need an empty name: ['']",
    )
    return dataset


def _needed_groups(manifest: Manifest, bands: Sequence[str]) -> tuple[GroupLayout, ...]:
    layout = manifest.layout
    missing = [band for band in bands if band not in layout.bands]
    require(
        not missing,
        f"band {', '.join(missing)} not in the shards of {manifest.source}; they hold "
        f"{', '.join(layout.bands)}; set data.bands",
    )
    return tuple(group for group in layout.groups if set(group.bands) & set(bands))
