"""One product as all sources of products see it: its files and facts come in, patches go out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, canonical_names, native_groups
from preprocess.grid import (
    PATCH_SIDE_M,
    TileGrid,
    is_corner_of_tile,
    place_name,
    window_of,
)
from preprocess.harmonise import Offset, contradiction, harmonise
from preprocess.patch import Fractions, Patch, PatchError, PatchRef, Transform
from preprocess.raster import (
    Classes,
    Raster,
    read_classes,
    read_coarse,
    read_grid,
    read_window,
)
from preprocess.shards.layout import NODATA, FractionSet, GroupLayout

# Classes 0 to 11 of the scene classification map (Sentinel-2 L2A product definition).
SCL = FractionSet(
    "scl",
    (
        "no data", "saturated or defective", "dark area", "cloud shadow", "vegetation",
        "not vegetated", "water", "unclassified", "cloud, medium probability",
        "cloud, high probability", "thin cirrus", "snow or ice",
    ),
)  # fmt: skip
_TILE_M = 109_800
_COARSE_PX = 1830  # 60 m pixels over a tile
_EDGE_PX = 4  # how far the wavelets of JPEG 2000 carry nodata into its coarse levels

Numbers = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Scene:
    """One product: a tile at a time.

    Attributes:
        path: folder or file, relative to the root.
        product: its name.
        tile: MGRS tile.
        acquired: ISO 8601, UTC; a day if no more is known.
        baseline: processing baseline, if known.
        bands: raster by band, at the ground resolution that is to be read.
        outline: a raster of the coarsest resolution there is: its zeros are nodata.
        dark: rasters in which dark pixels are looked for, by band, as coarse as there are.
        scl: the scene classification map, if there is one.
        scl_m: its ground resolution in metres.
        claims: what each authority says of the offset, strongest first.
        cloud_percent: of the whole product, if known.
    """

    path: str
    product: str
    tile: str
    acquired: str
    baseline: str
    bands: dict[str, Path]
    outline: Path | None
    dark: dict[str, Path]
    scl: Path | None = None
    scl_m: int = 20
    claims: dict[str, int | None] = field(default_factory=dict)
    cloud_percent: float | None = None

    @property
    def day(self) -> str:
        """Date of acquisition, ``2019-07-01``."""
        return self.acquired[:10]


def product_groups(
    bands: list[str], factor: int = 1, resolution_m: int = 0
) -> tuple[GroupLayout, ...]:
    """Return band groups of 1.2 km patches of L2A products.

    Args:
        bands: wanted bands; none means all there are.
        factor: how much coarser than native the files are.
        resolution_m: read all bands at this ground resolution; 0 reads native ones.

    Raises:
        ValueError: no L2A product has a band, or not at that resolution.
    """
    # ESA delivers B08 at 10 m only; B8A takes its place at 20 and 60 m
    held = [name for name in L2A_BANDS if not (resolution_m and name == "B08")]
    wanted = canonical_names(bands or held)
    foreign = [name for name in wanted if name not in held]
    if foreign:
        raise ValueError(
            f"source.bands names {foreign[0]}, which these products do not hold; they hold "
            f"{', '.join(held)}"
        )
    native = {f"b{resolution_m}": wanted} if resolution_m else native_groups(wanted)
    groups = []
    for name, members in native.items():
        size_m = int(name[1:]) * factor
        groups.append(
            GroupLayout(f"b{size_m}", tuple(members), PATCH_SIDE_M // size_m, float(size_m))
        )
    return tuple(groups)


def refuse_incomplete(scene: Scene, groups: tuple[GroupLayout, ...]) -> None:
    """Ask for a raster of every band.

    Raises:
        ValueError: one is not among the files of the product.
    """
    for group in groups:
        for band in group.bands:
            if band not in scene.bands:
                raise ValueError(
                    f"{scene.path} holds no {band} at {group.ground_resolution_m:g} m; complete "
                    "the product, remove it, or name the bands to pack: source.bands=[...]"
                )


def tile_grid(scene: Scene, groups: tuple[GroupLayout, ...]) -> TileGrid:
    """Return the squares of a product's tile, from the corner of its own first band.

    Raises:
        PatchError: that file cannot be opened, or is not a whole tile at the resolution expected.
    """
    group = groups[0]
    path = scene.bands[group.bands[0]]
    # from pixels, not from the name: squares must lie where the file's own grid has them
    found = read_grid(path)
    size_px = _TILE_M / group.ground_resolution_m
    a, b, x, d, e, y = found.transform
    square = (a, b, d, e) == (group.ground_resolution_m, 0, 0, -group.ground_resolution_m)
    if not square or (found.width, found.height) != (size_px, size_px):
        raise PatchError(
            path,
            f"has {found.width} x {found.height} pixels of {a:g} m, a tile has {size_px:g} of "
            f"{group.ground_resolution_m:g} m",
        )
    if not is_corner_of_tile(x, y):
        raise PatchError(path, f"begins at {x:.0f}, {y:.0f}, which is no corner of an MGRS tile")
    return TileGrid(scene.tile, found.epsg, x, y)


def doubt(scene: Scene, offset: Offset) -> str:
    """Say how the darkest pixels of a product contradict its offset; empty if they do not."""
    classes = read_classes(scene.scl) if scene.scl else None
    # Every third pixel of 20 m is the middle of a 60 m one. An overview would not do: JPEG 2000
    # averages the numbers of classes, and cloud next to shadow becomes water.
    thinned = None if classes is None else classes[1::3, 1::3]
    size_px = _COARSE_PX if thinned is None else thinned.shape[0]
    pixels = {band: without_edges(read_coarse(path, size_px)) for band, path in scene.dark.items()}
    found = contradiction(offset.value, pixels, thinned)
    return found and (
        f"{scene.product}: the offset is {offset.value} by {offset.authority}, but {found}"
    )


def without_edges(pixels: Numbers) -> Numbers:
    """Return digital numbers with what lies next to nodata set to nodata too.

    The coarse levels of JPEG 2000 are averages: along an edge of nodata they are darker than any
    ground, which would speak against an offset.
    """
    near = pixels == NODATA
    for _ in range(_EDGE_PX):
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    return np.where(near, np.uint16(NODATA), pixels)


def read_square(
    scene: Scene, ref: PatchRef, groups: tuple[GroupLayout, ...], offset: Offset
) -> Patch:
    """Read one square of a product's grid as stored values.

    Raises:
        PatchError: a file is unreadable, or its grid is not that of the first band.
    """
    column, row = square_of(ref.id)
    rasters = _read_bands(scene, groups, (column, row))
    first = rasters[groups[0].bands[0]]
    pixels = {
        group.name: harmonise(
            np.concatenate([rasters[band].pixels for band in group.bands]), offset.value
        )
        for group in groups
    }
    return Patch(
        id=ref.id,
        pixels=pixels,
        fractions=_fractions(scene, column, row),
        product=scene.product,
        tile=scene.tile,
        place=place_name(scene.tile, column, row),
        block=ref.block,
        acquired=scene.acquired,
        split=ref.split,
        baseline=scene.baseline,
        offset=offset.value,
        offset_authority=offset.authority,
        epsg=first.epsg,
        transform=first.transform,
    )


def square_of(patch_id: str) -> tuple[int, int]:
    """Return column and row in the tile from the end of an id."""
    column, row = patch_id.rsplit("_", 2)[1:]
    return int(column), int(row)


def scl_shares(classes: Classes) -> npt.NDArray[np.float32]:
    """Return the share of each of the twelve classes of a scene classification map."""
    # minlength: classes that are absent have a column too
    counts = np.bincount(classes.ravel(), minlength=len(SCL.classes))
    return np.asarray(counts[: len(SCL.classes)] / classes.size, np.float32)


def _read_bands(
    scene: Scene, groups: tuple[GroupLayout, ...], square: tuple[int, int]
) -> dict[str, Raster]:
    rasters: dict[str, Raster] = {}
    for group in groups:
        window = window_of(*square, int(group.ground_resolution_m))
        for band in group.bands:
            path = scene.bands[band]
            raster = rasters[band] = read_window(path, window)
            if raster.pixels.shape != (1, group.size_px, group.size_px):
                raise PatchError(path, f"ends inside the square {square}: not a whole tile")
            _check_place(path, raster, group.ground_resolution_m, rasters[groups[0].bands[0]])
    return rasters


def _check_place(path: Path, raster: Raster, size_m: float, first: Raster) -> None:
    expected: Transform = (size_m, 0, first.transform[2], 0, -size_m, first.transform[5])
    if raster.transform != expected or raster.epsg != first.epsg:
        raise PatchError(
            path,
            f"a square lies at EPSG {raster.epsg} {raster.transform}, expected is EPSG "
            f"{first.epsg} {expected} as in the first band",
        )


def _fractions(scene: Scene, column: int, row: int) -> Fractions:
    if scene.scl is None:
        return {}
    return {SCL.name: scl_shares(read_classes(scene.scl, window_of(column, row, scene.scl_m)))}
