"""The source ``geotiff``: any collection of GeoTIFFs, EuroSAT MS or Earth Engine exports.

Which bands, what the numbers mean and which offset is left in them is declared, since such files
rarely say; what they do say, by band names, tags, product names and dark pixels, may contradict.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from preprocess.bands import BANDS, canonical_name, canonical_names, native_groups
from preprocess.config import SourceConfig, require
from preprocess.radiometry import (
    DARK_BANDS,
    Numbers,
    Offset,
    Values,
    baseline_of,
    contradiction,
    decide,
    harmonise,
    offset_of,
    to_digital_numbers,
)
from preprocess.raster import Box, ForeignRaster, Grid, read_foreign, read_grid, session
from preprocess.shards.format import GroupLayout, LabelSet, ShardLayout
from preprocess.shards.patch import Labels, Patch, PatchError, PatchRef
from preprocess.sources.base import (
    GEOTIFF_SUFFIXES,
    Source,
    files_below,
    iso_time,
    nfc,
    read_exclusions,
    split_band_file,
)
from preprocess.sources.label_table import LabelTable, read_label_table

MANY = "_*"  # ends the path of a patch whose files lie beside those of others
# EuroSAT's pixels measure 9.93 to 10.06 m; those of a Web Mercator export 8 m and less.
_SLACK = 0.02
_SAMPLED = 16  # patches whose pixels may contradict the offset before packing starts
_PRODUCT = re.compile(
    r"S2[ABC]_MSI(?P<level>L[12][AC])_(?P<acquired>\d{8}T\d{6})_N\d{4}_R\d{3}"
    r"_T(?P<tile>\d{2}[A-Z]{3})_[\dT]+"
)
_FACTS = ("product", "tile", "place", "acquired")  # what path_pattern may name

_log = logging.getLogger(__name__)

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
        label_table: CSV or parquet table of labels, absolute or relative to the root.
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
        self.file_bands = canonical_names(self.file_bands)
        self.label_set = self.label_set or self.name
        self.nodata_by_band = {
            canonical_name(band): value for band, value in self.nodata_by_band.items()
        }
        require(self.size_px >= 1, f"source.size_px is {self.size_px}; give pixels, 1 or more")
        require(
            self.ground_resolution_m > 0,
            f"source.ground_resolution_m is {self.ground_resolution_m}; give metres above 0",
        )
        require(
            not (self.native and self.file_bands),
            "source.native is true, but source.file_bands puts all bands into one file, which has "
            "one grid; leave one of them out",
        )
        require(
            not (self.override_offset and self.boa_offset is None),
            "source.override_offset is true, but source.boa_offset is not set; say the offset too",
        )
        require(
            self.processing_level in ("", "L1C", "L2A"),
            f"source.processing_level is {self.processing_level!r}; give L1C or L2A",
        )
        require(
            0 <= self.max_shift_px < 1,
            f"source.max_shift_px is {self.max_shift_px}; give 0 to below 1 pixel",
        )
        try:
            named = set(re.compile(self.path_pattern).groupindex)
        except re.error as error:
            raise ValueError(f"source.path_pattern is no regular expression ({error})") from error
        require(
            named <= set(_FACTS) and (bool(named) or not self.path_pattern),
            f"source.path_pattern names the groups {sorted(named)}; name any of "
            f"{', '.join(_FACTS)}, as in (?P<place>\\d+)",
        )
        for key, default in (("id_column", "id"), ("label_column", "label"), ("split_column", "")):
            require(
                bool(self.label_table) or getattr(self, key) == default,
                f"source.{key} is {getattr(self, key)!r}, but there is no table to read it from; "
                "name it: source.label_table=FILE",
            )


@dataclass(frozen=True, slots=True)
class Geotiff(Source):
    """The source ``geotiff``."""

    config: GeotiffConfig

    def processing_level(self) -> str:
        """Return the declared level, or that of the products named in paths."""
        named = {found["level"] for _, path in self._patches() if (found := _PRODUCT.search(path))}
        declared = self.config.processing_level
        if len(named | ({declared} if declared else set())) > 1:
            said = f", source.processing_level is {declared}" if declared else ""
            raise ValueError(
                f"paths in {self.config.root} name products of {' and '.join(sorted(named))}{said};"
                " pack one processing level at a time"
            )
        return declared or next(iter(named), "")

    def layout(self) -> ShardLayout:
        """Return the band groups and, if a table or folders name classes, one label set."""
        patches = self._patches()
        groups = groups_of(self.config, self._bands(patches))
        label_set = self._label_set(patches)
        return ShardLayout(groups, (label_set,) if label_set else ())

    def discover(self) -> Iterator[PatchRef]:
        """Yield all patches; an id is a path relative to the root without what files differ in."""
        with session():
            patches = self._patches()
            groups = groups_of(self.config, self._bands(patches))
            for _, path in patches:  # names only: half a million take seconds
                self._offset(path, None)
            self._check_dark_pixels(patches, groups)
            table = self._table(patches)
            excluded = read_exclusions(self.config.exclude_lists)
            cuts = self._cuts(patches, groups[0].bands[0]) if self.config.cut else None
        refs = self._references(patches, table, excluded, cuts)
        # pieces of "a" and of "a_000" interleave; whole patches are in order as they are
        yield from sorted(refs, key=lambda ref: ref.id) if cuts else refs

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the files of one patch and keep the bands of the layout."""
        self._offset(ref.path, None)  # nothing is read of a collection that nobody vouches for
        numbers, grid, tagged = read_pixels(self.config, ref, layout.groups)
        root = Path(self.config.root)
        try:
            offset = self._offset(ref.path, tagged)
        except ValueError as error:
            raise PatchError(root / ref.path, str(error)) from error
        if found := self._doubt(offset, numbers, layout.groups):
            raise PatchError(root / ref.path, found)
        facts = self._facts(ref.path)
        return Patch(
            id=ref.id,
            pixels={name: harmonise(n, offset.value) for name, n in numbers.items()},
            labels=ref.labels,
            product=facts.get("product", ""),
            tile=facts.get("tile", ""),
            place=facts.get("place", "") or self._place(grid),
            acquired=facts.get("acquired", ""),
            split=ref.split,
            baseline=baseline_of(ref.path),
            offset=offset.value,
            offset_authority=offset.authority,
            epsg=grid.epsg,
            crs_wkt=grid.crs.wkt,
            transform=grid.transform,
        )

    def _patches(self) -> Patches:
        return find_patches(Path(self.config.root), not self.config.file_bands)

    def _bands(self, patches: Patches) -> list[str]:
        """Return the wanted bands, by default all that there are."""
        config, root = self.config, Path(self.config.root)
        # the union: a patch that lacks a band is rejected by name, not the band dropped for all
        paths = () if config.file_bands else [path for _, path in patches]
        found = {band for path in paths for band in _files(root, path)}
        held = config.file_bands or [band for band in BANDS if band in found]
        foreign = [band for band in config.bands if band not in held]
        if foreign:
            raise ValueError(
                f"source.bands names {foreign[0]}, which "
                f"{'source.file_bands does not' if config.file_bands else 'no file holds'}: "
                f"{', '.join(held)}"
            )
        return config.bands or list(held)

    def _label_set(self, patches: Patches) -> LabelSet | None:
        config = self.config
        if config.label_table:
            return self._read_table().label_set
        classes = sorted({name for patch, _ in patches if (name := _folder(patch))})
        if not (config.labels_from_folders and classes):
            return None
        return LabelSet(config.label_set, "single", tuple(classes))

    def _read_table(self) -> LabelTable:
        config = self.config
        return read_label_table(
            Path(config.root) / config.label_table,
            config.label_set,
            config.id_column,
            config.label_column,
            config.split_column,
        )

    def _table(self, patches: Patches) -> LabelTable | None:
        if not self.config.label_table:
            return None
        table = self._read_table()
        table.match([patch for patch, _ in patches])
        return table

    def _references(
        self,
        patches: Patches,
        table: LabelTable | None,
        excluded: set[str],
        cuts: dict[str, tuple[int, int]] | None,
    ) -> Iterator[PatchRef]:
        for patch, path in patches:
            folder = _folder(patch) if self.config.labels_from_folders else ""
            by_folder: Labels = {self.config.label_set: (folder,)} if folder else {}
            split, labels = table.of(patch) if table else ("", by_folder)
            columns, rows = cuts[patch] if cuts else (0, 0)
            pieces = [f"{patch}_{c:03d}_{r:03d}" for c in range(columns) for r in range(rows)]
            for patch_id in pieces if cuts else [patch]:
                if excluded.isdisjoint((patch, patch_id)):
                    yield PatchRef(patch_id, path, split, labels)

    def _cuts(self, patches: Patches, finest: str) -> dict[str, tuple[int, int]]:
        """Return how many patches lie along every file, and log how much ground is left over."""
        config, root = self.config, Path(self.config.root)
        cuts: dict[str, tuple[int, int]] = {}
        sizes = Counter[tuple[int, int]]()
        for patch, path in patches:
            cuts[patch] = (1, 1)  # of a file that cannot be opened: reading rejects it and says why
            try:
                grid = read_grid(root / path if config.file_bands else file_of(root, path, finest))
            except PatchError:
                continue
            sizes[grid.width, grid.height] += 1
            # one too small is one patch, which reading will refuse by its name
            columns, rows = grid.width // config.size_px, grid.height // config.size_px
            cuts[patch] = max(1, columns), max(1, rows)
        kept = _share_kept(sizes, config.size_px)
        if kept < 0.999:
            # a multiple of 6 pixels fills the coarser grids as well
            near = range(max(6, config.size_px // 12 * 6), config.size_px * 3 // 2 + 1, 6)
            best = max(near, key=lambda size_px: (_share_kept(sizes, size_px), size_px), default=0)
            better = _share_kept(sizes, best) if best else 0
            hint = f"; source.size_px={best} keeps {better:.1%}" if better > kept else ""
            _log.warning(
                "source.cut leaves out %.1f %% of the ground: what is right of and below the last "
                "whole patch of %d pixels%s",
                100 * (1 - kept),
                config.size_px,
                hint,
            )
        return cuts

    def _facts(self, path: str) -> dict[str, str]:
        """Return what a path says by ``path_pattern``, else by the name of an ESA product in it."""
        product = _PRODUCT.search(path)
        facts = {**product.groupdict(), "product": product[0]} if product else {}
        if self.config.path_pattern:
            found = re.search(self.config.path_pattern, path)
            if found is None:
                raise PatchError(
                    Path(self.config.root) / path, "source.path_pattern does not match its path"
                )
            facts |= {name: text for name, text in found.groupdict().items() if text}
        stamp = facts.get("acquired", "")
        try:
            if len(stamp) == 8:
                facts["acquired"] = iso_time(f"{stamp}T000000")[:10]
            elif stamp:
                facts["acquired"] = iso_time(stamp)
        except ValueError as error:
            raise PatchError(
                Path(self.config.root) / path, f"acquired is {stamp!r}, not as 20200131T101031"
            ) from error
        return facts

    def _offset(self, path: str, tagged: int | None) -> Offset:
        """Return the offset by tags, a product's name in the path, or as declared; no guess."""
        config, product = self.config, _PRODUCT.search(path)
        name = product[0] if product else PurePosixPath(path).name
        baseline = baseline_of(name)
        # one declaration for all would contradict the names of ESA's own products beside these
        again = config.reprocessed_offset if baseline == "99.99" else None
        claims = {"tags": tagged, "name": offset_of(baseline)}
        declared = config.boa_offset if again is None else again
        return decide(name, claims, declared, config.override_offset)

    def _check_dark_pixels(self, patches: Patches, groups: tuple[GroupLayout, ...]) -> None:
        """Refuse an offset that tags or the darkest pixels of some patches contradict.

        Raises:
            ValueError: they do; packing all the others would only reject one by one.
        """
        # spread over the collection: neighbours come from one scene
        for patch, path in patches[:: max(1, len(patches) // _SAMPLED)]:
            ref = PatchRef(f"{patch}_000_000" if self.config.cut else patch, path)
            if not self._offset(path, None).value:
                continue  # nothing can be too dark, so nothing is read
            try:
                numbers, _, tagged = read_pixels(self.config, ref, groups)
            except PatchError:
                continue  # a bad file is packing's to reject
            found = self._doubt(self._offset(path, tagged), numbers, groups)
            if found:
                raise ValueError(f"{path}: {found}")

    def _doubt(
        self, offset: Offset, numbers: dict[str, Numbers], groups: tuple[GroupLayout, ...]
    ) -> str:
        """Say how dark pixels contradict the offset; without a classification only -1000 can be."""
        if self.config.override_offset or not offset.value:
            return ""
        dark = {
            band: numbers[group.name][number]
            for group in groups
            for number, band in enumerate(group.bands)
            if band in DARK_BANDS
        }
        found = contradiction(offset.value, dark, None)
        return found and (
            f"the offset is {offset.value} by {offset.authority}, but {found}; correct "
            "source.boa_offset, with source.override_offset=true if the pixels mislead"
        )

    def _place(self, grid: Grid) -> str:
        if not (self.config.places_from_corners and grid.epsg):
            return ""
        # to the metre: exports of two dates may differ in the last bits of a corner
        digits = 0 if grid.crs.unit_m else 6
        _, _, x, _, _, y = grid.transform
        return f"{grid.epsg}_{x:.{digits}f}_{y:.{digits}f}"


def groups_of(config: GeotiffConfig, bands: list[str]) -> tuple[GroupLayout, ...]:
    """Return the band groups of a patch, finest first.

    Raises:
        ValueError: a native grid would not end with the patch.
    """
    size_m = config.ground_resolution_m
    if not config.native:
        return (GroupLayout(f"b{size_m:g}", tuple(bands), config.size_px, size_m),)
    groups = []
    native = native_groups(bands)
    # relative to the finest band there is: decimated sets keep the ratios of their grids
    finest = int(next(iter(native))[1:])
    for name, members in native.items():
        coarser = int(name[1:]) // finest
        if config.size_px % coarser:
            raise ValueError(
                f"source.size_px is {config.size_px}, which {members[0]} with pixels {coarser} "
                f"times as wide does not fill; give a multiple of {coarser}"
            )
        group = GroupLayout(name, tuple(members), config.size_px // coarser, coarser * size_m)
        groups.append(group)
    return tuple(groups)


def find_patches(root: Path, one_file_a_band: bool) -> Patches:
    """Return id and path of every patch, sorted; an id is the path without what files differ in.

    Raises:
        ValueError: the root is not a folder, holds no GeoTIFF, or none that is named after a band.
    """
    if not root.is_dir():
        raise ValueError(f"source.root is {str(root)!r}, which is not a folder")
    files = [
        # text: as paths, half a million files would take half a gigabyte
        name if folder == "." else f"{folder}/{name}"
        for folder, names in files_below(root)
        for name in names
        if name.lower().endswith(GEOTIFF_SUFFIXES)
    ]
    if not files:
        raise ValueError(f"no GeoTIFF in {root}: sought files with {' or '.join(GEOTIFF_SUFFIXES)}")
    if not one_file_a_band:
        return sorted((nfc(path.rpartition(".")[0]), path) for path in files)
    patches = {}
    for path in files:
        folder, slash, name = path.rpartition("/")
        patch, band = split_band_file(name.rpartition(".")[0])
        if band:
            whole = folder + slash + patch if patch else folder
            # a folder of its own needs no mark, and cannot be confused with a prefix in it
            patches[whole] = whole + MANY if patch else whole
    if not patches:
        raise ValueError(
            f"no GeoTIFF in {root} is named after its band, as x_B2.tif or x/nir.tif are "
            f"({files[0]} is not); if files hold several bands, name them in their order: "
            "source.file_bands=[B02,B03,B04,B08] for example"
        )
    return sorted((nfc(patch), path) for patch, path in patches.items())


def file_of(root: Path, path: str, band: str) -> Path:
    """Return the file of one band of a patch.

    Raises:
        PatchError: there is none, or more than one.
    """
    names = _files(root, path).get(band, [])
    if len(names) != 1:
        reason = f"holds {band} twice: {' and '.join(names)}" if names else f"{band} is missing"
        raise PatchError(root / path, reason)
    return (root / path).parent / names[0] if path.endswith(MANY) else root / path / names[0]


def _files(root: Path, path: str) -> dict[str, list[str]]:
    """Return the names of a patch's files by band."""
    if path.endswith(MANY):
        whole = root / path.removesuffix(MANY)
        return _listing(whole.parent).get(whole.name, {})
    return _listing(root / path).get("", {})


@lru_cache(maxsize=64)  # patches come in the order of their folders
def _listing(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return names by band by patch of one folder; none of one that cannot be found."""
    # by name alone: a file of half a million is opened once it is read
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
        By band group (bands, size_px, size_px) uint16 digital numbers, 0 for nodata; the grid of
        the finest group; the offset that scale and offset tags claim, None without.

    Raises:
        PatchError: a file is missing, unreadable, of another size, lies elsewhere than the others,
            or holds what cannot be reflectances.
    """
    root = Path(config.root)
    numbers: dict[str, Numbers] = {}
    first: Grid | None = None
    claims: dict[int | None, Path] = {}
    for group in groups:
        parts = []
        whole = {root / ref.path: config.file_bands}
        for path, held in (
            whole if config.file_bands else {file_of(root, ref.path, b): [b] for b in group.bands}
        ).items():
            found = _read_file(config, path, held, ref, group)
            first = first or found.grid
            _check_corner(config, path, found.grid, first)
            try:
                parts.append(_numbers(config, found, held, group))
                scaled = config.values == Values.reflectance and any(
                    pair != (1, 0) for pair in found.grid.scales
                )
                claims[0 if scaled else found.grid.boa_offset] = path
            except ValueError as error:
                raise PatchError(path, str(error)) from error
        numbers[group.name] = np.concatenate(parts)
    if first is None:
        raise PatchError(ref.path, "has no band to read")
    if len(claims) > 1:
        raise PatchError(
            next(reversed(claims.values())), f"tags of bands claim the offsets {list(claims)}"
        )
    return numbers, first, next(iter(claims))


def _read_file(
    config: GeotiffConfig, path: Path, held: Sequence[str], ref: PatchRef, group: GroupLayout
) -> ForeignRaster:
    size_px = group.size_px
    window: Box | None = None
    if config.cut:
        # column and row count patches, so coarser groups of the same patch begin at the same corner
        column, row = map(int, ref.id.rsplit("_", 2)[1:])
        window = (column * size_px, row * size_px, size_px, size_px)
    found = read_foreign(path, window)
    count, height, width = found.pixels.shape
    if count != len(held):
        declared = "source.file_bands names" if config.file_bands else "its name tells of"
        raise PatchError(path, f"has {count} band(s), {declared} {len(held)}")
    if (height, width) != (size_px, size_px):
        larger = min(height, width) >= size_px and not config.cut
        hint = "; source.cut=true cuts larger files" if larger else ""
        wanted = f"source.size_px asks for {size_px} in {group.name}"
        raise PatchError(path, f"is {width} x {height} pixels, {wanted}{hint}")
    for number, (name, band) in enumerate(zip(found.names, held, strict=True), start=1):
        try:
            stated = canonical_name(name)
        except ValueError:
            continue  # a description of another kind
        if stated != band:
            raise PatchError(path, f"calls its band {number} {name}, declared is {band}")
    fault = "" if config.any_grid else found.grid.fault(group.ground_resolution_m, _SLACK)
    if fault:
        raise PatchError(
            path,
            f"{fault}; export north-up in the UTM zone, or set source.ground_resolution_m to what "
            "a pixel is on the ground and source.any_grid=true",
        )
    return found


def _numbers(
    config: GeotiffConfig, found: ForeignRaster, held: Sequence[str], group: GroupLayout
) -> Numbers:
    channels = [number for number, band in enumerate(held) if band in group.bands]
    # the files' order, then the layout's
    channels.sort(key=lambda number: group.bands.index(held[number]))
    for_all = config.nodata
    marks = [
        config.nodata_by_band.get(held[n], found.nodata[n] if for_all is None else for_all)
        for n in channels
    ]
    scales = [found.grid.scales[n] for n in channels]
    numbers = to_digital_numbers(found.pixels[channels], marks, config.values, scales)
    if found.valid is not None:
        numbers = np.where(found.valid, numbers, np.uint16(0))
    return numbers


def _check_corner(config: GeotiffConfig, path: Path, grid: Grid, first: Grid) -> None:
    """Refuse bands of two scenes under one name."""
    (crs, x, y), (first_crs, first_x, first_y) = grid.corner, first.corner
    side = max(abs(grid.transform[0]), abs(first.transform[0]))
    height = max(abs(grid.transform[4]), abs(first.transform[4]))
    # a thousandth of a pixel: grids written by different programs
    slack = max(config.max_shift_px, 0.001) if config.max_shift_px else 0.0
    shift = max(abs(x - first_x) / side, abs(y - first_y) / height) if side and height else 0.0
    if crs != first_crs or shift > slack:
        hint = (
            f"; they differ by {shift:.3g} pixels of the coarser band, which source.max_shift_px "
            "can allow"
            if crs == first_crs and 0 < shift < 1
            else ""
        )
        there = f"{first_crs}, {first_x}, {first_y}"
        raise PatchError(path, f"begins at {crs}, {x}, {y}, the first band at {there}{hint}")


def _share_kept(sizes: Counter[tuple[int, int]], size_px: int) -> float:
    whole = sum(w // size_px * (h // size_px) * n for (w, h), n in sizes.items()) * size_px**2
    return whole / max(1, sum(w * h * n for (w, h), n in sizes.items()))


def _folder(patch: str) -> str:
    return patch.rpartition("/")[0].rpartition("/")[2]
