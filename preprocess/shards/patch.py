"""What a source gives to packing: references to patches, patches, and what was left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.shards.format import NODATA

Transform = tuple[float, float, float, float, float, float]
Labels = dict[str, tuple[str, ...]]
Fractions = dict[str, npt.NDArray[np.float32]]

NO_TRANSFORM: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class PatchError(ValueError):
    """An input that cannot become a patch; packing can go on without it.

    Attributes:
        file: the file or folder at fault, as the source named it.
        reason: what is wrong with it, in one clause.
    """

    def __init__(self, file: object, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PatchRef:
    """Where one patch is, and what is known of it before its files are opened.

    Attributes:
        id: unique within the source; references are packed in the order of their ids.
        path: file or folder, relative to the source's root.
        split: train, validation, test, or empty.
        labels: class names by label set, where the place of the files or a table tells them.
        block: ground that splits keep whole; empty without blocks.
    """

    id: str
    path: str  # relative, so that shards can be repaired from where the rasters have moved to
    split: str = ""
    labels: Labels = field(default_factory=dict)
    block: str = ""

    def to_json(self) -> str:
        """Return one line of JSON."""
        # not asdict, which copies all it meets: plans have half a million lines
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(plain, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> PatchRef:
        """Rebuild from ``to_json``."""
        data: dict[str, Any] = json.loads(line)
        labels = {name: tuple(classes) for name, classes in data.pop("labels").items()}
        return cls(**data, labels=labels)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Patches of one product that were left out for one reason: a choice, not an error.

    Attributes:
        product: file or folder of it, as in ``PatchRef.path``.
        reason: a phrase, the same for all that it applies to.
        places: their ground cells; empty if the product as a whole was dropped.
    """

    product: str
    reason: str
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch as it is stored.

    Attributes:
        id: that of its reference.
        pixels: by band group, (bands, size_px, size_px) uint16 stored values.
        labels: class names by label set; a set that is absent has no answer for this patch.
        fractions: shares of the ground by fraction set, (classes,) from 0 to 1; absent: unknown.
        path: file or folder it was read from, relative to the root; packing fills it in.
        product: ESA product or scene, if known.
        tile: MGRS tile, if known.
        place: ground cell, the same on every date, if known.
        block: ground that splits keep whole, if the source is split by blocks.
        acquired: ISO 8601, UTC, if known.
        split: train, validation, test, or empty.
        baseline: processing baseline such as ``02.06``, if known.
        offset: added to the digital numbers of the files.
        offset_authority: who said so: xml, name, user, source.
        epsg: of the coordinate system; 0 without one, or without a code for it.
        transform: affine a b c d e f of the finest band group, in units of the CRS.
        crs_wkt: well-known text of a coordinate system that has no EPSG code.
    """

    id: str
    pixels: dict[str, npt.NDArray[np.uint16]]
    labels: Labels = field(default_factory=dict)
    fractions: Fractions = field(default_factory=dict)
    path: str = ""
    product: str = ""
    tile: str = ""
    place: str = ""
    block: str = ""
    acquired: str = ""
    split: str = ""
    baseline: str = ""
    offset: int = 0
    offset_authority: str = "source"
    epsg: int = 0
    transform: Transform = NO_TRANSFORM
    crs_wkt: str = ""

    @property
    def valid_fraction(self) -> float:
        """Share of the finest group's pixels that hold data in every band."""
        # the finest group alone: a hole in a coarse one is wider than the hole in the data
        finest = next(iter(self.pixels.values()))
        return float((finest != NODATA).all(axis=0).mean())
