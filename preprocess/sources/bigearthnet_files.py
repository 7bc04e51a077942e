"""What both BigEarthNet releases share: one GeoTIFF a band in, band groups on one corner out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, native_groups
from preprocess.grid import PATCH_SIDE_M, place_name
from preprocess.patch import PatchError, Transform
from preprocess.raster import Raster, read_raster
from preprocess.shards.layout import GroupLayout


def band_groups(bands: Iterable[str]) -> tuple[GroupLayout, ...]:
    """Return the native band groups of 1.2 km patches; no bands means all twelve.

    Raises:
        ValueError: a band does not exist after atmospheric correction.
    """
    wanted = list(bands) or list(L2A_BANDS)
    # B10 is a band of the instrument, but no L2A product has it
    foreign = [name for name in wanted if name not in L2A_BANDS]
    if foreign:
        raise ValueError(
            f"source.bands names {foreign[0]}, which BigEarthNet does not hold; "
            f"it holds {', '.join(L2A_BANDS)}"
        )
    return tuple(
        GroupLayout(name, tuple(members), PATCH_SIDE_M // int(name[1:]), float(name[1:]))
        for name, members in native_groups(wanted).items()
    )


def read_band_files(
    folder: Path, groups: tuple[GroupLayout, ...]
) -> tuple[dict[str, npt.NDArray[np.uint16]], Transform, int]:
    """Read ``<folder>/<folder name>_<band>.tif`` of every band.

    Files are opened by name: side files in the folder must not count as bands.

    Returns:
        Pixels (bands, size_px, size_px) by group, transform of the finest group, EPSG code.

    Raises:
        PatchError: a band is missing, unreadable, of another size, or lies elsewhere than the
            first band.
    """
    paths = {band: folder / f"{folder.name}_{band}.tif" for g in groups for band in g.bands}
    rasters = {band: read_raster(path) for band, path in paths.items()}
    # v1 files carry their own grid each; nothing else says that they show the same ground
    first = rasters[groups[0].bands[0]]
    pixels = {}
    for group in groups:
        for band in group.bands:
            _check_fits(paths[band], rasters[band], group, first)
        pixels[group.name] = np.concatenate([rasters[band].pixels for band in group.bands])
    return pixels, first.transform, first.epsg


def place_of(tile: str, patch_id: str) -> str:
    """Return the ground cell: tile, column and row, the same in v1, v2 and on every date."""
    column, row = patch_id.rsplit("_", 2)[1:]
    # as numbers: v1 writes 4_55 where v2 writes 04_55
    return place_name(tile, int(column), int(row))


def _check_fits(path: Path, raster: Raster, group: GroupLayout, first: Raster) -> None:
    expected = (1, group.size_px, group.size_px)
    if raster.pixels.shape != expected:
        raise PatchError(
            path,
            f"is {_spoken(raster.pixels.shape)}, {group.bands[0]} and its group are "
            f"{_spoken(expected)}",
        )
    if raster.epsg != first.epsg or _corner(raster) != _corner(first):
        raise PatchError(
            path,
            f"lies at EPSG {raster.epsg} {_corner(raster)}, the first band of the patch at "
            f"EPSG {first.epsg} {_corner(first)}",
        )


def _corner(raster: Raster) -> tuple[float, float]:
    # resolutions differ between bands, the upper left corner must not
    return raster.transform[2], raster.transform[5]


def _spoken(shape: tuple[int, ...]) -> str:
    bands, height, width = shape
    return f"{bands} band(s) of {width} x {height} pixels"
