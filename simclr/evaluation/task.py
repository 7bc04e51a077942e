"""A label set of packed shards as a classification task: targets, ids and sample locations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from preprocess.shards import UNKNOWN_LABEL, LabelSet
from simclr.config import require
from simclr.data.dataset import ShardDataset
from simclr.evaluation.config import BALANCED, kind_of
from simclr.evaluation.metrics import BoolArray, FloatArray, Indices

Texts = npt.NDArray[np.str_]

_M_PER_DEGREE = 111_195.0  # of latitude, on a sphere of radius 6371 km
_TOLERANCE = 1e-3  # fraction of a side: coordinates written as text lose their last digits
# The subset belongs to the task, not to a job: every seed sees the same patches.
_BALANCE_SEED = 0


@dataclass(frozen=True, slots=True)
class Footprints:
    """Ground covered by N square patches of about the same size."""

    epsg: npt.NDArray[np.int32]  # (N,) EPSG code of the coordinate system; 0 if none
    left: FloatArray  # (N,) upper left corner, in units of the coordinate system
    top: FloatArray  # (N,)
    side: float  # side of a patch, in the same units

    @property
    def known(self) -> bool:
        """Whether the position of every patch is known."""
        return bool(len(self.epsg)) and bool((self.epsg != 0).all()) and self.side > 0


def ground_blocks(ground: Footprints, side_m: float) -> Texts:
    """Return the name of the ``side_m`` wide grid square of each patch's upper left corner (N,)."""
    left, top = ground.left, ground.top
    if ground.side < 1:  # degrees, since no patch is narrower than a metre
        top = top * _M_PER_DEGREE
        # each row of blocks uses the width at its middle; a block at a pole spans all longitudes
        middle = (np.floor(top / side_m) + 0.5) * side_m / _M_PER_DEGREE
        east = (left + 180) % 360 - 180
        left = east * _M_PER_DEGREE * np.maximum(np.cos(np.radians(middle)), 1e-6)
    columns, rows = (np.floor(corner / side_m).astype(np.int64) for corner in (left, top))
    squares = zip(ground.epsg, columns, rows, strict=True)
    return np.array([f"{epsg}/{x}/{y}" for epsg, x, y in squares], dtype=np.str_)


def touching(ground: Footprints, queries: Indices, others: Indices) -> BoolArray:
    """Return for each query (n,) whether it overlaps or is adjacent to one of the others.

    Patches of different coordinate systems never count as touching, although zones meet.
    """
    reach = ground.side * (1 + _TOLERANCE)
    # place coordinate systems two reaches apart, so that patches of different ones are never near
    corners = np.stack([ground.left, ground.top, 2 * reach * ground.epsg], axis=1)
    tree = cKDTree(corners[others])
    nearest, _ = tree.query(corners[queries], p=np.inf, distance_upper_bound=reach)
    return np.asarray(nearest <= reach)


@dataclass(frozen=True, slots=True)
class Task:
    """Targets and locations of N labelled samples, in the order of their data set."""

    name: str  # label set, with "-balanced" appended if balanced
    kind: str  # single, binary or multi, see simclr.evaluation.config.SCORES
    classes: tuple[str, ...]  # C names; for a binary task only the positive class
    targets: BoolArray  # (N, C)
    ids: Texts  # (N,) source/id; an id alone is unique only within its source
    cells: Texts  # (N,) ground cell, empty if unknown
    blocks: Texts  # (N,) ground that splits keep together, empty if the source has none
    tiles: Texts  # (N,) MGRS tile, empty if unknown
    ground: Footprints
    given_splits: Texts  # (N,) official split stored in the shards, empty if none
    num_unlabelled: int  # samples of the shards without labels in this set
    num_surplus: int = 0  # labelled samples excluded to balance a binary task


def open_task(dataset: ShardDataset, name: str, *, balanced: bool = False) -> Task:
    """Read a label set, and reduce the dataset to its labelled samples, in place.

    ``balanced`` keeps equal numbers of both classes in every split of a binary task.

    Raises:
        ValueError: the label set does not exist, nothing is labelled, all labels are the same, a
            row is invalid for the kind of the label set, or a task to be balanced is not binary
            or has no split with both classes.
    """
    label_set, labels = dataset.label_set(name), dataset.labels(name)
    known = ~(labels == UNKNOWN_LABEL).all(axis=1)
    require(
        bool(known.any()),
        f"none of the {len(labels)} patches has a label in label set {name!r}; pack them with "
        "labels, or name another task",
    )
    _check_labels(label_set, labels[known])
    dataset.select(np.flatnonzero(known))
    classes, targets = label_set.classes, labels[known].astype(bool)
    kind = kind_of(label_set.kind, len(classes))
    if kind == "binary":  # the positive class, of two exclusive ones the second
        classes, targets = classes[-1:], targets[:, -1:]
    num_labelled = len(targets)
    if balanced:
        require(
            kind == "binary",
            f"label set {name!r} is not binary and cannot be balanced; leave balanced out",
        )
        kept = _balanced_rows(targets[:, 0], dataset.index("split"))
        require(
            len(kept) > 0, f"no split of label set {name!r} holds both answers; nothing is left"
        )
        dataset.select(kept)
        targets = targets[kept]
    sources = np.array(dataset.sources)[dataset.source]
    transform = dataset.index("transform").astype(np.float64).reshape(-1, 6)
    side = float(np.abs(transform[:, 0]).max(initial=0.0)) * dataset.size_px
    return Task(
        f"{name}{BALANCED}" if balanced else name,
        kind,
        classes,
        targets,
        ids=np.char.add(np.char.add(sources, "/"), dataset.index("id")),
        cells=dataset.index("place"),
        blocks=dataset.index("block"),
        tiles=dataset.index("tile"),
        ground=Footprints(dataset.index("epsg"), transform[:, 2], transform[:, 5], side),
        given_splits=dataset.index("split"),
        num_unlabelled=int((~known).sum()),
        num_surplus=num_labelled - len(targets),
    )


def _check_labels(label_set: LabelSet, labels: npt.NDArray[np.uint8]) -> None:
    require(
        bool(labels.max() <= 1),
        f"label set {label_set.name!r} holds {labels.max()}; a labelled patch has 0 or 1 for "
        "every class, an unlabelled one 255 for all",
    )
    strange = int((labels.sum(axis=1) != 1).sum())
    require(
        label_set.kind != "single" or strange == 0,
        f"label set {label_set.name!r} is of kind single, but {strange} patches have no class or "
        "several",
    )
    present = [name for name, one in zip(label_set.classes, labels[0], strict=True) if one]
    require(
        bool((labels != labels[0]).any()),
        f"all {len(labels)} labelled patches are {', '.join(present) or 'without a class'}; "
        f"label set {label_set.name!r} needs two different answers to be a task",
    )


def _balanced_rows(positive: BoolArray, splits: Texts) -> Indices:
    """Return the samples to keep, sorted: equally many of both classes per split, reproducibly."""
    random = np.random.default_rng(_BALANCE_SEED)
    kept = []
    for split in np.unique(splits):
        answers = [np.flatnonzero((splits == split) & (positive == one)) for one in (False, True)]
        fewer = min(map(len, answers))
        kept += [random.permutation(rows)[:fewer] for rows in answers]
    return np.sort(np.concatenate(kept))
