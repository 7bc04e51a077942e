"""Simulated patches: a seed comes in, a BigEarthNet v1 tree is written and read like a real one.

Every surface says what it is: a marker file in the root, ids that begin with SIM, a tag in every
GeoTIFF, product names, the manifest and the shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.bands import L2A_BANDS, native_groups
from preprocess.config import SimulatedConfig
from preprocess.progress import progress_of
from preprocess.raster import wkt_of
from preprocess.shards.atomic_io import is_abandoned, temporary_path, write_json, write_text
from preprocess.shards.format import ShardLayout
from preprocess.shards.patch import Patch, PatchRef
from preprocess.simulation import (
    MAX_PATCHES,
    PATCH_PX,
    PATCHES_PER_SCENE,
    SIDE_PATCHES,
    SPLITS,
    Land,
    Scene,
    labels_of,
    make_land,
    observe,
    scene_of,
)
from preprocess.sources.base import read_splits
from preprocess.sources.bigearthnet import TREE, layout_of, patch_folders, read_patch, tree_of
from preprocess.template import simulated_template
from preprocess.tiling import PATCH_SIDE_M

MARKER = "SIMULATED.json"
NOTICE = "These patches were synthesised by a program. They show no place on Earth."
_VERSION = 1  # another number means other pixels for the same seed
_LISTS = {split: f"splits/{split}.csv" for split in dict.fromkeys(SPLITS)}

Place = tuple[int, int]  # column and row within a region
_PLACES: list[Place] = [(c, r) for r in range(SIDE_PATCHES) for c in range(SIDE_PATCHES)]


@dataclass(frozen=True, slots=True)
class Simulated:
    """The source ``simulated``."""

    config: SimulatedConfig

    @property
    def simulated(self) -> bool:
        """Never measured."""
        return True

    def layout(self) -> ShardLayout:
        """Return the layout of a BigEarthNet v1 tree."""
        return layout_of(self.config.bands)

    def discover(self) -> Iterator[PatchRef]:
        """Write the tree unless it is there, then yield its patch folders."""
        root = Path(self.config.root)
        write_tree(root, self.config.num_patches, self.config.seed)
        splits = read_splits({split: str(root / name) for split, name in _LISTS.items()})
        for name in patch_folders(root):
            yield PatchRef(name, name, splits[name])

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one patch folder as a v1 patch."""
        return read_patch(tree_of(Path(self.config.root)), ref, layout)


