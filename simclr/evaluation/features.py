"""Features of frozen encoders and untrained controls, cached per network in the run folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from preprocess.progress import progress_of
from preprocess.shards.atomic_io import atomic_path
from simclr.augment.views import ViewMaker
from simclr.config import ModelConfig, require
from simclr.data.dataset import ShardDataset
from simclr.data.loader import Loader
from simclr.data.sampler import permutation
from simclr.distributed import DistributedContext, barrier, from_main_rank
from simclr.evaluation.metrics import BoolArray, Indices
from simclr.model.simclr import build_encoder
from simclr.philox import Philox

Features = npt.NDArray[np.float32]
Embedder = Callable[[Tensor], Tensor]  # (B, C, H, W) float32 -> (B, D)

NUM_SYMMETRIES = 8
MAX_POINTS = 1500  # in a map; more would overlap
NUM_FILTERS = 256
PERCENTILES = (0.1, 0.5, 0.9)
_PERCENTILE_STEP_PX = 4  # a sixteenth of the pixels suffices, and is sorted much faster

_log = logging.getLogger("simclr")


def random_encoder(
    config: ModelConfig, num_bands: int, seed: int, device: torch.device
) -> nn.Module:
    """Build the run's architecture with random weights, in evaluation mode.

    Its BatchNorm has its initial statistics, so it passes activations through unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(config, num_bands)
    return encoder.to(device).eval().requires_grad_(False)


