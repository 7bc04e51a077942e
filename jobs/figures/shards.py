"""Draw the pages of simclr-inspect: a packed folder, and augmented views of its patches."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.config import InspectConfig
from jobs.figures.canvas import COLORS, MaxNLocator, Page, canvas
from preprocess import raster
from preprocess.bands import BANDS
from preprocess.shards import Manifest, ShardReader, open_readers, read_manifest
from preprocess.shards.format import HISTOGRAM, open_shard
from preprocess.shards.manifest import empty_histogram
from simclr.augment.operations import OPERATIONS
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, PresetName
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.data.loader import Batch, Loader

TRUE_COLOUR = ("B04", "B03", "B02")
FALSE_COLOUR = ("B08", "B04", "B03")
FALSE_COLOUR_COARSE = ("B8A", "B04", "B03")  # for products without a 10 m grid
_IN_A_ROW = 5  # patches per row of a sheet
_UNIT = 10_000  # stored value of a reflectance of 1
_CLASSES = 30  # more bars would be unreadable
_LONGEST_CLASS = 48  # characters; longer names leave no room for the bars

Image = NDArray[np.float64]


def stretch(
    patch: Mapping[str, NDArray[np.uint16]], bands: Sequence[str], manifest: Manifest
) -> Image:
    """Return an (H, W, 3) image in [0, 1]: the same stretch for all patches, nodata in magenta.

    The bands (H, W) share one grid; percentiles 1 and 99 become black and white.
    """
    channels = [_stretched(patch[band].astype(float), band, manifest) for band in bands]
    image: Image = np.stack(channels, axis=-1)
    image[np.any([patch[band] == 0 for band in bands], axis=0)] = (1, 0, 1)
    return image


def _stretched(values: Image, band: str, manifest: Manifest) -> Image:
    found = manifest.statistics[band]
    low, high = found.percentile_1, max(found.percentile_99, found.percentile_1 + 1)
    # land is dark: a gamma below 1 brightens it
    shades: Image = np.clip((values - low) / (high - low), 0, 1) ** 0.7
    return shades


def pictures_of(bands: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the red, green and blue bands of each possible picture; at least a grey one."""
    wanted = (
        ("true_colour", TRUE_COLOUR),
        ("false_colour", FALSE_COLOUR),
        ("false_colour", FALSE_COLOUR_COARSE),
    )
    found: dict[str, tuple[str, ...]] = {}
    for name, triple in wanted:
        if set(triple) <= set(bands):
            found.setdefault(name, triple)
    return found or {"grey": (bands[0],) * 3}


PAGE_NAME = "shards.html"
_LINE, _LINES = 20, 2  # characters per line, and lines, above a small picture
Pixels = dict[str, NDArray[np.uint16]]


