"""Any collection of GeoTIFFs, EuroSAT MS or Earth Engine exports: files come in, patches go out.

Which bands, what the numbers mean and which offset is left in them is declared, since such files
rarely say; what they do say, by band names, product names and dark pixels, may contradict.
"""

from __future__ import annotations

import re
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
from preprocess.raster import Foreign, read_foreign, read_grid, session
from preprocess.shards.format import GroupLayout, LabelSet, ShardLayout
from preprocess.shards.patch import Labels, Patch, PatchError, PatchRef, Transform
from preprocess.sources.base import Source, files_below, iso_time, read_exclusions
from preprocess.sources.label_table import LabelTable, read_label_table

SUFFIXES = (".tif", ".tiff")
MANY = "_*"  # ends the path of a patch whose files lie beside those of others
_NAME = re.compile(r"(?:(?P<patch>.+)[_\-. ])?(?P<band>[^_\-. ]+)")

Files = dict[str, list[str]]  # names by band


def find_patches(root: Path, one_file_a_band: bool) -> list[tuple[str, str]]:
    """Return id and path of every patch, sorted; an id is the path without what files differ in.

    Raises:
        ValueError: the root is not a folder, holds no GeoTIFF, or none that is named after a band.
    """
    files = _find_files(root)
    if not one_file_a_band:
        return sorted((path.rpartition(".")[0], path) for path in files)
    patches = {}
    for path in files:
        folder, slash, name = path.rpartition("/")
        patch, band = split_name(name.rpartition(".")[0])
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
    return sorted(patches.items())


def bands_of(root: Path, patches: list[tuple[str, str]]) -> set[str]:
    """Return the bands that any patch has a file of."""
    return {band for _, path in patches for band in _files_of(root, path)}


def file_of(root: Path, path: str, band: str) -> Path:
    """Return the file of one band of a patch.

    Raises:
        PatchError: there is none, or more than one.
    """
    names = _files_of(root, path).get(band, [])
    if len(names) != 1:
        reason = f"holds {band} twice: {' and '.join(names)}" if names else f"{band} is missing"
        raise PatchError(root / path, reason)
    return _folder_of(root, path) / names[0]


def split_name(stem: str) -> tuple[str, str]:
    """Return what a file's name says of patch and canonical band; an empty band is none."""
    found = _NAME.fullmatch(stem)
    if found is None:
        return stem, ""
    try:
        return found["patch"] or "", canonical_name(found["band"])
    except ValueError:
        return stem, ""  # a side file: a mask, a thumbnail


def _find_files(root: Path) -> list[str]:
    """Return all GeoTIFFs below a folder, relative to it."""
    if not root.is_dir():
        raise ValueError(f"source.root is {str(root)!r}, which is not a folder")
    found = []
    for inside, names in files_below(root):
        prefix = "" if inside == "." else f"{inside}/"
        # text: as paths, half a million files would take half a gigabyte
        found += [prefix + name for name in names if name.lower().endswith(SUFFIXES)]
    if not found:
        raise ValueError(f"no GeoTIFF in {root}: sought files with {' or '.join(SUFFIXES)}")
    return found


def _files_of(root: Path, path: str) -> Files:
    patch = PurePosixPath(path.removesuffix(MANY)).name if path.endswith(MANY) else ""
    return _listing(_folder_of(root, path)).get(patch, {})


def _folder_of(root: Path, path: str) -> Path:
    return (root / path).parent if path.endswith(MANY) else root / path


@lru_cache(maxsize=64)  # patches come in the order of their folders
def _listing(folder: Path) -> dict[str, Files]:
    """Return names by band by patch of one folder."""
    # by name alone: a file of half a million is opened once it is read
    held: dict[str, Files] = {}
    for path in sorted(folder.iterdir()):
        patch, band = split_name(path.stem)
        if band and path.suffix.lower() in SUFFIXES:
            held.setdefault(patch, {}).setdefault(band, []).append(path.name)
    return held


# EuroSAT's pixels measure 9.93 to 10.06 m; those of a Web Mercator export 8 m and less.
_SLACK = 0.02
# Named metres, which only at the equator are: a "10 m" pixel is 8 m wide in California.
_WEB_MERCATOR = (3857, 3785, 900913)

Window = tuple[int, int, int, int]


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
    values: Values = Values.digital_numbers
    nodata: float | None = None
    nodata_by_band: dict[str, float] = field(default_factory=dict)
    boa_offset: int | None = None
    reprocessed_offset: int | None = None
    override_offset: bool = False
    any_grid: bool = False
    places_from_corners: bool = False
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


_PRODUCT = re.compile(
    r"S2[ABC]_MSIL[12][AC]_(?P<time>\d{8}T\d{6})_N\d{4}_R\d{3}_T(?P<tile>\d{2}[A-Z]{3})_[\dT]+"
)
Patches = list[tuple[str, str]]  # id and path
_LISTENED = 16  # patches whose pixels may contradict the offset before packing starts


