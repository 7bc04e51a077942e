"""A label set of packed shards as a classification task: targets, ids and the ground of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.shards import UNKNOWN_LABEL, LabelSet
from simclr.data.dataset import ShardDataset
from simclr.evaluation.metrics import BoolArray, FloatArray, Indices

_M_PER_DEGREE = 111_195.0  # of latitude, on the sphere of 6371 km
_TOLERANCE = 1e-3  # of a side: coordinates written as text lose their last digits


@dataclass(frozen=True, slots=True)
class Footprints:
    """Ground covered by N square patches, all of about one size.

    Attributes:
        epsg: (N,) coordinate system; 0 without one.
        left, top: (N,) upper left corner, in its units.
        side: of a patch, in the same units.
    """

    epsg: npt.NDArray[np.int32]
    left: FloatArray
    top: FloatArray
    side: float

    @property
    def known(self) -> bool:
        """Whether the position of every patch is known."""
        return bool(len(self.epsg)) and bool((self.epsg != 0).all()) and self.side > 0


def footprints(dataset: ShardDataset) -> Footprints:
    """Read where the patches of a dataset lie."""
    transform = dataset.index("transform").astype(np.float64).reshape(-1, 6)
    side = float(np.abs(transform[:, 0]).max(initial=0.0)) * dataset.groups[0].size_px
    return Footprints(dataset.index("epsg"), transform[:, 2], transform[:, 5], side)


def ground_blocks(ground: Footprints, side_m: float) -> npt.NDArray[np.str_]:
    """Return the name of the square of ground, ``side_m`` wide, in which each patch begins."""
    left, top = ground.left, ground.top
    if ground.side < 1:  # no patch is narrower than a metre: these are degrees
        top = top * _M_PER_DEGREE
        # one width a row of blocks, that of its middle; a block at a pole spans all longitudes
        middle = (np.floor(top / side_m) + 0.5) * side_m / _M_PER_DEGREE
        east = (left + 180) % 360 - 180
        left = east * _M_PER_DEGREE * np.maximum(np.cos(np.radians(middle)), 1e-6)
    columns = np.floor(left / side_m).astype(np.int64)
    rows = np.floor(top / side_m).astype(np.int64)
    return np.array(
        [f"{epsg}/{x}/{y}" for epsg, x, y in zip(ground.epsg, columns, rows, strict=True)],
        dtype=np.str_,
    )


def touching(ground: Footprints, queries: Indices, others: Indices) -> BoolArray:
    """Return for each query (n,) whether it shares ground or an edge with one of the others.

    Patches of different coordinate systems never touch here, although zones meet on the ground.
    """
    cells = np.stack(
        [
            ground.epsg.astype(np.int64),
            np.floor(ground.left / ground.side).astype(np.int64),
            np.floor(ground.top / ground.side).astype(np.int64),
        ],
        axis=1,
    )
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    order = others[np.argsort(cell[others], kind="stable")]
    found = np.zeros(len(queries), bool)
    # patches that touch are at most one cell apart
    for step in ((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)):
        start, count = _equal_rows(cells[order], cells[queries] + np.array([0, *step]))
        for k in range(int(count.max(initial=0))):
            open_ = np.flatnonzero((count > k) & ~found)
            found[open_] |= _meet(ground, queries[open_], order[start[open_] + k])
    return found


def _equal_rows(held: Indices, sought: Indices) -> tuple[Indices, Indices]:
    """Return first index and number of the rows of ``held`` (sorted) that equal each sought row."""
    names = np.unique(np.concatenate([held, sought]), axis=0, return_inverse=True)[1].ravel()
    own, other = names[: len(held)], names[len(held) :]
    start = np.searchsorted(own, other, side="left")
    return start, np.searchsorted(own, other, side="right") - start


def _meet(ground: Footprints, first: Indices, second: Indices) -> BoolArray:
    reach = ground.side * (1 + _TOLERANCE)
    across = np.abs(ground.left[first] - ground.left[second]) <= reach
    along = np.abs(ground.top[first] - ground.top[second]) <= reach
    return np.asarray(across & along)


Texts = npt.NDArray[np.str_]

# The subset is part of the task, not of a job: every seed sees the same patches.
_BALANCE_SEED = 0


@dataclass(frozen=True, slots=True)
class Task:
    """The targets of N labelled samples and where they lie, in the order of their data set.

    Attributes:
        name: of the label set.
        kind: ``single``, ``binary`` or ``multi``, see ``simclr.evaluation.config.SCORES``.
        classes: C class names; of a binary task its second class alone, the yes.
        targets: (N, C).
        ids: (N,) unique within a source, here preceded by its name.
        cells: (N,) ground cell, empty where unknown.
        blocks: (N,) ground that splits keep whole, empty where the source has none.
        tiles: (N,) MGRS tile, empty where unknown.
        ground: where the patches lie.
        given_splits: (N,) split that the shards carry, empty where none.
        num_unlabelled: samples of the shards without labels in this set.
        num_surplus: labelled samples left out to balance a binary task.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    targets: BoolArray
    ids: Texts
    cells: Texts
    blocks: Texts
    tiles: Texts
    ground: Footprints
    given_splits: Texts
    num_unlabelled: int
    num_surplus: int = 0


