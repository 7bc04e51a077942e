"""Whole products on the grid of their tile: settings come in, chosen squares and patches go out.

Two passes: over products (date, cloud cover, processing), then over the squares of each (place,
nodata, clouds, shadow, snow). What is left out is yielded with its reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.grid import SIDE, Flags, TileGrid, place_name, shares_of
from preprocess.harmonise import Offset, decide
from preprocess.patch import Patch, PatchRef
from preprocess.product_config import FilterConfig, ProductsConfig, SelectConfig
from preprocess.raster import read_classes, read_raster, session
from preprocess.selection import Dropped
from preprocess.shards.layout import NODATA, GroupLayout, ShardLayout
from preprocess.sources.ground import EXCLUDED_LIST, Ground, ground_of
from preprocess.sources.names import read_exclusions
from preprocess.sources.scene import (
    SCL,
    Scene,
    doubt,
    read_square,
    refuse_incomplete,
    tile_grid,
)

SIMULATED_PREFIX = "SIM_"  # of the names that source.form=safe gives
OTHER_DATES = "acquired outside the dates"
CLOUDY_PRODUCT = "cloud cover of the product"
REPEATED = "another processing of the same acquisition is taken"
TOO_FEW_DATES = "places seen on too few dates"
NO_DATA, CLOUD, SHADOW, SNOW = "nodata", "cloud", "cloud shadow", "snow"
_CLOUD_CLASSES, _SHADOW_CLASS, _SNOW_CLASS = (8, 9, 10), 3, 11  # SCL

_log = logging.getLogger(__name__)

Groups = tuple[GroupLayout, ...]


@dataclass(frozen=True, slots=True)
class Products:
    """A source of products.

    Attributes:
        config: what is selected.
        groups: band groups of a patch.
        find: returns the paths of all products under a root, relative to it.
        describe: reads what is known of one product: root, path, band groups.
    """

    config: ProductsConfig
    groups: Groups
    find: Callable[[Path], list[str]]
    describe: Callable[[Path, str, Groups], Scene]

    @property
    def simulated(self) -> bool:
        """Measured by Sentinel-2, unless a product's name says that a program made it."""
        paths = self.find(Path(self.config.root))
        return any(Path(path).name.startswith(SIMULATED_PREFIX) for path in paths)

    def layout(self) -> ShardLayout:
        """Return the band groups, and what the scene classification says of each patch."""
        return ShardLayout(self.groups, fraction_sets=(SCL,))

    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Yield wanted squares in the order of their ids, and between them what is dropped."""
        root = Path(self.config.root)
        paths = self.find(root)
        with session():
            scenes = [self.describe(root, path, self.groups) for path in paths]
            chosen, dropped = choose_scenes(scenes, self.config.select)
            yield from dropped
            yield from self._squares(chosen)

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one square."""
        # described anew (and remembered there): a part of an array has only the plan's references
        scene = self.describe(Path(self.config.root), ref.path, layout.groups)
        return read_square(scene, ref, layout.groups, self._offset(scene))

    def _offset(self, scene: Scene) -> Offset:
        config = self.config
        return decide(scene.product, scene.claims, config.boa_offset, config.override_offset)

    def _listen_to_pixels(self, scene: Scene) -> None:
        found = doubt(scene, self._offset(scene))
        if found and self.config.override_offset:
            _log.warning("%s; source.override_offset is true, so it is taken all the same", found)
        elif found:
            raise ValueError(
                f"{found}; correct or set source.boa_offset, with source.override_offset=true if "
                "the pixels mislead"
            )

    def _squares(self, scenes: list[Scene]) -> Iterator[PatchRef | Dropped]:
        excluded = read_exclusions(self.config.select.exclude_lists)
        grounds: dict[TileGrid, Ground] = {}
        found: list[tuple[Scene, Ground, Flags]] = []
        for scene in scenes:
            refuse_incomplete(scene, self.groups)
            grid = tile_grid(scene, self.groups)
            if grid not in grounds:
                grounds[grid] = ground_of(grid, self.config, excluded)
            ground = grounds[grid]
            good = np.ones((SIDE, SIDE), bool)
            for reason, bad in self._reasons(scene, ground, excluded):
                yield from _drop(scene, reason, good & bad)
                good &= ~bad
            found.append((scene, ground, good))
        yield from _references(found, self.config.select.min_dates)

    def _reasons(
        self, scene: Scene, ground: Ground, excluded: set[str]
    ) -> Iterator[tuple[str, Flags]]:
        """Yield what speaks against squares of a product, the reasons without pixels first."""
        yield from ground.unwanted.items()
        yield EXCLUDED_LIST, _listed(scene, excluded)
        if np.any(list(ground.unwanted.values()), axis=0).all():
            return  # no pixel need be read of a tile without wanted ground
        self._listen_to_pixels(scene)
        yield from filter_reasons(scene, self.config.filter)