def inspect_shards(config: InspectConfig, output: Path) -> Path:
    """Draw a packed folder on a page, with its pictures as files; return the page's path."""
    folder = Path(config.shards)
    manifest = read_manifest(folder)
    readers = open_readers(folder, manifest)
    output.mkdir(parents=True, exist_ok=True)
    kind = "simulated patches" if manifest.simulated else "patches"
    shards = f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) != 1)}"
    page = Page(f"Packed patches: {manifest.source}").lead(
        f"{manifest.rows:,} {kind} in {shards}, {len(manifest.layout.bands)} bands."
    )
    _add_sheets(page, config.patches, output, manifest, readers)
    _add_histograms(page, output, manifest, readers)
    _add_classes(page, output, manifest)
    _add_map(page, output, readers)
    return page.write(output / PAGE_NAME)


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` evenly spread row numbers; fewer if there are fewer rows."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def patch_of(readers: Sequence[ShardReader], row: int) -> tuple[Pixels, str]:
    """Return the bands of a row of all shards, repeated to the finest grid, and its id."""
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
    page: Page, count: int, output: Path, manifest: Manifest, readers: Sequence[ShardReader]
) -> None:
    patches = [patch_of(readers, int(row)) for row in spread(manifest.rows, count)]
    page.heading("Patches")
    width = min(_IN_A_ROW, len(patches))
    rows = -(-len(patches) // width)
    for name, bands in pictures_of(manifest.layout.bands).items():
        path = output / f"{name}.jpg"
        with canvas(path, 2 * width, 2.35 * rows) as figure:
            places = figure.subplots(rows, width, squeeze=False).ravel()
            for axes in places:
                axes.set_axis_off()
            for axes, (pixels, patch) in zip(places, patches, strict=False):
                axes.imshow(stretch(pixels, bands, manifest), interpolation="nearest")
                axes.set_title(_short(patch), fontsize=9, parse_math=False)  # may hold a $
        names = ", ".join(dict.fromkeys(bands))
        kind = "red, green, blue" if name != "grey" else "grey"
        page.picture(path, f"{names} as {kind}; nodata in magenta.")
    if set(TRUE_COLOUR) - set(manifest.layout.bands):
        page.text("No picture in true colour: its bands were not packed.")


def _short(name: str) -> str:
    """Wrap an id at its own separators; keep only the end of a long one, where ids differ.

    In ids of ESA's products and of BigEarthNet, every separator is an underscore.
    """
    parts = re.findall(r"[^_/]*[_/]?", name)[:-1]
    lines = [""]
    for part in reversed(parts):
        if lines[0] and len(part + lines[0]) > _LINE:
            lines.insert(0, "")
        lines[0] = part + lines[0]
    shown = lines[-_LINES:]
    return "\n".join(["…" + shown[0], *shown[1:]] if len(lines) > _LINES else shown)


def _with_wavelength(band: str) -> str:
    return f"{band}, {BANDS[band].wavelength_nm:.0f} nm" if band in BANDS else band


def _add_histograms(
    page: Page, output: Path, manifest: Manifest, readers: Sequence[ShardReader]
) -> None:
    """Append a reflectance histogram per band, and the statistics."""
    bands = manifest.layout.bands
    histogram = empty_histogram(len(bands))  # counts (bands, 65536) of stored values
    for reader in readers:
        with open_shard(reader.path) as file:
            histogram += file[HISTOGRAM][()]
    rows, path = -(-len(bands) // 4), output / "histograms.png"
    with canvas(path, 11, 1.9 * rows) as figure:
        places = figure.subplots(rows, 4, squeeze=False).ravel()
        for axes in places[len(bands) :]:
            axes.set_axis_off()
        for axes, band, counts in zip(places, bands, histogram, strict=False):
            counts[[0, -1]] = 0  # exclude nodata and saturated pixels
            values = np.flatnonzero(counts)
            axes.set_title(_with_wavelength(band), fontsize=9)
            if values.size:
                top = int(values[np.searchsorted(counts[values].cumsum(), 0.999 * counts.sum())])
                edges = np.linspace(0, top + 1, 81)
                heights, _ = np.histogram(values, edges, weights=counts[values])
                axes.stairs(heights, edges / _UNIT, fill=True, color=COLORS[0])
            axes.set_yticks([])
        figure.supxlabel("reflectance, up to its 99.9th percentile")
    page.heading("Reflectance").picture(path, "All valid pixels, counted exactly.")
    cells = [
        (
            *(_with_wavelength(band), f"{one.mean:.1f}", f"{one.std:.1f}"),
            *(one.percentile_1, one.percentile_99, f"{one.nodata_fraction:.2%}"),
        )
        for band, one in manifest.statistics.items()
    ]
    header = ("band", "mean", "std", "1 %", "99 %", "nodata")
    page.text("Stored values, reflectance x 10000:").table(header, cells)


def _add_classes(page: Page, output: Path, manifest: Manifest) -> None:
    """Append the number of patches of each class, most frequent first."""
    for label_set in manifest.layout.label_sets:
        name, counts = label_set.name, manifest.provenance["label_counts"][label_set.name]
        ranked = sorted(counts.items(), key=lambda item: -item[1])
        present = [(label, count) for label, count in ranked if count]
        page.heading(f"Classes: {name.replace('_', ' ')}")
        if not present:
            page.text("No patch is labelled.")
            continue
        labels, numbers = zip(*present[:_CLASSES], strict=True)
        names = [textwrap.shorten(label, _LONGEST_CLASS, placeholder=" …") for label in labels]
        path = output / f"classes_{name}.png"
        with canvas(path, 9, 0.8 + 0.26 * len(names)) as figure:
            axes = figure.subplots()
            bars = axes.barh(range(len(names)), numbers, color=COLORS[0])
            axes.bar_label(bars, fontsize=9, padding=2)
            axes.set_yticks(range(len(names)), names, parse_math=False)
            axes.set(ylim=(len(names) - 0.4, -0.6), xlabel="patches")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.spines[["top", "right"]].set_visible(False)
        caption = "Patches that carry each class"
        if rarer := len(present) - len(names):
            caption += f"; {rarer} rarer classes are left out"
        if absent := sum(not counts[label] for label in label_set.classes):
            caption += f"; classes without a patch: {absent}"
        page.picture(path, f"{caption}.")


def _add_map(page: Page, output: Path, readers: Sequence[ShardReader]) -> None:
    """Append a map of the patches, by split."""
    places = np.concatenate([_coordinates(reader) for reader in readers])
    splits = np.concatenate([reader.index("split") for reader in readers])
    known = ~np.isnan(places).any(axis=1)
    page.heading("Locations")
    if not known.any():
        page.text("No patch has a coordinate system: there is no map.")
        return
    places, names = places[known], np.array([split or "no split" for split in splits[known]])
    path = output / "map.png"
    with canvas(path, 8, 6) as figure:
        axes = figure.subplots()
        for number, name in enumerate(sorted(set(names.tolist()))):
            x, y = places[names == name].T
            color, label = COLORS[number % len(COLORS)], f"{name}: {len(x)}"
            axes.scatter(x, y, s=6, color=color, label=label, alpha=0.7)
        # a degree of longitude is shorter than one of latitude
        axes.set_aspect(1 / np.cos(np.radians(places[:, 1].mean())))
        axes.set(xlabel="longitude, degrees", ylabel="latitude, degrees")
        axes.legend()
        axes.grid(alpha=0.3)
    page.picture(path, f"{len(places)} patches with known coordinates, by split.")


def _coordinates(reader: ShardReader) -> NDArray[np.float64]:
    """Return longitude and latitude (rows, 2) of the patch centres, NaN where unknown."""
    epsg, transform = reader.index("epsg"), reader.index("transform")
    half = reader.layout.groups[0].size_px / 2
    x = transform[:, 0] * half + transform[:, 1] * half + transform[:, 2]
    y = transform[:, 3] * half + transform[:, 4] * half + transform[:, 5]
    places = np.full((len(epsg), 2), np.nan)
    for code in set(epsg.tolist()) - {0}:
        rows = epsg == code
        places[rows] = np.stack(raster.to_degrees(int(code), x[rows], y[rows]), axis=1)
    return places


VIEWS_PAGE_NAME = "augment.html"
_CPU = torch.device("cpu")
_MOST = 6  # more columns would be too small to see


def inspect_views(config: InspectConfig, output: Path) -> Path:
    """Draw each patch under each operation, and two views under the preset; return the page's path.

    Raises:
        ValueError: an augmentation setting is invalid.
    """
    manifest = read_manifest(Path(config.shards))
    packed = manifest.layout.bands
    bands = list(TRUE_COLOUR if set(TRUE_COLOUR) <= set(packed) else packed[:1])
    dataset = open_dataset([config.shards], bands)
    chosen = spread(dataset.num_samples, min(config.patches, _MOST))
    loader = Loader(dataset, lambda _: chosen, num_batches=1, batch_size=len(chosen), device=_CPU)
    batch = next(iter(loader))
    output.mkdir(parents=True, exist_ok=True)
    plain = ViewMaker(dataset, AugmentConfig(preset=PresetName.none), 0, _CPU)
    rows = {"as packed": plain.eval_views(batch)}
    for name in OPERATIONS:
        # size and strengths come from the settings
        single = replace(
            config.augment, preset=PresetName.list, operations=[name], couplets=[], probabilities={}
        )
        rows[name] = _views(dataset, single, config.seed, batch)[0]
    path = _draw(output / "operations.jpg", rows, bands, manifest)
    page = Page(f"Augmented views: {manifest.source}").heading("One operation at a time")
    page.picture(path, "Each column is a patch, each row one operation with random parameters.")
    first, second = _views(dataset, config.augment, config.seed, batch)
    views = {"as packed": rows["as packed"], "first view": first, "second view": second}
    path = _draw(output / "views.jpg", views, bands, manifest)
    page.heading(f"Two views of each patch: preset {config.augment.preset}")
    page.picture(path, "The two views of each patch that form a positive pair, in epoch 0.")
    return page.write(output / VIEWS_PAGE_NAME)


def _views(
    dataset: ShardDataset, config: AugmentConfig, seed: int, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    views = ViewMaker(dataset, config, seed, _CPU).training_views(batch, 0)
    return views[: len(views) // 2], views[len(views) // 2 :]


def _draw(
    path: Path, rows: dict[str, torch.Tensor], bands: Sequence[str], manifest: Manifest
) -> Path:
    """Draw each named row of normalised views (B, C, S, S), one column per patch."""
    count = len(next(iter(rows.values())))
    with canvas(path, 1.1 + 1.45 * count, 1.47 * len(rows)) as figure:
        places = figure.subplots(len(rows), count, squeeze=False)
        for line, (name, views) in zip(places, rows.items(), strict=True):
            for axes, view in zip(line, views, strict=True):
                axes.imshow(_image(view, bands, manifest), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center")
    return path


def _image(view: torch.Tensor, bands: Sequence[str], manifest: Manifest) -> Image:
    """Return a normalised view as (S, S, 3) in [0, 1], stretched as in the patch sheet."""
    channels = []
    for band, plane in zip(bands, view.numpy(), strict=True):
        found = manifest.statistics[band]
        channels.append(_stretched(plane * found.std + found.mean, band, manifest))
    return np.stack(channels if len(channels) == 3 else channels[:1] * 3, axis=-1)