def write_tree(root: Path, num_patches: int, seed: int) -> None:
    """Write a tree of simulated patches with split lists; a finished or begun one is completed.

    Patch i is the same for every ``num_patches`` above i. Ground keeps its split on all dates.

    Raises:
        ValueError: more patches than there is ground for, or the root holds anything else.
    """
    if num_patches > MAX_PATCHES:
        raise ValueError(
            f"source.num_patches is {num_patches}; there is ground for {MAX_PATCHES} patches"
        )
    # what the marker remembers: the same words must mean the same pixels when a run goes on
    settings = {"notice": NOTICE, "version": _VERSION, "num_patches": num_patches, "seed": seed}
    if is_complete(root, settings):
        return
    write_json(root / MARKER, {**settings, "complete": False})
    tree = root / TREE
    tree.mkdir(exist_ok=True)
    for leftover in filter(is_abandoned, tree.glob(".*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)  # another part may be at it too
    names: dict[str, list[str]] = {split: [] for split in _LISTS}
    with progress_of(num_patches, "simulate") as advance:
        for split, name in _write_patches(tree, num_patches, seed):
            names[split].append(name)
            advance(1)
    for split, path in _LISTS.items():
        write_text(root / path, "".join(f"{name}\n" for name in sorted(names[split])))
    os.sync()  # the marker must not outlive the files it speaks of
    write_json(root / MARKER, {**settings, "complete": True})


def is_complete(root: Path, settings: dict[str, Any]) -> bool:
    """Say whether the root holds all of this simulation; refuse it if it holds another thing."""
    marker = root / MARKER
    if not marker.is_file():
        # a hidden file may be the marker that another part is just about to put in place
        held = sorted(path.name for path in root.glob("[!.]*"))
        if held and not marker.is_file():
            raise ValueError(
                f"source.root {root} is not empty (it holds {held[0]}) and holds no simulation; "
                "give an empty or new folder"
            )
        return False
    found = json.loads(marker.read_bytes())
    complete = bool(found.pop("complete"))
    if found != settings:
        changed = [f"{key} {found.get(key)}" for key in settings if found.get(key) != settings[key]]
        raise ValueError(
            f"source.root {root} holds another simulation (of {', '.join(changed)}); "
            "give another folder or remove it"
        )
    return complete


def _write_patches(tree: Path, num_patches: int, seed: int) -> Iterator[tuple[str, str]]:
    """Write the patches that are not there yet, scene by scene; yield split and name of all."""
    for number in range(-(-num_patches // PATCHES_PER_SCENE)):
        scene = scene_of(number)
        wanted = min(PATCHES_PER_SCENE, num_patches - number * PATCHES_PER_SCENE)
        places = {_name(scene, place): place for place in _PLACES[:wanted]}
        missing = [name for name in places if not (tree / name).is_dir()]
        if missing:
            land = _land(seed, scene.region)
            pixels = observe(seed, scene, land)
            for name in missing:
                _write_patch(tree / name, scene, places[name], (land, pixels))
        for name in places:
            yield scene.split, name


# both seasons of a region follow each other
_land = lru_cache(maxsize=1)(make_land)


def _name(scene: Scene, place: Place) -> str:
    column, row = scene.corner
    return f"SIM_MSIL2A_{_stamp(scene)}_{column + place[0]}_{row + place[1]}"


def _write_patch(
    folder: Path,
    scene: Scene,
    place: Place,
    seen: tuple[Land, dict[str, npt.NDArray[np.uint16]]],
) -> None:
    """Write one patch folder, whole or not at all."""
    land, pixels = seen
    column, row = scene.corner
    x = scene.tile.x + (column + place[0]) * PATCH_SIDE_M
    y = scene.tile.y - (row + place[1]) * PATCH_SIDE_M
    temporary = temporary_path(folder)
    temporary.mkdir()
    for group, bands in native_groups(L2A_BANDS).items():
        resolution = int(group[1:])
        size_px = PATCH_SIDE_M // resolution
        template = simulated_template(size_px, resolution, scene.tile.epsg)
        cut = pixels[group][(slice(None), *_window(place, size_px))]
        for band, values in zip(bands, cut, strict=True):
            path = temporary / f"{folder.name}_{band}.tif"
            path.write_bytes(template.render(values, x, y))
    labels = labels_of(land.cover[_window(place, PATCH_PX)])
    metadata = json.dumps(_metadata(scene, labels, (x, y)))
    (temporary / f"{folder.name}_labels_metadata.json").write_text(metadata, encoding="utf-8")
    settle(temporary, folder)


def settle(temporary: Path, folder: Path) -> None:
    """Put a folder in its place, unless another part of the job has put the same one there."""
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # another part of the same job was faster; its files are the same
        shutil.rmtree(temporary)


def _window(place: Place, size_px: int) -> tuple[slice, slice]:
    column, row = place
    return (
        slice(row * size_px, (row + 1) * size_px),
        slice(column * size_px, (column + 1) * size_px),
    )


def _stamp(scene: Scene) -> str:
    day, spelled, _ = scene.tile.stamps[scene.season]
    return f"{2017 + scene.year}{day}T{spelled}"


def _metadata(scene: Scene, labels: list[str], corner: tuple[int, int]) -> dict[str, Any]:
    x, y = corner
    day, _, clock = scene.tile.stamps[scene.season]
    year = 2017 + scene.year
    stamp = f"{year}{day}T{clock}"
    return {
        "labels": labels,
        "coordinates": {"ulx": x, "uly": y, "lrx": x + PATCH_SIDE_M, "lry": y - PATCH_SIDE_M},
        "projection": wkt_of(scene.tile.epsg),
        "tile_source": f"SIM_MSIL1C_{_stamp(scene)}_N0205_R000_T{scene.tile.name}_{stamp}.SAFE",
        "acquisition_date": f"{year}-{day[:2]}-{day[2:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}",
    }
