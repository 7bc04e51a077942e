"""Whole products, cut into patches on the grid of their tile; used by ``l2a_files``.

Two passes: over products (date, cloud cover, processing), then over the squares of each (place,
nodata, clouds, shadow, snow). Dropped products and squares are yielded with the reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from preprocess.config import ProductsConfig, SelectConfig
from preprocess.radiometry import (
    DARK_BANDS,
    Classes,
    Numbers,
    Offset,
    contradiction,
    decide,
    harmonise,
)
from preprocess.raster import read_classes, read_coarse, read_grid, read_raster, session
from preprocess.shards.format import (
    NODATA,
    Dropped,
    Fractions,
    FractionSet,
    GroupLayout,
    Patch,
    PatchError,
    PatchRef,
    ShardLayout,
)
from preprocess.sources.base import Exclusions, Groups, Source, read_groups
from preprocess.tiling import (
    EXCLUDED_LIST,
    SIDE,
    TILE_M,
    Flags,
    Ground,
    TileGrid,
    ground_of,
    is_corner_of_tile,
    listed_squares,
    shares_of,
    square_name,
    window_of,
)

# Classes 0 to 11 of the scene classification map (Sentinel-2 L2A product definition).
SCL = FractionSet(
    "scl",
    (
        "no data", "saturated or defective", "dark area", "cloud shadow", "vegetation",
        "not vegetated", "water", "unclassified", "cloud, medium probability",
        "cloud, high probability", "thin cirrus", "snow or ice",
    ),
)  # fmt: skip
_COARSE_PX = 1830  # 60 m pixels along a tile
_EDGE_PX = 4  # pixels by which JPEG 2000 wavelets spread nodata in its coarse levels

OTHER_DATES = "acquired outside the dates"
CLOUDY_PRODUCT = "cloud cover of the product"
REPEATED = "another processing of the same acquisition is taken"
TAKEN = "another product of the same acquisition has it"
TOO_FEW_DATES = "places seen on too few dates"
NO_DATA, CLOUD, SHADOW, SNOW = "nodata", "cloud", "cloud shadow", "snow"
_CLOUD_CLASSES, _SHADOW_CLASS, _SNOW_CLASS = (8, 9, 10), 3, 11  # SCL

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """One product: one tile at one time."""

    path: str  # path of its folder or file, relative to the root
    name: str
    tile: str  # MGRS tile
    acquired: str  # ISO 8601, UTC; only a day if the time is unknown
    baseline: str  # processing baseline, if known
    bands: dict[str, Path]  # raster by band, at the ground resolution to be read
    # each band's coarsest raster, the coarsest first: its zeros are nodata
    coarsest: dict[str, Path]
    scl: Path | None = None  # scene classification map, if there is one
    scl_m: int = 20  # ground resolution of the map in metres
    claims: dict[str, int | None] = field(default_factory=dict)  # stated offsets, strongest first
    cloud_percent: float | None = None  # cloud cover of the entire product, if known


def _tile_grid(product: Product, group: GroupLayout) -> tuple[TileGrid, int | None]:
    """Return the grid of a product's tile, and the offset stated by tags of its first band."""
    path = product.bands[group.bands[0]]
    # from the file, not from the name: squares must follow the file's own grid
    found = read_grid(path)
    size_m, (a, _, x, _, _, y) = group.ground_resolution_m, found.transform
    if fault := found.fault(size_m):
        raise PatchError(path, fault)
    if found.epsg - int(product.tile[:2]) not in (32600, 32700):  # north, south
        raise PatchError(path, f"lies in {found.crs}, not in the UTM zone of tile {product.tile}")
    if found.width != TILE_M / size_m or found.height != found.width:
        has = f"has {found.width} x {found.height} pixels of {a:g} m"
        raise PatchError(path, f"{has}, a tile has {TILE_M / size_m:g} of {size_m:g} m")
    if not is_corner_of_tile(x, y):
        raise PatchError(path, f"begins at {x:.0f}, {y:.0f}, which is not a corner of an MGRS tile")
    try:
        return TileGrid(product.tile, found.epsg, x, y), found.boa_offset
    except ValueError as error:
        raise PatchError(path, str(error)) from error


def _classes(product: Product) -> Classes | None:
    """Return the scene classification of a whole product; None without a map."""
    if product.scl is None:
        return None
    classes = read_classes(product.scl)
    side = TILE_M // product.scl_m
    if classes.shape != (side, side):
        height, width = classes.shape
        has = f"has {width} x {height} pixels"
        raise PatchError(product.scl, f"{has}, a tile has {side} of {product.scl_m} m")
    return classes


def _dark_pixels(path: Path, size_px: int) -> Numbers:
    """Return the digital numbers of a band, with pixels next to nodata set to nodata too.

    Coarse levels of JPEG 2000 are averages: along an edge of nodata they are darker than any
    ground, which would seem to contradict an offset.
    """
    pixels = read_coarse(path, size_px)
    near = pixels == NODATA
    for _ in range(_EDGE_PX):
        for axis in (0, 1):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
    return np.where(near, np.uint16(NODATA), pixels)


