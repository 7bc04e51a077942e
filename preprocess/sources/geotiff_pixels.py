"""The files of one patch come in, digital numbers by band group and their grid go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.bands import canonical_name
from preprocess.config import GeotiffConfig
from preprocess.patch import PatchError, PatchRef, Transform
from preprocess.raster import Foreign, read_foreign, read_grid
from preprocess.shards.layout import GroupLayout
from preprocess.sources.geotiff_files import file_of
from preprocess.values import Numbers, to_digital_numbers

# EuroSAT's pixels measure 9.93 to 10.06 m; those of a Web Mercator export 8 m and less.
_SLACK = 0.02
# Named metres, which only at the equator are: a "10 m" pixel is 8 m wide in California.
_WEB_MERCATOR = (3857, 3785, 900913)

Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Pixels:
    """What the files of a patch hold.

    Attributes:
        numbers: by band group, (bands, size_px, size_px) uint16 digital numbers, 0 for nodata.
        transform: affine a b c d e f of the finest group.
        epsg: of the coordinate system; 0 without one.
    """

    numbers: dict[str, Numbers]
    transform: Transform
    epsg: int


def read_pixels(config: GeotiffConfig, ref: PatchRef, groups: tuple[GroupLayout, ...]) -> Pixels:
    """Read one patch.

    Raises:
        PatchError: a file is missing, unreadable, of another size, lies elsewhere than the others,
            or holds what cannot be reflectances.
    """
    numbers: dict[str, Numbers] = {}
    first: Foreign | None = None
    for group in groups:
        parts = []
        for path, bands in _files(config, ref, group):
            foreign = _read_file(config, path, bands, ref, group)
            first = first or foreign
            _check_corner(path, foreign, first)
            parts.append(_numbers(config, path, foreign, bands or config.file_bands, group))
        numbers[group.name] = np.concatenate(parts)
    if first is None:
        raise PatchError(ref.path, "has no band to read")
    return Pixels(numbers, first.transform, first.epsg)


def patches_along(path: Path, size_px: int) -> tuple[int, int]:
    """Return how many whole patches lie in a row and in a column of a file; at least one.

    Raises:
        PatchError: the file cannot be opened.
    """
    grid = read_grid(path)
    # one too small is one patch, which reading will refuse by its name
    return max(1, grid.width // size_px), max(1, grid.height // size_px)


def _files(
    config: GeotiffConfig, ref: PatchRef, group: GroupLayout
) -> list[tuple[Path, tuple[str, ...]]]:
    """Return files with the bands that are in them; no bands means the declared ones."""
    root = Path(config.root)
    if config.file_bands:
        return [(root / ref.path, ())]
    return [(file_of(root, ref.path, band), (band,)) for band in group.bands]


def _read_file(
    config: GeotiffConfig, path: Path, bands: Sequence[str], ref: PatchRef, group: GroupLayout
) -> Foreign:
    expected = bands or config.file_bands
    foreign = read_foreign(path, _window(ref, group) if config.cut else None)
    count, height, width = foreign.pixels.shape
    if count != len(expected):
        raise PatchError(path, f"has {count} band(s), {_declared(bands)} {len(expected)}")
    if (height, width) != (group.size_px, group.size_px):
        larger = min(height, width) >= group.size_px and not config.cut
        hint = "; source.cut=true cuts larger files" if larger else ""
        asked = f"source.size_px asks for {group.size_px} in {group.name}"
        raise PatchError(path, f"is {width} x {height} pixels, {asked}{hint}")
    _check_names(path, foreign.names, expected)
    if not config.any_grid:
        _check_grid(path, foreign, group.ground_resolution_m)
    return foreign


def _declared(bands: Sequence[str]) -> str:
    return "its name tells of" if bands else "source.file_bands names"


def _window(ref: PatchRef, group: GroupLayout) -> Window:
    column, row = map(int, ref.id.rsplit("_", 2)[1:])
    # column and row count patches, so coarser groups of the same patch begin at the same corner
    return column * group.size_px, row * group.size_px, group.size_px, group.size_px


def _numbers(
    config: GeotiffConfig, path: Path, foreign: Foreign, held: Sequence[str], group: GroupLayout
) -> Numbers:
    channels = [number for number, band in enumerate(held) if band in group.bands]
    # the files' order, then the layout's
    channels.sort(key=lambda number: group.bands.index(held[number]))
    marks = [_mark(config, held[number], foreign.nodata[number]) for number in channels]
    try:
        return to_digital_numbers(foreign.pixels[channels], marks, config.values)
    except ValueError as error:
        raise PatchError(path, str(error)) from error


def _mark(config: GeotiffConfig, band: str, tagged: float | None) -> float | None:
    """Return what marks nodata in a band: the setting for it, for all bands, or the file's tag."""
    for_all = tagged if config.nodata is None else config.nodata
    return config.nodata_by_band.get(band, for_all)


def _check_names(path: Path, names: Sequence[str], expected: Sequence[str]) -> None:
    """Compare what a file says of its bands with what is declared, where it says anything."""
    for number, (name, band) in enumerate(zip(names, expected, strict=True), start=1):
        try:
            stated = canonical_name(name)
        except ValueError:
            continue  # a description of another kind
        if stated != band:
            raise PatchError(path, f"calls its band {number} {name}, declared is {band}")


def _check_grid(path: Path, foreign: Foreign, size_m: float) -> None:
    if not foreign.epsg:
        return  # says nothing of metres
    a, b, _, d, e, _ = foreign.transform
    if foreign.epsg in _WEB_MERCATOR:
        seen = f"lies in EPSG {foreign.epsg} (Web Mercator), whose metres are not the ground's"
    elif b or d or abs(a / size_m - 1) > _SLACK or abs(e / -size_m - 1) > _SLACK:
        seen = f"has pixels of {a:g} x {e:g} units of EPSG {foreign.epsg}, not of {size_m:g} m"
    else:
        return
    raise PatchError(
        path,
        f"{seen}; export in the UTM zone, or set source.ground_resolution_m to what a pixel is on "
        "the ground and source.any_grid=true",
    )


def _check_corner(path: Path, foreign: Foreign, first: Foreign) -> None:
    corners = [(found.epsg, found.transform[2], found.transform[5]) for found in (foreign, first)]
    if corners[0] != corners[1]:
        # bands of two scenes under one name
        raise PatchError(path, f"begins at EPSG, x, y {corners[0]}, the first band at {corners[1]}")