@dataclass(frozen=True, slots=True)
class Geotiff(Source):
    """The source ``geotiff``."""

    config: GeotiffConfig

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
                self._offset(path)
            self._listen(patches, groups)
            refs = iter(self._references(patches, groups))
            if self.config.cut:
                # pieces of "a" and of "a_000" interleave; whole patches are in order as they are
                refs = iter(sorted(refs, key=lambda ref: ref.id))
        yield from refs  # outside: who stops listening early must not leave GDAL set up

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read the files of one patch and keep the bands of the layout."""
        # offset first: nothing is read of a collection that nobody vouches for
        offset = self._offset(ref.path)
        pixels = read_pixels(self.config, ref, layout.groups)
        found = self._doubt(offset, pixels, layout.groups)
        if found:
            raise PatchError(Path(self.config.root) / ref.path, found)
        product = _PRODUCT.search(ref.path)
        return Patch(
            id=ref.id,
            pixels={name: harmonise(n, offset.value) for name, n in pixels.numbers.items()},
            labels=ref.labels,
            product=product[0] if product else "",
            tile=product["tile"] if product else "",
            place=self._place(pixels),
            acquired=iso_time(product["time"]) if product else "",
            split=ref.split,
            baseline=baseline_of(ref.path),
            offset=offset.value,
            offset_authority=offset.authority,
            epsg=pixels.epsg,
            transform=pixels.transform,
        )

    def _patches(self) -> Patches:
        return find_patches(Path(self.config.root), not self.config.file_bands)

    def _bands(self, patches: Patches) -> list[str]:
        """Return the wanted bands, by default all that there are."""
        config = self.config
        # the union: a patch that lacks a band is rejected by name, not the band dropped for all
        found = set() if config.file_bands else bands_of(Path(config.root), patches)
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

    def _references(self, patches: Patches, groups: tuple[GroupLayout, ...]) -> Iterator[PatchRef]:
        table = self._table(patches)
        excluded = read_exclusions(self.config.exclude_lists)
        for patch, path in patches:
            split, labels = table.of(patch) if table else ("", self._folder_labels(patch))
            for patch_id in self._cut(patch, path, groups[0].bands[0]):
                if excluded.isdisjoint((patch, patch_id)):
                    yield PatchRef(patch_id, path, split, labels)

    def _table(self, patches: Patches) -> LabelTable | None:
        if not self.config.label_table:
            return None
        table = self._read_table()
        if not any(patch in table for patch, _ in patches):
            raise ValueError(
                f"none of the {len(patches)} patches in {self.config.root} is listed in "
                f"{self.config.label_table}; its ids should look like {patches[0][0]}"
            )
        return table

    def _read_table(self) -> LabelTable:
        config = self.config
        return read_label_table(
            Path(config.root) / config.label_table,
            config.label_set,
            config.id_column,
            config.label_column,
            config.split_column,
        )

    def _folder_labels(self, patch: str) -> Labels:
        folder = _folder(patch) if self.config.labels_from_folders else ""
        return {self.config.label_set: (folder,)} if folder else {}

    def _cut(self, patch: str, path: str, finest: str) -> Iterator[str]:
        """Yield the ids of the patches that one file, or one set of files, is cut into."""
        config, root = self.config, Path(self.config.root)
        if not config.cut:
            yield patch
            return
        try:
            file = root / path if config.file_bands else file_of(root, path, finest)
            columns, rows = patches_along(file, config.size_px)
        except PatchError:
            columns, rows = 1, 1  # reading will reject it and say why
        for column in range(columns):
            yield from (f"{patch}_{column:03d}_{row:03d}" for row in range(rows))

    def _offset(self, path: str) -> Offset:
        """Return the offset by the product's name in a path, or as declared; never guessed."""
        config, product = self.config, _PRODUCT.search(path)
        name = product[0] if product else PurePosixPath(path).name
        baseline = baseline_of(name)
        # one declaration for all would contradict the names of ESA's own products beside these
        again = config.reprocessed_offset if baseline == "99.99" else None
        claims = {"name": offset_of(baseline)}
        declared = config.boa_offset if again is None else again
        return decide(name, claims, declared, config.override_offset)

    def _listen(self, patches: Patches, groups: tuple[GroupLayout, ...]) -> None:
        """Refuse an offset that the darkest pixels of some patches contradict.

        Raises:
            ValueError: they do; packing all the others would only reject one by one.
        """
        # spread over the collection: neighbours come from one scene
        for patch, path in patches[:: max(1, len(patches) // _LISTENED)]:
            offset = self._offset(path)
            if not offset.value:
                continue  # nothing can be too dark, so nothing is read
            first = next(self._cut(patch, path, groups[0].bands[0]))
            try:
                pixels = read_pixels(self.config, PatchRef(first, path), groups)
            except PatchError:
                continue  # a bad file is packing's to reject
            found = self._doubt(offset, pixels, groups)
            if found:
                raise ValueError(f"{path}: {found}")

    def _doubt(self, offset: Offset, pixels: Pixels, groups: tuple[GroupLayout, ...]) -> str:
        """Say how dark pixels contradict the offset; without a classification only -1000 can be."""
        if self.config.override_offset or not offset.value:
            return ""
        dark = {
            band: pixels.numbers[group.name][number]
            for group in groups
            for number, band in enumerate(group.bands)
            if band in DARK_BANDS
        }
        found = contradiction(offset.value, dark, None)
        return found and (
            f"the offset is {offset.value} by {offset.authority}, but {found}; correct "
            "source.boa_offset, with source.override_offset=true if the pixels mislead"
        )

    def _place(self, pixels: Pixels) -> str:
        if not (self.config.places_from_corners and pixels.epsg):
            return ""
        # to the metre: exports of two dates may differ in the last bits of a corner
        _, _, x, _, _, y = pixels.transform
        return f"{pixels.epsg}_{x:.0f}_{y:.0f}"


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


def _folder(patch: str) -> str:
    return patch.rpartition("/")[0].rpartition("/")[2]