def open_task(dataset: ShardDataset, name: str, *, balanced: bool = False) -> Task:
    """Read a label set, and leave only its labelled samples in the dataset.

    Args:
        dataset: loses every sample that is no part of the task.
        name: of the label set.
        balanced: of a binary task: keep as many of both classes in every split.

    Raises:
        ValueError: there is no such label set, nothing is labelled, all labels are the same, a
            row is not what the kind of the label set allows, or a task to be balanced is not
            binary.
    """
    label_set, labels = dataset.label_set(name), dataset.labels(name)
    known = ~(labels == UNKNOWN_LABEL).all(axis=1)
    if not known.any():
        raise ValueError(
            f"none of the {len(labels)} patches has a label in label set {name!r}; pack them "
            "with labels, or name another task"
        )
    _check_labels(label_set, labels[known])
    dataset.select(np.flatnonzero(known))
    kind, classes, targets = _kind_of(label_set, labels[known].astype(bool))
    num_surplus = 0
    if balanced:
        kept = _balanced_rows(name, kind, targets, dataset.index("split"))
        num_surplus = len(targets) - len(kept)
        dataset.select(kept)
        targets = targets[kept]
    sources = np.array(dataset.sources)[dataset.source]
    return Task(
        f"{name}-balanced" if balanced else name,
        kind,
        classes,
        targets,
        ids=np.char.add(np.char.add(sources, "/"), dataset.index("id")),
        cells=dataset.index("place"),
        blocks=dataset.index("block"),
        tiles=dataset.index("tile"),
        ground=footprints(dataset),
        given_splits=dataset.index("split"),
        num_unlabelled=int((~known).sum()),
        num_surplus=num_surplus,
    )


def _check_labels(label_set: LabelSet, labels: npt.NDArray[np.uint8]) -> None:
    if labels.max() > 1:
        raise ValueError(
            f"label set {label_set.name!r} holds {labels.max()}; a labelled patch has 0 or 1 for "
            "every class, an unlabelled one 255 for all"
        )
    if label_set.kind == "single" and (labels.sum(axis=1) != 1).any():
        raise ValueError(
            f"label set {label_set.name!r} is of kind single, but "
            f"{int((labels.sum(axis=1) != 1).sum())} patches have no class or several"
        )
    if (labels == labels[0]).all():
        present = [c for c, one in zip(label_set.classes, labels[0], strict=True) if one]
        raise ValueError(
            f"all {len(labels)} labelled patches are {', '.join(present) or 'without a class'}; "
            f"label set {label_set.name!r} needs two different answers to be a task"
        )


def _kind_of(label_set: LabelSet, targets: BoolArray) -> tuple[str, tuple[str, ...], BoolArray]:
    """Return kind, classes and targets; two exclusive classes become one yes or no."""
    if label_set.kind == "single" and len(label_set.classes) == 2:
        return "binary", label_set.classes[1:], targets[:, 1:]
    if label_set.kind == "multi" and len(label_set.classes) == 1:
        return "binary", label_set.classes, targets
    return label_set.kind, label_set.classes, targets


def _balanced_rows(name: str, kind: str, targets: BoolArray, splits: Texts) -> Indices:
    """Return the samples to keep, sorted: in each split as many yes as no, the same every time."""
    if kind != "binary":
        raise ValueError(
            f"label set {name!r} is not binary and cannot be balanced; leave balanced out"
        )
    random = np.random.default_rng(_BALANCE_SEED)
    kept = []
    for split in np.unique(splits):
        inside = splits == split
        answers = [np.flatnonzero(inside & (targets[:, 0] == answer)) for answer in (False, True)]
        fewer = min(map(len, answers))
        kept += [random.permutation(rows)[:fewer] for rows in answers]
    chosen = np.sort(np.concatenate(kept))
    if len(chosen) == 0:
        raise ValueError(f"no split of label set {name!r} holds both answers; nothing is left")
    return chosen