def choose_scenes(scenes: list[Scene], select: SelectConfig) -> tuple[list[Scene], list[Dropped]]:
    """Return the products to cut, in the order of their names, and the others with the reason."""
    # among all that are there, so that a clouded newest processing is not replaced by an older one
    chosen, dropped = [], []
    newest = _newest_processing(scenes)
    for scene in sorted(scenes, key=lambda scene: scene.product + "_"):
        reason = _against(scene, select)
        if not reason and scene.baseline != newest[scene.tile, scene.acquired]:
            reason = REPEATED
        if reason:
            dropped.append(Dropped(scene.path, reason))
        else:
            chosen.append(scene)
    return chosen, dropped


def filter_reasons(scene: Scene, limits: FilterConfig) -> Iterator[tuple[str, Flags]]:
    """Yield squares that pixels speak against: nodata first, then cloud, shadow and snow."""
    valid = np.ones((SIDE, SIDE), np.float32)
    if scene.outline:
        valid = shares_of(read_raster(scene.outline).pixels[0] != NODATA)
    if scene.scl is None:
        yield NO_DATA, valid < limits.min_valid
        return
    classes = read_classes(scene.scl)
    # a pixel may be missing in some bands only; the classification then has no answer for it
    yield NO_DATA, np.minimum(valid, 1 - shares_of(classes == 0)) < limits.min_valid
    # limits are on shares of all ground: what is both nodata and cloud cannot be
    yield CLOUD, shares_of(np.isin(classes, _CLOUD_CLASSES)) > limits.max_cloud
    yield SHADOW, shares_of(classes == _SHADOW_CLASS) > limits.max_shadow
    yield SNOW, shares_of(classes == _SNOW_CLASS) > limits.max_snow


def _against(scene: Scene, select: SelectConfig) -> str:
    """Say why a product is not wanted; empty if it is."""
    early = bool(select.date_from) and scene.day < select.date_from
    late = bool(select.date_to) and scene.day > select.date_to
    if early or late or (select.months and int(scene.day[5:7]) not in select.months):
        return OTHER_DATES
    if select.max_scene_cloud < 100:
        if scene.cloud_percent is None:
            raise ValueError(
                f"{scene.path}: no metadata tells the cloud cover of the product; set "
                "source.select.max_scene_cloud=100, patches are judged one by one all the same"
            )
        if scene.cloud_percent > select.max_scene_cloud:
            return f"{CLOUDY_PRODUCT} above {select.max_scene_cloud:g} %"
    return ""


def _newest_processing(scenes: list[Scene]) -> dict[tuple[str, str], str]:
    """Return the highest baseline of every acquisition of a tile.

    Archives hold scenes in two processings: two files, one look of the satellite. As a pair of
    dates they would teach nothing but the difference between two versions of a program.
    """
    newest: dict[tuple[str, str], str] = {}
    for scene in scenes:
        key = (scene.tile, scene.acquired)
        newest[key] = max(newest.get(key, scene.baseline), scene.baseline, key=_esa_first)
    return newest


def _esa_first(baseline: str) -> str:
    # 99.99 is somebody's own run of the processor, which ESA's own goes before
    return "" if baseline == "99.99" else baseline


def _references(
    found: list[tuple[Scene, Ground, Flags]], min_dates: int
) -> Iterator[PatchRef | Dropped]:
    """Yield the good squares of all products whose places were seen on enough days."""
    # days, not times: two granules of one overpass are no two dates
    seen = {(place, scene.day) for scene, _, good in found for place in _places(scene, good)}
    days = Counter(place for place, _ in seen)
    for scene, ground, good in found:
        rare = np.zeros((SIDE, SIDE), bool)
        for column, row in np.argwhere(good).tolist():
            rare[column, row] = days[place_name(scene.tile, column, row)] < min_dates
        yield from _drop(scene, TOO_FEW_DATES, rare)
        for column, row in np.argwhere(good & ~rare).tolist():
            block, split = ground.block(column, row)
            patch_id = f"{scene.product}_{column:02d}_{row:02d}"
            yield PatchRef(patch_id, scene.path, split=split, block=block)


def _places(scene: Scene, chosen: Flags) -> tuple[str, ...]:
    return tuple(place_name(scene.tile, *square) for square in np.argwhere(chosen).tolist())


def _drop(scene: Scene, reason: str, dropped: Flags) -> Iterator[Dropped]:
    if dropped.any():
        yield Dropped(scene.path, reason, _places(scene, dropped))


def _listed(scene: Scene, excluded: set[str]) -> Flags:
    """Say of each square whether a list names its id; places are judged with the ground."""
    listed = np.zeros((SIDE, SIDE), bool)
    for column, row in np.ndindex(SIDE, SIDE) if excluded else ():
        listed[column, row] = f"{scene.product}_{column:02d}_{row:02d}" in excluded
    return listed
