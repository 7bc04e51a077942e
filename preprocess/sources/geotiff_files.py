"""Settings of the source ``geotiff``, and functions that find and read its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from preprocess.bands import canonical_name, canonical_names
from preprocess.config import SourceConfig, check_offsets, require_all
from preprocess.grid import Grid
from preprocess.radiometry import Numbers, Values, can_hold, to_digital_numbers
from preprocess.raster import UncheckedRaster, read_unchecked
from preprocess.shards.format import GroupLayout, PatchError, PatchRef
from preprocess.sources.base import GEOTIFF_SUFFIXES, files_below, nfc, split_band_file

MANY = "_*"  # suffix of the path of a patch whose files share a folder with those of others
# EuroSAT's pixels measure 9.93 to 10.06 m, those of a Web Mercator export 8 m or less.
_SLACK = 0.02
PATH_FACTS = ("product", "tile", "place", "acquired")  # group names allowed in path_pattern

Patches = list[tuple[str, str]]  # id and path


@dataclass(kw_only=True, slots=True)
class GeotiffConfig(SourceConfig):
    """Any collection of GeoTIFFs: all bands in a file or one file a band, EuroSAT MS for example.

    Attributes:
        file_bands: band names in the order of the files, all of them; empty: one file a band,
            whose name ends in the band's (``x_B2.tif``, ``x/nir.tif``).
        size_px: side of every patch in pixels of the finest bands.
        cut: cut larger files into whole patches from their upper left corner; else all files have
            the size of a patch.
        ground_resolution_m: side of a pixel of the finest bands in metres.
        processing_level: L1C (top of atmosphere) or L2A; leave it out where paths hold the names
            of ESA's products.
        max_shift_px: by how much the corners of bands may differ, in pixels of the coarser band and
            below 1; bands are stored as they lie. Earth Engine shifts coarse grids by half a pixel.
        native: with one file a band, bands of 20 and 60 m lie on their own grids; else all bands
            share one.
        values: what numbers in the files mean.
        nodata: number that marks nodata in all bands; overrides the tags of the files.
        nodata_by_band: the same for single bands: ``+source.nodata_by_band.B02=7``.
        boa_offset: what must be added, in digital numbers; -1000 or 0. Leave it out where a path
            holds the name of an ESA product that tells.
        reprocessed_offset: the same for products of baseline 99.99 alone, whose name tells nothing.
        override_offset: take ``boa_offset`` although names or pixels contradict it.
        any_grid: take files whose pixels are not ``ground_resolution_m`` by their own grid.
        places_from_corners: patches with one upper left corner are one place on several dates.
        path_pattern: regular expression that finds in a patch's path what its named groups say:
            ``(?P<place>..)``, acquired (20200131 or 20200131T101031), tile, product.
        label_table: CSV or parquet table of labels; a relative path is looked for in the root,
            then from here.
        id_column: its column of ids: a patch's id, or the last part of it.
        label_column: its column of classes: text, several parted by ``;``, or a list; empty for
            a table of splits alone.
        split_column: its column of splits; empty if it holds none.
        labels_from_folders: without a table, the name of a file's folder is its class.
        label_set: name of that labelling; empty takes the name of the source.
        exclude_lists: files naming patches to leave out by their whole ids, one a line; the id of
            a larger file leaves out all that is cut from it.
    """

    kind: str = "geotiff"
    file_bands: list[str] = field(default_factory=list)
    size_px: int = 64
    cut: bool = False
    ground_resolution_m: float = 10.0
    native: bool = False
    processing_level: str = ""
    max_shift_px: float = 0.0
    values: Values = Values.digital_numbers
    nodata: float | None = None
    nodata_by_band: dict[str, float] = field(default_factory=dict)
    boa_offset: int | None = None
    reprocessed_offset: int | None = None
    override_offset: bool = False
    any_grid: bool = False
    places_from_corners: bool = False
    path_pattern: str = ""
    label_table: str = ""
    id_column: str = "id"
    label_column: str = "label"
    split_column: str = ""
    labels_from_folders: bool = True
    label_set: str = ""
    exclude_lists: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        check_offsets(self.override_offset, self.boa_offset, self.reprocessed_offset)
        self.file_bands = canonical_names(self.file_bands)
        self.label_set = self.label_set or self.name
        self.nodata_by_band = {canonical_name(b): mark for b, mark in self.nodata_by_band.items()}
        try:
            named = set(re.compile(self.path_pattern).groupindex)
            usable = named <= set(PATH_FACTS) and bool(named or not self.path_pattern)
            groups = f"source.path_pattern names the groups {sorted(named)}; name any of "
            hint = f"{', '.join(PATH_FACTS)}, as in (?P<place>\\d+)"
            problem = "" if usable else groups + hint
        except re.error as error:
            problem = f"source.path_pattern is not a regular expression ({error})"
        one_grid = (
            "but source.file_bands puts all bands into one file, which has one grid; leave one of "
            "them out"
        )
        defaults = {"id_column": "id", "label_column": "label", "split_column": ""}
        require_all(
            (self.size_px >= 1, f"source.size_px is {self.size_px}; give pixels, 1 or more"),
            (
                self.ground_resolution_m > 0,
                f"source.ground_resolution_m is {self.ground_resolution_m}; give metres above 0",
            ),
            (not (self.native and self.file_bands), f"source.native is true, {one_grid}"),
            (
                self.processing_level in ("", "L1C", "L2A"),
                f"source.processing_level is {self.processing_level!r}; give L1C or L2A",
            ),
            (
                0 <= self.max_shift_px < 1,
                f"source.max_shift_px is {self.max_shift_px}; give 0 to below 1 pixel",
            ),
            (
                not (self.max_shift_px and self.file_bands),
                f"source.max_shift_px is {self.max_shift_px}, {one_grid}",
            ),
            (not problem, problem),
            *(
                (
                    bool(self.label_table) or getattr(self, key) == default,
                    f"source.{key} is {getattr(self, key)!r}, but there is no table to read it "
                    "from; name it: source.label_table=FILE",
                )
                for key, default in defaults.items()
            ),
        )


def find_patches(root: Path, one_file_a_band: bool) -> Patches:
    """Return id and path of every patch, sorted; an id is the path without band and suffix."""
    files = [
        # strings: as Path objects, half a million files would take half a gigabyte
        name if folder == "." else f"{folder}/{name}"
        for folder, names in files_below(root)
        for name in names
        if name.lower().endswith(GEOTIFF_SUFFIXES)
    ]
    if not files:
        raise ValueError(
            f"no GeoTIFF in {root}; expected files with {' or '.join(GEOTIFF_SUFFIXES)}"
        )
    if not one_file_a_band:
        return sorted((nfc(path.rpartition(".")[0]), path) for path in files)
    # a/B02.tif and a_B02.tif are two patches of one id, which packing reports
    patches: set[tuple[str, str]] = set()
    for path in files:
        folder, slash, name = path.rpartition("/")
        patch, band = split_band_file(name.rpartition(".")[0])
        if band:
            whole = folder + slash + patch if patch else folder
            # a folder per patch needs no mark, and cannot be confused with a prefix in it
            patches.add((nfc(whole), whole + MANY if patch else whole))
    if not patches:
        raise ValueError(
            f"no GeoTIFF in {root} is named after its band, as x_B2.tif or x/nir.tif are "
            f"({files[0]} is not); if files hold several bands, name them in their order: "
            "source.file_bands=[B02,B03,B04,B08] for example"
        )
    return sorted(patches)


def file_of(root: Path, path: str, band: str) -> Path:
    """Return the file of one band of a patch; ``PatchError`` if there is none or several."""
    names = files_by_band(root, path).get(band, [])
    if len(names) != 1:
        reason = f"holds {band} twice: {' and '.join(names)}" if names else f"{band} is missing"
        raise PatchError(root / path, reason)
    return (root / path).parent / names[0] if path.endswith(MANY) else root / path / names[0]


def files_by_band(root: Path, path: str) -> dict[str, list[str]]:
    """Return the names of a patch's files by band."""
    whole = root / path.removesuffix(MANY)
    folder, patch = (whole.parent, whole.name) if path.endswith(MANY) else (whole, "")
    return _listing(folder).get(patch, {})


