"""Turn JPEG or PNG images, or arrays of an .npz file, into GeoTIFFs that ``source=geotiff`` packs.

Images keep their folders within the input, which name the classes; an array is (N, bands, H, W).
Since 0 means nodata in shards, it is written only for ``--nodata``, never by accident.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.warp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

SUFFIXES = (".jpg", ".jpeg", ".png")
Pixels = npt.NDArray[np.generic]  # (bands, H, W)


def main(words: Sequence[str] | None = None) -> int:
    """Convert all images of the input; return the exit code."""
    options = _parser().parse_args(words)
    bands = options.bands.split(",")
    try:
        table = read_table(options.table, options.folder) if options.table else {}
        written: set[Path] = set()
        placed = outside = 0
        for name, pixels in read_input(options.input, options.array, options.names):
            row = table.get(PurePosixPath(name).name, {})
            outside += bool(table) and not row
            inside = PurePosixPath(row.get(options.folder, ""), f"{name}.tif")
            path = options.output / inside
            if inside.is_absolute() or ".." in inside.parts:
                raise ValueError(f"{options.input} holds {inside}, which leaves the output folder")
            if path in written:
                raise ValueError(f"{options.input} holds {name} twice; give each a name of its own")
            centre = position(row)
            write_geotiff(path, as_numbers(name, pixels, bands, options), bands, centre)
            written.add(path)
            placed += bool(centre)
        if not written:
            raise ValueError(f"no image in {options.input}: sought {', '.join(SUFFIXES)}")
    except (ValueError, OSError, RasterioError, tarfile.TarError) as error:
        sys.stderr.write(f"images_to_geotiff: {error}\n")
        return 2
    left = f", {outside} of them not in {options.table}" if outside else ""
    grid = "" if placed == len(written) else "source.any_grid=true "
    sys.stdout.write(
        f"{len(written)} files in {options.output}{left}; pack them with\n"
        f"simclr-pack source=geotiff {shlex.quote(f'source.root={options.output}')} "
        f"source.file_bands=[{options.bands}] source.size_px={pixels.shape[-1]} "
        f"source.boa_offset=0 {grid}output=shards\n"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path, help="folder or .tar of images, or an .npz file")
    parser.add_argument("output", type=Path, help="folder for the GeoTIFFs")
    parser.add_argument("--bands", required=True, help="of the channels: B04,B03,B02 for RGB")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every value")
    parser.add_argument("--nodata", type=float, help="value that marks nodata, written as 0")
    parser.add_argument("--array", default="X", help="name of the array of an .npz file")
    parser.add_argument("--names", default="", help="array of the patches' names; else numbers")
    parser.add_argument(
        "--table", type=Path, help="CSV with name, and latitude and longitude of the centre"
    )
    parser.add_argument("--folder", default="", help="column of the table: an outermost folder")
    return parser


def read_table(path: Path, folder: str) -> dict[str, dict[str, str]]:
    """Return the rows of a CSV keyed by their column ``name``."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = ["name", *([folder] if folder else [])]
    missing = [column for column in wanted if rows and column not in rows[0]]
    if missing or not rows:
        raise ValueError(f"{path} has no column {', '.join(missing or wanted)}")
    by_name = {row["name"]: row for row in rows}
    if len(by_name) < len(rows):
        raise ValueError(f"{path} has {len(rows)} rows for {len(by_name)} names; list each once")
    return by_name


def read_input(path: Path, array: str, names: str) -> Iterator[tuple[str, Pixels]]:
    """Yield the name, without suffix, and the pixels (bands, H, W) of each image or patch."""
    if path.suffix == ".npz":
        yield from _read_arrays(path, array, names)
        return
    for inside, content in _read_files(path):
        if inside.suffix.lower() in SUFFIXES:
            yield str(inside.with_suffix("")), _decode(content())


def _read_files(path: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes]]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            yield PurePosixPath(file.relative_to(path).as_posix()), file.read_bytes
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name), content.read


def _read_arrays(path: Path, array: str, names: str) -> Iterator[tuple[str, Pixels]]:
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in (array, names) if name and name not in file]
        if missing:
            raise ValueError(f"{path} holds no {missing[0]}; it holds {', '.join(file)}")
        patches = file[array]
        held = file[names] if names else [f"{n:06d}" for n in range(len(patches))]
    if patches.ndim != 4 or len(held) != len(patches):
        raise ValueError(f"{array} is {patches.shape}; give (N, bands, H, W), and N names")
    yield from zip(map(str, held), patches, strict=True)


def _decode(content: bytes) -> Pixels:
    with warnings.catch_warnings(), MemoryFile(content) as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open() as image:
            pixels: Pixels = image.read()
    return pixels


def as_numbers(
    name: str, pixels: Pixels, bands: Sequence[str], options: argparse.Namespace
) -> npt.NDArray[np.uint16]:
    """Return the values to store: value x scale, rounded, at least 1; 0 for nodata.

    Raises:
        ValueError: the number of channels differs from that of bands, or a scaled value is not
            finite or out of range.
    """
    if len(pixels) != len(bands):
        raise ValueError(f"{name} has {len(pixels)} channels, --bands names {len(bands)}")
    values = pixels.astype(np.float64) * options.scale
    nodata = np.zeros(pixels.shape, bool) if options.nodata is None else pixels == options.nodata
    seen = values[~nodata]
    if not np.isfinite(seen).all() or seen.min(initial=0) < 0 or seen.max(initial=0) > 65534:
        raise ValueError(
            f"{name} holds values from {pixels.min()} to {pixels.max()}, times {options.scale:g}; "
            "give a --scale that leads to 0 to 65534, and name the mark of --nodata"
        )
    return np.where(nodata, 0, np.rint(np.where(nodata, 1, values)).clip(1)).astype(np.uint16)


def position(row: dict[str, str]) -> tuple[float, float] | None:
    """Return latitude and longitude of a row of the table, or None without them."""
    if not row.get("latitude") or not row.get("longitude"):
        return None
    latitude, longitude = float(row["latitude"]), float(row["longitude"])
    if not (-80 <= latitude <= 84 and -180 <= longitude <= 180):
        raise ValueError(f"{row['name']} lies at {latitude}, {longitude}, in no UTM zone")
    return latitude, longitude


def write_geotiff(
    path: Path,
    numbers: npt.NDArray[np.uint16],
    bands: Sequence[str],
    centre: tuple[float, float] | None,
    pixel_m: float = 10.0,
) -> None:
    """Write one patch atomically, in the UTM zone of its centre if that is known."""
    count, height, width = numbers.shape
    where = {}
    if centre:
        latitude, longitude = centre
        zone = int((longitude + 180) % 360 // 6) + 1
        crs = f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
        (x,), (y,) = rasterio.warp.transform("EPSG:4326", crs, [longitude], [latitude])[:2]
        corner = from_origin(x - width * pixel_m / 2, y + height * pixel_m / 2, pixel_m, pixel_m)
        where = {"crs": crs, "transform": corner}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    profile = {"count": count, "height": height, "width": width, "dtype": "uint16", **where}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(part, "w", driver="GTiff", nodata=0, **profile) as file:
            file.write(numbers)
            file.descriptions = tuple(bands)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
