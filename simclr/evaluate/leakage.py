"""Where patches lie comes in; which of them touch which goes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simclr.corpus import Corpus
from simclr.evaluate.ranking import BoolArray, FloatArray, Indices

_TOLERANCE = 1e-3  # of a side: coordinates written as text lose their last digits


@dataclass(frozen=True, slots=True)
class Footprints:
    """The ground of N square patches, all of about one size.

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
        """Whether every patch has a place on the ground."""
        return bool(len(self.epsg)) and bool((self.epsg != 0).all()) and self.side > 0


def footprints(corpus: Corpus) -> Footprints:
    """Read where the patches of a corpus lie."""
    transform = corpus.index("transform").astype(np.float64).reshape(-1, 6)
    side = float(np.abs(transform[:, 0]).max(initial=0.0)) * corpus.groups[0].size_px
    return Footprints(corpus.index("epsg"), transform[:, 2], transform[:, 5], side)


def ground_blocks(ground: Footprints, side_m: float) -> npt.NDArray[np.str_]:
    """Return the name of the square of ground, ``side_m`` wide, in which each patch begins."""
    columns = np.floor(ground.left / side_m).astype(np.int64)
    rows = np.floor(ground.top / side_m).astype(np.int64)
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
        start, count = _members(cells[order], cells[queries] + np.array([0, *step]))
        for k in range(int(count.max(initial=0))):
            asked = np.flatnonzero((count > k) & ~found)
            found[asked] |= _meet(ground, queries[asked], order[start[asked] + k])
    return found


def _members(held: Indices, sought: Indices) -> tuple[Indices, Indices]:
    """Return first place and number of the rows of ``held`` (sorted) that equal each sought row."""
    names = np.unique(np.concatenate([held, sought]), axis=0, return_inverse=True)[1].ravel()
    own, other = names[: len(held)], names[len(held) :]
    start = np.searchsorted(own, other, side="left")
    return start, np.searchsorted(own, other, side="right") - start


def _meet(ground: Footprints, first: Indices, second: Indices) -> BoolArray:
    reach = ground.side * (1 + _TOLERANCE)
    across = np.abs(ground.left[first] - ground.left[second]) <= reach
    along = np.abs(ground.top[first] - ground.top[second]) <= reach
    return np.asarray(across & along)