def _fractions(product: Product, column: int, row: int) -> Fractions:
    if product.scl is None:
        return {}
    classes = read_classes(product.scl, window_of(column, row, product.scl_m))
    # minlength: absent classes need a column too
    counts = np.bincount(classes.ravel(), minlength=len(SCL.classes))[: len(SCL.classes)]
    return {SCL.name: np.asarray(counts / classes.size, np.float32)}


@dataclass(frozen=True, slots=True)
class Products(Source):
    """A source of products.

    Attributes:
        config: settings with selection, filter and split.
        groups: band groups of a patch.
        find: returns the paths of all products under a root, relative to it.
        describe: returns the product at a root and path for given band groups.
    """

    config: ProductsConfig
    groups: Groups
    find: Callable[[Path], list[str]]
    describe: Callable[[Path, str, Groups], Product]

    def layout(self) -> ShardLayout:
        """Return the band groups, and shares of scene classification classes."""
        return ShardLayout(self.groups, fraction_sets=(SCL,))

    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Yield wanted squares in order of id, mixed with dropped products and squares."""
        root = Path(self.config.root)
        paths = self.find(root)
        with session():
            products = [self.describe(root, path, self.groups) for path in paths]
            judged = list(_judged(products, self.config.select))
            yield from (Dropped(product.path, reason) for product, reason in judged if reason)
            yield from self._squares([product for product, reason in judged if not reason])

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one square as stored values."""
        # described again (and cached there): a part of a job array has only the plan's references
        root = Path(self.config.root)
        product = self.describe(root, ref.path, layout.groups)
        column, row = map(int, ref.id.rsplit("_", 2)[1:])
        numbers, grid, tagged = read_groups(product.bands, layout.groups, (column, row))
        try:
            offset = self._offset(replace(product, claims={**product.claims, "tags": tagged}))
        except ValueError as error:  # planning checks the tags of the first band only
            raise PatchError(root / ref.path, str(error)) from error
        return Patch(
            id=ref.id,
            pixels={name: harmonise(n, offset.value) for name, n in numbers.items()},
            fractions=_fractions(product, column, row),
            product=product.name,
            tile=product.tile,
            place=square_name(product.tile, column, row),
            block=ref.block,
            acquired=product.acquired,
            split=ref.split,
            baseline=product.baseline,
            offset=offset.value,
            offset_authority=offset.authority,
            epsg=grid.epsg,
            transform=grid.transform,
        )

    def _offset(self, product: Product) -> Offset:
        config = self.config
        return decide(product.name, product.claims, config.boa_offset, config.override_offset)

    def _check_dark_pixels(self, product: Product, classes: Classes | None) -> None:
        """Raise ``ValueError`` if the darkest pixels of a product contradict its offset."""
        offset = self._offset(product)
        # Every third 20 m pixel is the centre of a 60 m pixel. An overview would be wrong: JPEG
        # 2000 averages class numbers, so that cloud next to shadow becomes water.
        thinned = None if classes is None else classes[1::3, 1::3]
        size_px = _COARSE_PX if thinned is None else thinned.shape[0]
        dark = [band for band in DARK_BANDS if band in product.coarsest]
        pixels = {band: _dark_pixels(product.coarsest[band], size_px) for band in dark}
        found = contradiction(offset.value, pixels, thinned)
        if not found:
            return
        found = f"{product.name}: the offset is {offset.value} by {offset.authority}, but {found}"
        if not self.config.override_offset:
            raise ValueError(
                f"{found}; correct or set source.boa_offset, with source.override_offset=true if "
                "the pixels mislead"
            )
        _log.warning("%s; source.override_offset is true, so it is used anyway", found)

    def _squares(self, products: list[Product]) -> Iterator[PatchRef | Dropped]:
        excluded = Exclusions(self.config.select.exclude_lists)
        sizes_m = {band: g.ground_resolution_m for g in self.groups for band in g.bands}
        grounds: dict[TileGrid, Ground] = {}
        taken: dict[tuple[str, str], Flags] = {}
        found: list[tuple[Product, Ground, Flags]] = []
        for product in products:
            missing = [band for band in sizes_m if band not in product.bands]
            if missing:
                raise ValueError(
                    f"{product.path} holds no {missing[0]} at {sizes_m[missing[0]]:g} m; complete "
                    "the product, remove it, or name the bands to pack: source.bands=[...]"
                )
            grid, tagged = _tile_grid(product, self.groups[0])
            product = replace(product, claims={**product.claims, "tags": tagged})
            if grid not in grounds:
                grounds[grid] = ground_of(grid, self.config, excluded)
            ground = grounds[grid]
            good = np.ones((SIDE, SIDE), bool)
            for reason, bad in self._reasons(product, ground, excluded):
                yield from _drop(product, reason, good & bad)
                good &= ~bad
            # The parts of a tile in two datastrips are two products, of which both are needed. With
            # the day alone known, another one may be of another overpass.
            acquisition = product.acquired if "T" in product.acquired else product.name
            before = taken.setdefault((product.tile, acquisition), np.zeros((SIDE, SIDE), bool))
            yield from _drop(product, TAKEN, good & before)
            good &= ~before
            before |= good
            found.append((product, ground, good))
        excluded.log_unused()
        yield from _references(found, self.config.select.min_dates)

    def _reasons(
        self, product: Product, ground: Ground, excluded: Exclusions
    ) -> Iterator[tuple[str, Flags]]:
        """Yield reasons and the squares to drop for each, beginning with those without pixels."""
        yield from ground.unwanted.items()
        yield EXCLUDED_LIST, listed_squares(product.name, excluded)
        if np.any(list(ground.unwanted.values()), axis=0).all():
            return  # no pixel is needed of a tile without wanted ground
        classes = _classes(product)
        self._check_dark_pixels(product, classes)
        limits = self.config.filter
        outline = next(iter(product.coarsest.values()))
        valid = shares_of(read_raster(outline).pixels[0] != NODATA)
        if classes is None:
            yield NO_DATA, valid < limits.min_valid
            return
        # a pixel may be missing in some bands only; the classification then says no data
        yield NO_DATA, np.minimum(valid, 1 - shares_of(classes == 0)) < limits.min_valid
        # limits are shares of all ground; no pixel is both nodata and cloud
        yield CLOUD, shares_of(np.isin(classes, _CLOUD_CLASSES)) > limits.max_cloud
        yield SHADOW, shares_of(classes == _SHADOW_CLASS) > limits.max_shadow
        yield SNOW, shares_of(classes == _SNOW_CLASS) > limits.max_snow


