"""A packed folder comes in; one page goes out with all that a person would look at first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.figures.page import Page
from jobs.figures.shards import (
    TRUE_COLOUR,
    draw_classes,
    draw_histograms,
    draw_map,
    draw_sheet,
    pictures_of,
    stretch,
)
from jobs.inspection import InspectConfig
from preprocess import raster
from preprocess.shards import Manifest, ShardReader, open_readers, read_manifest
from preprocess.shards.layout import HISTOGRAM
from preprocess.shards.reader import open_shard
from preprocess.statistics import empty_histogram

PAGE_NAME = "shards.html"
_TITLE = 24  # letters above a small picture
Pixels = dict[str, NDArray[np.uint16]]


def inspect_shards(config: InspectConfig, output: Path) -> Path:
    """Write pictures of a packed folder and the page that holds them; return the page."""
    folder = Path(config.shards)
    manifest = read_manifest(folder)
    readers = open_readers(folder, manifest)
    output.mkdir(parents=True, exist_ok=True)
    kind = "simulated patches" if manifest.simulated else "patches"
    page = Page(f"Packed: {manifest.source}").text(
        f"{manifest.rows} {kind} in {len(manifest.shards)} shards, "
        f"{len(manifest.layout.bands)} bands."
    )
    _add_sheets(page, config, output, manifest, readers)
    histogram = empty_histogram(len(manifest.layout.bands))
    for reader in readers:
        with open_shard(reader.path) as file:
            histogram += file[HISTOGRAM][()]
    path = draw_histograms(output / "histograms.png", histogram, manifest.layout.bands)
    page.heading("Reflectance").picture(path, "All valid pixels, counted exactly.")
    _add_statistics(page, manifest)
    _add_classes(page, output, manifest)
    _add_map(page, output, readers)
    return page.write(output / PAGE_NAME)


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` row numbers, evenly spread over all; fewer if there are not so many."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def patch_of(readers: Sequence[ShardReader], row: int) -> tuple[Pixels, str]:
    """Return the bands of a row of all shards, on the finest grid by repetition, and its id."""
    for reader in readers:
        if row < reader.entry.rows:
            break
        row -= reader.entry.rows
    finest = reader.layout.groups[0].size_px
    pixels, groups = {}, reader.read(row)
    for group in reader.layout.groups:
        times = finest // group.size_px
        for band, plane in zip(group.bands, groups[group.name], strict=True):
            pixels[band] = np.kron(plane, np.ones((times, times), np.uint16))
    return pixels, str(reader.index("id")[row])


def _add_sheets(
    page: Page,
    config: InspectConfig,
    output: Path,
    manifest: Manifest,
    readers: Sequence[ShardReader],
) -> None:
    rows = spread(manifest.rows, config.patches)
    patches = [patch_of(readers, int(row)) for row in rows]
    titles = [_short(name) for _, name in patches]
    page.heading("Patches")
    for name, bands in pictures_of(manifest.layout.bands).items():
        images = [stretch(pixels, bands, manifest) for pixels, _ in patches]
        path = draw_sheet(output / f"{name}.png", images, titles)
        spoken = ", ".join(dict.fromkeys(bands))
        kind = "red, green, blue" if name != "grey" else "grey"
        page.picture(path, f"{spoken} as {kind}; nodata in magenta.")
    if set(TRUE_COLOUR) - set(manifest.layout.bands):
        page.text("No picture in true colour: its bands were not packed.")


def _short(name: str) -> str:
    """Return the end of an id, which tells patches apart; the dots say that it began before."""
    return name if len(name) <= _TITLE else f"…{name[1 - _TITLE :]}"


def _add_statistics(page: Page, manifest: Manifest) -> None:
    names = ("band", "mean", "std", "1 %", "99 %", "nodata")
    rows = [
        (
            band,
            f"{one.mean:.1f}",
            f"{one.std:.1f}",
            one.percentile_1,
            one.percentile_99,
            f"{one.nodata_fraction:.2%}",
        )
        for band, one in manifest.statistics.items()
    ]
    page.text("Stored values, reflectance x 10000:").table(names, rows)


def _add_classes(page: Page, output: Path, manifest: Manifest) -> None:
    for name, counts in manifest.provenance["label_counts"].items():
        path = draw_classes(output / f"classes_{name}.png", counts, name)
        page.heading(f"Classes: {name}").picture(path, "Patches that carry each class.")


def _add_map(page: Page, output: Path, readers: Sequence[ShardReader]) -> None:
    parts = [_places(reader) for reader in readers]
    places = np.concatenate(parts)
    known = ~np.isnan(places).any(axis=1)
    page.heading("Places")
    if not known.any():
        page.text("No patch has a coordinate system: there is no map.")
        return
    splits = np.concatenate([reader.index("split") for reader in readers])
    path = draw_map(output / "map.png", places[known], splits[known].tolist())
    page.picture(path, f"{int(known.sum())} patches whose place is known, by split.")


def _places(reader: ShardReader) -> NDArray[np.float64]:
    """Return longitude and latitude of each row's centre, NaN where unknown: (rows, 2)."""
    epsg, transform = reader.index("epsg"), reader.index("transform")
    half = reader.layout.groups[0].size_px / 2
    x = transform[:, 0] * half + transform[:, 1] * half + transform[:, 2]
    y = transform[:, 3] * half + transform[:, 4] * half + transform[:, 5]
    places = np.full((len(epsg), 2), np.nan)
    for code in set(epsg.tolist()) - {0}:
        rows = epsg == code
        places[rows] = np.stack(raster.to_degrees(int(code), x[rows], y[rows]), axis=1)
    return places
