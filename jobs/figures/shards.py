"""Packed shards come in; contact sheets, histograms, class counts and a map go out as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.figures.canvas import COLORS, canvas
from preprocess.shards import Manifest

TRUE_COLOUR = ("B04", "B03", "B02")
FALSE_COLOUR = ("B08", "B04", "B03")
FALSE_COLOUR_COARSE = ("B8A", "B04", "B03")  # of products without a grid of 10 m
_UNIT = 10_000  # stored values of a reflectance of 1
_CLASSES = 30  # more bars than this cannot be read

Image = NDArray[np.float64]


def stretch(
    patch: Mapping[str, NDArray[np.uint16]], bands: Sequence[str], manifest: Manifest
) -> Image:
    """Return an (H, W, 3) image from 0 to 1: the same stretch for all patches, nodata in magenta.

    Args:
        patch: band to pixels (H, W), on one grid.
        bands: for red, green and blue.
        manifest: its percentiles 1 and 99 become black and white.
    """
    channels = []
    for band in bands:
        found = manifest.statistics[band]
        low, high = found.percentile_1, max(found.percentile_99, found.percentile_1 + 1)
        channels.append(np.clip((patch[band].astype(float) - low) / (high - low), 0, 1))
    image: Image = np.stack(channels, axis=-1) ** 0.7  # land is dark: a gamma shows its shades
    image[np.any([patch[band] == 0 for band in bands], axis=0)] = (1, 0, 1)
    return image


def pictures_of(bands: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return bands for red, green, blue of the pictures that are possible; at least a grey one."""
    wanted: dict[str, tuple[tuple[str, ...], ...]] = {
        "true_colour": (TRUE_COLOUR,),
        "false_colour": (FALSE_COLOUR, FALSE_COLOUR_COARSE),
    }
    possible = {
        name: [triple for triple in triples if set(triple) <= set(bands)]
        for name, triples in wanted.items()
    }
    found = {name: triples[0] for name, triples in possible.items() if triples}
    return found or {"grey": (bands[0],) * 3}


def draw_sheet(path: Path, images: Sequence[Image], titles: Sequence[str], width: int = 8) -> Path:
    """Draw images in rows of ``width``, each under its title."""
    width = min(width, len(images))
    rows = -(-len(images) // width)
    with canvas(path, 1.5 * width, 1.7 * rows) as figure:
        places = figure.subplots(rows, width, squeeze=False).ravel()
        for axes in places:
            axes.set_axis_off()
        for axes, image, title in zip(places, images, titles, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(title, fontsize=5)
    return path


def draw_histograms(path: Path, histogram: NDArray[np.int64], bands: Sequence[str]) -> Path:
    """Draw how often each reflectance occurs, a panel for each band.

    Args:
        path: PNG.
        histogram: counts (bands, 65536) of stored values.
        bands: names.
    """
    columns = 4
    rows = -(-len(bands) // columns)
    with canvas(path, 11, 1.9 * rows) as figure:
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in places[len(bands) :]:
            axes.set_axis_off()
        for number, band in enumerate(bands):
            counts = histogram[number].copy()
            counts[[0, -1]] = 0  # nodata and saturated pixels are no reflectance
            values = np.flatnonzero(counts)
            places[number].set_title(band, fontsize=9)
            if values.size:
                top = int(values[np.searchsorted(counts[values].cumsum(), 0.999 * counts.sum())])
                edges = np.linspace(0, top + 1, 81)
                heights, _ = np.histogram(values, edges, weights=counts[values])
                places[number].stairs(heights, edges / _UNIT, fill=True, color=COLORS[0])
            places[number].set_yticks([])
        figure.supxlabel("reflectance, up to its 99.9th percentile")
    return path


def draw_classes(path: Path, counts: Mapping[str, int], title: str) -> Path:
    """Draw how many patches carry each class, the most frequent ones first."""
    shown = sorted(counts.items(), key=lambda item: -item[1])[:_CLASSES]
    with canvas(path, 9, 1 + 0.24 * len(shown)) as figure:
        axes = figure.subplots()
        bars = axes.barh([name[:60] for name, _ in shown], [n for _, n in shown], color=COLORS[0])
        axes.bar_label(bars, fontsize=8, padding=2)
        axes.invert_yaxis()
        axes.set_xlabel("patches")
        rest = len(counts) - len(shown)
        axes.set_title(title + (f" ({rest} rarer classes left out)" if rest else ""))
        axes.spines[["top", "right"]].set_visible(False)
    return path


def draw_map(path: Path, places: NDArray[np.float64], splits: Sequence[str]) -> Path:
    """Draw where patches lie, by split.

    Args:
        path: PNG.
        places: (n, 2) longitude and latitude in degrees.
        splits: (n) their splits; an empty one is called "no split".
    """
    names = np.array([split or "no split" for split in splits])
    with canvas(path, 8, 6) as figure:
        axes = figure.subplots()
        for number, name in enumerate(sorted(set(names.tolist()))):
            chosen = places[names == name]
            label = f"{name}: {len(chosen)}"
            color = COLORS[number % len(COLORS)]
            axes.scatter(chosen[:, 0], chosen[:, 1], s=6, color=color, label=label, alpha=0.7)
        # a degree of longitude is shorter than one of latitude
        axes.set_aspect(1 / np.cos(np.radians(places[:, 1].mean())))
        axes.set_xlabel("longitude, degrees")
        axes.set_ylabel("latitude, degrees")
        axes.legend()
        axes.grid(alpha=0.3)
    return path