def _judged(products: list[Product], select: SelectConfig) -> Iterator[tuple[Product, str]]:
    """Yield products in order of name, each with the reason if it is dropped."""
    # among all products, so that a cloudy newest processing is not replaced by an older one
    newest = newest_processing((s.tile, s.acquired, s.baseline) for s in products)
    for product in sorted(products, key=lambda product: product.name + "_"):
        reason = _against(product, select)
        if not reason and product.baseline != newest[product.tile, product.acquired]:
            reason = REPEATED
        yield product, reason


def _against(product: Product, select: SelectConfig) -> str:
    """Return why a product is not wanted, or an empty string."""
    day = product.acquired[:10]
    early = day < select.date_from  # never true for an empty date
    late = bool(select.date_to) and day > select.date_to
    if early or late or (select.months and int(day[5:7]) not in select.months):
        return OTHER_DATES
    if select.max_scene_cloud < 100:
        if product.cloud_percent is None:
            raise ValueError(
                f"{product.path}: no metadata states the product's cloud cover; set "
                "source.select.max_scene_cloud=100, patches are still filtered one by one"
            )
        if product.cloud_percent > select.max_scene_cloud:
            return f"{CLOUDY_PRODUCT} above {select.max_scene_cloud:g} %"
    return ""


def newest_processing(products: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    """Return the highest baseline by tile and time of acquisition.

    Archives hold some products in two processings: two files of one overpass. As a pair of
    dates they would teach only the difference between two versions of a program.

    Args:
        products: tile, time of acquisition and baseline of each product.
    """
    newest: dict[tuple[str, str], str] = {}
    for tile, acquired, baseline in products:
        known = newest.get((tile, acquired), baseline)
        # 99.99 is a third party's run of the processor; ESA's processing is preferred
        newest[tile, acquired] = max(known, baseline, key=lambda b: "" if b == "99.99" else b)
    return newest


def _references(
    found: list[tuple[Product, Ground, Flags]], min_dates: int
) -> Iterator[PatchRef | Dropped]:
    """Yield the good squares of all products whose places were observed on enough days."""
    # days, not times: two granules of one overpass are one date
    seen = {(place, p.acquired[:10]) for p, _, good in found for place in _places(p, good)}
    days = Counter(place for place, _ in seen)
    for product, ground, good in found:
        rare = np.zeros((SIDE, SIDE), bool)
        rare[good] = [days[place] < min_dates for place in _places(product, good)]
        yield from _drop(product, TOO_FEW_DATES, rare)
        for column, row in np.argwhere(good & ~rare).tolist():
            block, split = ground.blocks.get((column, row), ("", ""))
            patch_id = square_name(product.name, column, row)
            yield PatchRef(patch_id, product.path, split=split, block=block)


def _places(product: Product, chosen: Flags) -> tuple[str, ...]:
    return tuple(square_name(product.tile, *square) for square in np.argwhere(chosen).tolist())


def _drop(product: Product, reason: str, dropped: Flags) -> Iterator[Dropped]:
    if dropped.any():
        yield Dropped(product.path, reason, _places(product, dropped))
