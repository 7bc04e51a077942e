"""Small real files for tests: GeoTIFFs, BigEarthNet trees and packed shards, made on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from preprocess.bands import BANDS, L2A_BANDS, native_groups
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.format import GroupLayout, LabelSet, Patch, ShardLayout
from preprocess.shards.manifest import ShardOrigin, build_manifest
from preprocess.shards.writer import write_shard
from preprocess.sources.simulated import SimulatedConfig

V1_NAME = "S2A_MSIL2A_20170613T101031_{column}_{row}"


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says, as a program that was wrong would have written it."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["sha256"]
    change(data)
    content = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    path.write_text(json.dumps({**data, "sha256": hashlib.sha256(content).hexdigest()}))


def write_geotiff(path: Path, pixels: np.ndarray, *, resolution_m: float = 10.0, **profile) -> Path:
    """Write (bands, height, width) pixels; ``profile`` overrides what rasterio is told."""
    count, height, width = pixels.shape
    settings = {
        "driver": "GTiff",
        "dtype": pixels.dtype.name,
        "count": count,
        "height": height,
        "width": width,
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(resolution_m, 0, 404400, 0, -resolution_m, 5342400),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **{**settings, **profile}) as dataset:
        dataset.write(pixels)
    return path


def bigearthnet_v1(
    root: Path,
    num_patches: int = 3,
    *,
    seed: int = 0,
    labels: Sequence[str] = ("Pastures", "Water bodies"),
    bands: Sequence[str] = L2A_BANDS,
) -> list[Path]:
    """Write a BigEarthNet v1 tree of random pixels; return its patch folders, sorted by name."""
    random = np.random.default_rng(seed)
    folders = []
    for number in range(num_patches):
        name = V1_NAME.format(column=number, row=7)
        folder = root / name
        for band in bands:
            resolution = BANDS[band].ground_resolution_m
            size_px = 1200 // resolution
            pixels = random.integers(1, 9000, (1, size_px, size_px), np.uint16)
            write_geotiff(folder / f"{name}_{band}.tif", pixels, resolution_m=resolution)
        metadata = {
            "labels": list(labels),
            "coordinates": {"ulx": 404400, "uly": 5342400, "lrx": 405600, "lry": 5341200},
            "projection": "",
            "tile_source": "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE",
            "acquisition_date": "2017-06-13 10:10:31",
        }
        (folder / f"{name}_labels_metadata.json").write_text(json.dumps(metadata))
        folders.append(folder)
    return sorted(folders)


def class_folders(
    root: Path,
    classes: Sequence[str] = ("Forest", "River"),
    *,
    per_class: int = 3,
    num_bands: int = 13,
    size_px: int = 64,
    seed: int = 0,
) -> list[Path]:
    """Write multi-band GeoTIFFs in one folder a class; return them, sorted."""
    random = np.random.default_rng(seed)
    return sorted(
        write_geotiff(
            root / name / f"{name}_{number}.tif",
            random.integers(1, 9000, (num_bands, size_px, size_px), np.uint16),
        )
        for name in classes
        for number in range(1, per_class + 1)
    )


def packed_simulated(
    folder: Path, num_patches: int = 64, seed: int = 0, shard_size_mib: float = 4.0
) -> Path:
    """Simulate and pack patches with labels and splits; return the folder of shards.

    From 40 patches on all three splits are there, from 160 on in each of the four tiles.
    """
    source = SimulatedConfig(root=str(folder / "simulated"), num_patches=num_patches, seed=seed)
    output = folder / "shards"
    config = PackConfig(source=source, output=str(output), shard_size_mib=shard_size_mib)
    pack(config, progress=False)
    return output


def packed_arrays(
    folder: Path,
    num_patches: int = 64,
    *,
    size_px: int = 12,
    bands: Sequence[str] = L2A_BANDS,
    classes: Sequence[str] = ("field", "forest", "town", "water"),
    seed: int = 0,
    num_shards: int = 2,
    native: bool = True,
    source: str = "arrays",
    splits: Sequence[str] = ("train", "train", "validation", "test"),
    codec: str = "none",
    num_dates: int = 1,
    ground: str = "",
) -> Path:
    """Pack random patches whose band means depend on their class; return the folder.

    Args:
        folder: becomes the folder of the shards.
        num_patches: in all; place i has class ``i % len(classes)`` of label set ``labels``, and
            the i-th of the splits, each repeated for a whole round of classes.
        size_px: side on the finest grid; with ``native`` a multiple of 6.
        bands: stored bands.
        classes: class names of the label set ``labels``.
        seed: of means and noise.
        num_shards: shards of equal size, the last may be shorter.
        native: one group a resolution (10, 20, 60 m); else one group ``b10`` for all bands.
        source: name in the manifest.
        splits: dealt to the patches in turn.
        codec: how pixels are compressed.
        num_dates: patches of one place, a month apart; they follow each other.
        ground: what the names of places begin with, if not with the source.
    """
    groups = native_groups(bands) if native else {"b10": list(bands)}
    layout = ShardLayout(
        tuple(
            GroupLayout(name, tuple(members), size_px * 10 // int(name[1:]), float(name[1:]))
            for name, members in groups.items()
        ),
        (LabelSet("labels", "single", tuple(classes)),),
    )
    random = np.random.default_rng(seed)
    means = random.integers(500, 4000, (len(classes), len(layout.bands)))
    patches = [
        Patch(
            id=f"{source}-{number:06d}",
            pixels=_noisy(random, layout, means[place % len(classes)]),
            labels={"labels": (classes[place % len(classes)],)},
            split=splits[place // len(classes) % len(splits)],
            place=f"{ground or source}_{place:06d}",
            acquired=f"2017-{date + 1:02d}-05T10:00:00Z",
        )
        for number in range(num_patches)
        for place, date in [divmod(number, num_dates)]
    ]
    rows = -(-num_patches // num_shards)
    origin = ShardOrigin(source, simulated=True)
    entries = [
        write_shard(folder / f"shard-{k:05d}.h5", layout, part, len(part), origin, codec)
        for k in range(num_shards)
        if (part := patches[k * rows : (k + 1) * rows])
    ]
    build_manifest(folder, origin, layout, [entry for entry in entries if entry]).write(folder)
    return folder


def _noisy(
    random: np.random.Generator, layout: ShardLayout, means: np.ndarray
) -> dict[str, np.ndarray]:
    mean_of = dict(zip(layout.bands, means, strict=True))
    pixels = {}
    for group in layout.groups:
        level = np.array([mean_of[band] for band in group.bands])[:, None, None]
        noise = random.normal(0, 200, group.shape)
        pixels[group.name] = np.clip(level + noise, 1, 10000).astype(np.uint16)
    return pixels
