"""A corpus and frozen networks come in; one feature row for each sample and network goes out."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from preprocess.shards.atomic import atomic_path
from simclr.collectives import from_main_rank
from simclr.evaluate.ranking import Indices
from simclr.evaluate.ranks import meet
from simclr.world import World

Features = npt.NDArray[np.float32]
Embedder = Callable[[Tensor], Tensor]  # (B, C, H, W) float32 -> (B, D)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Features kept in a folder, one file for each network.

    Attributes:
        folder: where the files lie; each network has one, so that disk use stays bounded.
        origin: everything the features depend on but the network itself: shards, samples,
            bands, view size, versions.
        weights: by name, checksum of the weights that a network was loaded from; none for those
            that a seed makes.
    """

    folder: Path
    origin: Mapping[str, object]
    weights: Mapping[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the file of a network."""
        return self.folder / (re.sub(r"[^\w.()-]", "-", name) + ".npz")

    def read(self, name: str, num_samples: int) -> Features | None:
        """Return stored features (num_samples, D), or None if there are none of this origin.

        The stored key and zip's checksums hold the file to its origin. A damaged file is named
        in the log and treated as absent, since features can be taken again.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            # opened here: np.load leaves a damaged file open
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                key, features = str(stored["key"]), stored["features"]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            _log.warning("%s is damaged (%s); its features are taken again", path, error)
            return None
        return features if key == self._key(name) and len(features) == num_samples else None

    def write(self, name: str, features: Features) -> None:
        """Store features (N, D) float32 atomically."""
        with atomic_path(self.path(name)) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(self._key(name)), features=features)

    def stored(self, name: str, num_samples: int) -> Features:
        """Return stored features (num_samples, D).

        Raises:
            ValueError: there are none, or not of this origin.
        """
        features = self.read(name, num_samples)
        if features is None:
            raise ValueError(f"{self.path(name)} has been removed or changed; evaluate again")
        return features

    def write_part(self, name: str, rank: int, features: Features) -> None:
        """Store the rows that one rank took, in any order of ranks."""
        with atomic_path(self._part(name, rank)) as temporary, temporary.open("wb") as file:
            np.save(file, features)

    def join(self, name: str, num_parts: int) -> None:
        """Make one file of the parts of all ranks, in the order of ranks."""
        parts = [self._part(name, rank) for rank in range(num_parts)]
        self.write(name, np.concatenate([np.load(part) for part in parts]))
        for part in parts:
            part.unlink()

    def _part(self, name: str, rank: int) -> Path:
        return self.path(name).with_suffix(f".part-{rank:04d}.npy")

    def _key(self, name: str) -> str:
        own = {"network": name, "weights": self.weights.get(name, "")}
        text = json.dumps({**self.origin, **own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def store_features(
    cache: FeatureCache,
    embedders: Mapping[str, Embedder],
    views: Callable[[Indices], Iterable[Tensor]],
    num_samples: int,
    world: World,
    *,
    progress: bool,
) -> None:
    """Leave the features of every network in the cache; every rank takes a share of the samples.

    Shares are stretches without overlap or padding, joined in order: the stored rows are those
    that one rank alone would have stored.

    Args:
        cache: where features of earlier evaluations lie, on storage that all ranks see.
        embedders: networks or functions by name.
        views: starts a pass over the samples of the given numbers, see ``extract_features``.
        num_samples: N.
        world: all ranks must call this together.
        progress: draw a bar while features are taken.
    """
    # one rank looks, since two might see different states of a network file system
    lacking = [name for name in embedders if cache.read(name, num_samples) is None]
    names = json.loads(from_main_rank(json.dumps(lacking)))
    if not names:
        return
    own = np.array_split(np.arange(num_samples), world.size)[world.rank]
    missing = {name: embedders[name] for name in names}
    taken = extract_features(missing, views(own), len(own), progress=progress) if len(own) else {}
    for name, features in taken.items():
        cache.write_part(name, world.rank, features)
    meet(world)
    if world.is_main:
        for name in names:
            cache.join(name, min(world.size, num_samples))
    meet(world)


def extract_features(
    embedders: Mapping[str, Embedder],
    views: Iterable[Tensor],
    num_samples: int,
    *,
    progress: bool,
) -> dict[str, Features]:
    """Read every view once and embed it with every network.

    A module must be in evaluation mode: BatchNorm would otherwise mix the samples of a batch, and
    a feature would depend on its neighbours.

    Args:
        embedders: networks or functions by name.
        views: batches (B, C, H, W) float32, normalised, in the order of the samples.
        num_samples: N, for the bar.
        progress: draw a bar; it is drawn on a terminal only.

    Returns:
        (N, D) float32 by name.

    Raises:
        ValueError: a module is in training mode, or a feature is not finite.
    """
    for name, embedder in embedders.items():
        if isinstance(embedder, nn.Module) and any(part.training for part in embedder.modules()):
            raise ValueError(f"{name} is in training mode; call its eval() before taking features")
    rows: dict[str, list[Features]] = {name: [] for name in embedders}
    # disable=None asks tqdm to be silent where stderr is no terminal
    hidden = None if progress else True
    with (
        torch.inference_mode(),
        tqdm(total=num_samples, desc="features", unit="patch", disable=hidden) as bar,
    ):
        for batch in views:
            for name, embedder in embedders.items():
                rows[name].append(embedder(batch).float().cpu().numpy())
            bar.update(len(batch))
    return {name: _joined(name, parts) for name, parts in rows.items()}


def _joined(name: str, parts: list[Features]) -> Features:
    features = np.concatenate(parts)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} of {len(features)} features of {name} are not finite; the network "
            "diverged or its input is damaged"
        )
    return features