@lru_cache(maxsize=64)  # patches come in order of their folders
def _listing(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the file names of a folder by patch, then by band; empty if it does not exist."""
    # by name only: files are not opened before they are read
    held: dict[str, dict[str, list[str]]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        patch, band = split_band_file(path.stem)
        if band and path.suffix.lower() in GEOTIFF_SUFFIXES:
            held.setdefault(patch, {}).setdefault(band, []).append(path.name)
    return held


def read_pixels(
    config: GeotiffConfig, ref: PatchRef, groups: tuple[GroupLayout, ...]
) -> tuple[dict[str, Numbers], Grid, int | None]:
    """Read one patch.

    Returns:
        Digital numbers by band group, (bands, size_px, size_px) uint16, 0 for nodata; the grid of
        the finest group; the offset stated by scale and offset tags, or None without tags.

    Raises:
        PatchError: a file is missing, unreadable, of another size or position than the others, or
            has values that cannot be reflectances.
    """
    root = Path(config.root)
    numbers: dict[str, Numbers] = {}
    first: Grid | None = None
    claims: dict[int | None, Path] = {}
    for group in groups:
        parts = []
        files = {root / ref.path: config.file_bands}
        if not config.file_bands:
            files = {file_of(root, ref.path, band): [band] for band in group.bands}
        for path, held in files.items():
            found = _read_file(config, path, held, ref, group)
            first = first or found.grid
            _check_corner(config, path, found.grid, first)
            try:
                parts.append(_numbers(config, found, held, group))
                scaled = any(pair != (1, 0) for pair in found.grid.scales)
                is_applied = scaled and config.values == Values.reflectance
                claims[0 if is_applied else found.grid.boa_offset] = path
            except ValueError as error:
                raise PatchError(path, str(error)) from error
        numbers[group.name] = np.concatenate(parts)
    if first is None:
        raise PatchError(ref.path, "has no band to read")
    if len(claims) > 1:
        reason = f"tags of bands claim the offsets {list(claims)}"
        raise PatchError(next(reversed(claims.values())), reason)
    return numbers, first, next(iter(claims))


def _read_file(
    config: GeotiffConfig, path: Path, held: Sequence[str], ref: PatchRef, group: GroupLayout
) -> UncheckedRaster:
    size_px, window = group.size_px, None
    if config.cut:
        # column and row count patches, so all groups of a patch begin at the same corner
        column, row = map(int, ref.id.rsplit("_", 2)[1:])
        window = (column * size_px, row * size_px, size_px, size_px)
    found = read_unchecked(path, window)
    count, height, width = found.pixels.shape
    if count != len(held):
        declared = "source.file_bands names" if config.file_bands else "its name mentions"
        raise PatchError(path, f"has {count} band(s), {declared} {len(held)}")
    if (height, width) != (size_px, size_px):
        larger = min(height, width) >= size_px and not config.cut
        side = height * config.size_px // size_px
        whole = f"source.size_px={side} takes them whole, " if height == width else ""
        hint = f"; {whole}source.cut=true cuts them" if larger else ""
        wanted = f"source.size_px asks for {size_px} in {group.name}"
        raise PatchError(path, f"is {width} x {height} pixels, {wanted}{hint}")
    for number, (name, band) in enumerate(zip(found.names, held, strict=True), start=1):
        try:
            stated = canonical_name(name)
        except ValueError:
            continue  # the description is not a band name
        if stated != band:
            raise PatchError(path, f"calls its band {number} {name}, declared is {band}")
    fault = "" if config.any_grid else found.grid.fault(group.ground_resolution_m, _SLACK)
    if fault:
        hint = (
            "export north-up in the UTM zone, or set source.ground_resolution_m to what a pixel is "
            "on the ground and source.any_grid=true"
        )
        raise PatchError(path, f"{fault}; {hint}")
    return found


def _numbers(
    config: GeotiffConfig, found: UncheckedRaster, held: Sequence[str], group: GroupLayout
) -> Numbers:
    channels = [number for number, band in enumerate(held) if band in group.bands]
    # from the order of the file to that of the layout
    channels.sort(key=lambda number: group.bands.index(held[number]))
    declared = [config.nodata_by_band.get(held[n], config.nodata) for n in channels]
    for mark in declared:
        if mark is not None and not can_hold(found.pixels.dtype, mark):
            raise ValueError(
                f"source.nodata is {mark:g}, which pixels of {found.pixels.dtype} cannot be; give "
                "the number that marks nodata in these files, or leave it out"
            )
    tagged = [found.nodata[n] for n in channels]
    marks = [tag if mark is None else mark for tag, mark in zip(tagged, declared, strict=True)]
    scales = [found.grid.scales[n] for n in channels]
    numbers = to_digital_numbers(found.pixels[channels], marks, config.values, scales)
    return numbers if found.valid is None else np.where(found.valid, numbers, np.uint16(0))


def _check_corner(config: GeotiffConfig, path: Path, grid: Grid, first: Grid) -> None:
    """Raise ``PatchError`` if bands of one patch do not share their corner."""
    (crs, x, y), (first_crs, first_x, first_y) = grid.corner, first.corner
    side, height = (max(abs(grid.transform[n]), abs(first.transform[n])) for n in (0, 4))
    # at least a thousandth of a pixel: programs write grids differently
    slack = max(config.max_shift_px, 0.001) if config.max_shift_px else 0.0
    shift = max(abs(x - first_x) / side, abs(y - first_y) / height) if side and height else 0.0
    if crs != first_crs or shift > slack:
        hint = (
            f"; they differ by {shift:.3g} pixels of the coarser band, which source.max_shift_px "
            "can allow"
        )
        hint = hint if crs == first_crs and 0 < shift < 1 else ""
        there = f"{first_crs}, {first_x}, {first_y}"
        raise PatchError(path, f"begins at {crs}, {x}, {y}, the first band at {there}{hint}")