class RandomConvolutions(nn.Module):
    """One layer of Gaussian 3x3 filters, stride 2, both signs rectified and averaged over the view.

    Maps views (B, C, H, W) to (B, 512). After Rolf et al. 2021 (MOSAIKS,
    doi 10.1038/s41467-021-24638-z), but with random filters instead of ones cut from patches.
    """

    def __init__(self, num_bands: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.filters = nn.Conv2d(num_bands, NUM_FILTERS, kernel_size=3, stride=2)
        scale = 1 / math.sqrt(self.filters.weight[0].numel())
        nn.init.normal_(self.filters.weight, std=scale, generator=generator)
        nn.init.uniform_(self.filters.get_parameter("bias"), -1, 1, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, views: Tensor) -> Tensor:
        """Return (B, 512) features."""
        response = self.filters(views)
        return torch.cat([response.relu(), (-response).relu()], dim=1).mean(dim=(2, 3))


def image_statistics(views: Tensor) -> Tensor:
    """Return mean, standard deviation and 10th, 50th, 90th percentile of every band: (B, 5 C)."""
    pixels = views.flatten(2)
    sparse = views[:, :, ::_PERCENTILE_STEP_PX, ::_PERCENTILE_STEP_PX].flatten(2)
    ordered = sparse.sort(dim=2).values
    ranks = [round(share * (ordered.shape[2] - 1)) for share in PERCENTILES]
    moments = torch.stack([pixels.mean(dim=2), pixels.std(dim=2, correction=0)], dim=2)
    return torch.cat([moments, ordered[:, :, ranks]], dim=2).flatten(1)


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Features in a folder shared by all ranks: one file per network, so that disk use is bounded.

    Attributes:
        origin: everything that the features depend on except the network itself: shards, samples,
            bands, view size, versions.
        weights: checksum of the loaded weights by network name; empty for networks that a seed
            generates.
    """

    folder: Path
    origin: Mapping[str, object]
    weights: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return the file of a network; no two names, which users choose, share one."""
        safe = re.sub(r"[^\w.()-]", "-", name)[-80:]
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return self.folder / f"{name if safe == name else f'{safe}-{digest}'}.npz"

    def read(self, name: str, num_samples: int) -> Features | None:
        """Return stored features (num_samples, D), or None if there are none of this origin.

        The stored key and zip's checksums verify the file. A damaged file is logged and treated
        as absent, since features can be extracted again.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            # open it here: np.load leaves a damaged file open
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                key, features = str(stored["key"]), stored["features"]
        # a flipped bit may also ask for a password or another compression, or point before the file
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, RuntimeError, OSError) as error:
            _log.warning("%s is damaged (%s); its features are extracted again", path, error)
            return None
        return features if key == self.key(name) and len(features) == num_samples else None

    def stored(self, name: str, num_samples: int) -> Features:
        """Return stored features (num_samples, D).

        Raises:
            ValueError: there are none of this origin.
        """
        features = self.read(name, num_samples)
        if features is None:
            raise ValueError(f"{self.path(name)} has been removed or changed; evaluate again")
        return features

    def write(self, name: str, features: Features) -> None:
        """Store features (N, D) float32 atomically."""
        with atomic_path(self.path(name)) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(self.key(name)), features=features)

    def key(self, name: str) -> str:
        """Return the checksum of everything that the features of a network depend on."""
        own = {"network": name, "weights": self.weights.get(name, "")}
        text = json.dumps({**self.origin, **own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def store_features(
    cache: FeatureCache,
    embedders: Mapping[str, Embedder],
    views: Callable[[Indices], Iterable[Tensor]],
    num_samples: int,
    context: DistributedContext,
    *,
    progress: bool,
) -> None:
    """Extract the features missing from the cache and store them; all ranks must call this.

    Each rank processes a contiguous share of the samples, without overlap or padding, joined in
    order: the stored rows equal those of a single rank, up to rounding in batches of another size.
    ``views`` starts a pass over the samples with the given numbers.
    """
    # the main rank decides: ranks might see different states of a network file system
    missing_here = [name for name in embedders if cache.read(name, num_samples) is None]
    names = json.loads(from_main_rank(json.dumps(missing_here)))
    if not names:
        return
    parts = {
        name: [
            # the key: another evaluation of the run may extract other features meanwhile
            cache.path(name).with_suffix(f".part-{cache.key(name)[:16]}-{rank:04d}.npy")
            for rank in range(min(context.size, num_samples))
        ]
        for name in names
    }
    own = np.array_split(np.arange(num_samples), context.size)[context.rank]
    if len(own):
        missing = {name: embedders[name] for name in names}
        rows = extract_features(missing, views(own), len(own), progress=progress)
        for name, features in rows.items():
            with atomic_path(parts[name][context.rank]) as path, path.open("wb") as file:
                np.save(file, features)
    barrier(context)
    if context.is_main:
        for name, paths in parts.items():
            cache.write(name, np.concatenate([np.load(path) for path in paths]))
            for path in paths:
                path.unlink()
    barrier(context)


def extract_features(
    embedders: Mapping[str, Embedder], views: Iterable[Tensor], num_samples: int, *, progress: bool
) -> dict[str, Features]:
    """Embed batches of views (B, C, H, W) with every network in one pass: (N, D) float32 by name.

    Modules must be in evaluation mode: BatchNorm would otherwise mix the samples of a batch, and
    a feature would depend on the rest of its batch.

    Raises:
        ValueError: a module is in training mode, or a feature is not finite.
    """
    for name, embedder in embedders.items():
        require(
            not isinstance(embedder, nn.Module)
            or not any(part.training for part in embedder.modules()),
            f"{name} is in training mode; call its eval() before extracting features",
        )
    rows: dict[str, list[Features]] = {name: [] for name in embedders}
    with torch.inference_mode(), progress_of(num_samples, "features", progress) as advance:
        for batch in views:
            for name, embedder in embedders.items():
                rows[name].append(embedder(batch).float().cpu().numpy())
            advance(len(batch))
    joined = {name: np.concatenate(parts) for name, parts in rows.items()}
    for name, features in joined.items():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        require(
            bad == 0,
            f"{bad} of {len(features)} features of {name} are not finite; the network diverged or "
            "its input is damaged",
        )
    return joined


@dataclass(frozen=True, slots=True)
class LabelledPatches:
    """Labelled samples as network input: normalised, on one grid."""

    dataset: ShardDataset
    maker: ViewMaker  # without augmentation
    rows: Indices  # (n,) numbers of the samples in the dataset
    targets: BoolArray  # (N, C) of all samples of the dataset
    kind: str  # kind of the task: single, binary or multi
    device: torch.device  # device of the views

    def only(self, rows: Indices) -> LabelledPatches:
        """Return a copy restricted to the given samples of the dataset."""
        return replace(self, rows=rows)

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the views of every sample once, in order: (B, C, S, S) float32."""
        count = -(-len(self.rows) // batch_size)
        for batch in self._loader(np.array_split(self.rows, max(count, 1))):
            yield self.maker.eval_views(batch)

    def shuffled(
        self, batch_size: int, num_steps: int, seed: int
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield epoch, sample ids (B,), views (B, C, S, S) and targets (B, C) for each step.

        An epoch yields every sample once. No batch is smaller than ``batch_size`` unless there are
        fewer samples: BatchNorm could not compute statistics of a last batch of one.
        """
        per_epoch = steps_per_epoch(len(self.rows), batch_size)
        plan: list[Indices] = []
        for epoch in range(-(-num_steps // per_epoch)):
            order = self.rows[permutation(len(self.rows), seed, epoch)]
            plan += np.array_split(order, per_epoch)
        for step, batch in enumerate(self._loader(plan[:num_steps])):
            targets = torch.from_numpy(self.targets[plan[step]]).to(self.device)
            yield step // per_epoch, batch.sample_id, self.maker.eval_views(batch), targets

    def _loader(self, plan: list[Indices]) -> Loader:
        size, of_step = max(map(len, plan)), plan.__getitem__
        return Loader(
            self.dataset, of_step, num_batches=len(plan), batch_size=size, device=self.device
        )


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of batches of at least ``batch_size`` samples in an epoch."""
    return max(1, num_samples // batch_size)


def apply_symmetry(views: Tensor, symmetry: Tensor) -> Tensor:
    """Return views (B, C, S, S), each transformed by its own symmetry (B,) in [0, 8)."""
    transpose, rows, columns = (
        (symmetry // step % 2).bool()[:, None, None, None] for step in (4, 2, 1)
    )
    views = torch.where(transpose, views.transpose(2, 3), views)
    views = torch.where(rows, views.flip(2), views)
    return torch.where(columns, views.flip(3), views)


def draw_symmetries(generator: Philox, epoch: int, sample_id: Tensor) -> Tensor:
    """Return one of the 8 symmetries for each sample (B,), determined by the arguments alone."""
    drawn = generator.uniforms(epoch, sample_id, torch.zeros_like(sample_id), 1)[:, 0]
    return (drawn * NUM_SYMMETRIES).long()


def averaged_over_symmetries(network: Embedder) -> Embedder:
    """Return a network whose output (B, D) is the mean over the 8 symmetries of a view."""

    def embed(views: Tensor) -> Tensor:
        """Return the mean over all turns and flips."""
        total: Tensor = sum(  # type: ignore[assignment]
            network(apply_symmetry(views, torch.full((len(views),), k, device=views.device)))
            for k in range(NUM_SYMMETRIES)
        )
        return total / NUM_SYMMETRIES

    return embed


def feature_map(features: Features, targets: BoolArray, test: Indices) -> dict[str, Any]:
    """Return test samples (n,) on the first two principal axes of their standardised features.

    ``features`` are those of all samples (N, D). ``classes`` holds the rarest class of each point,
    C if it has none. At most ``MAX_POINTS`` samples, drawn at random, are returned.
    """
    if len(test) > MAX_POINTS:
        test = np.sort(test[np.random.default_rng(0).permutation(len(test))[:MAX_POINTS]])
    rows = torch.from_numpy(features[test]).double()
    spread = rows.std(dim=0, correction=0)
    rows = (rows - rows.mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
    left, size, _ = torch.linalg.svd(rows, full_matrices=False)
    left = left[:, :2]
    # the sign of an axis is arbitrary: make its farthest sample positive
    farthest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    points = left * farthest.sign() * size[:2]
    share = size[:2].square() / size.square().sum().clamp_min(torch.finfo(size.dtype).tiny)
    counts = targets.sum(axis=0)
    rarest = np.where(targets[test], counts, len(targets) + 1).argmin(axis=1)
    return {
        "points": points.numpy().round(3).tolist(),
        "classes": np.where(targets[test].any(axis=1), rarest, targets.shape[1]).tolist(),
        "variance": share.tolist(),
    }
