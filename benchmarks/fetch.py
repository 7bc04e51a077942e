"""Fetching scenes, compared with a bare parallel range reader and GDAL's remote file reader.

Usage: python benchmarks/fetch.py. Two scenes at full resolution, 1.2 GB each, are created in
/dev/shm if it exists, and served on the loopback by a separate process. Each measurement runs in
a separate process, so that peak memory is measured separately; all use eight streams.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
import requests
from report import Claim, Report, Timing, measured, measured_by_child

from preprocess.bands import BANDS, L2A_BANDS
from preprocess.config import FetchConfig
from preprocess.fetch import fetch

# after importing the project: tests/ also has a folder named preprocess
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from stac_server import Server, item_of

STREAMS, RANGE, PIECE = 8, 8 * 2**20, 256 * 2**10
ROUNDS = 3
SCENES = ("S2A_10SFH_20190715_0_L2A", "S2A_10SFH_20190720_0_L2A")
EPSG, CORNER = 32610, (600000, 4200000)
EVERYWHERE = [-123.0, 36.0, -119.0, 39.0]
SAMPLE = ("B01", "B02", "B05")  # for GDAL, which needs a minute for an entire scene
SHARE = 0.8  # minimum share of the bare reader's rate
MEMORY_MIB = 500

Measured = dict[str, float]


def main() -> None:
    """Create the scenes, measure in child processes, print and save the report."""
    if sys.argv[1:2] == ["child"]:
        json.dump(_measure(*sys.argv[2:]), sys.stdout)
        return
    home = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=home, prefix="fetch-") as folder:
        root = Path(folder) / "served"
        make_scene(root / SCENES[0])
        shutil.copytree(root / SCENES[0], root / SCENES[1], copy_function=os.link)
        with _served(root, Path(folder) / "items.json") as url:
            found: dict[str, list[Measured]] = {name: [] for name in WORK}
            for _ in range(ROUNDS):  # alternating, so that other load affects all of them
                for name, rounds in found.items():
                    rounds.append(measured_by_child(name, url, folder))
    _report(found)


def make_scene(folder: Path) -> None:
    """Write a scene whose pixels compress by half, about as well as Sentinel-2's."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    first: dict[int, Path] = {}
    for band in [*L2A_BANDS, "SCL"]:
        size_m = 20 if band == "SCL" else BANDS[band].ground_resolution_m
        path, key = folder / f"{band}.tif", 0 if band == "SCL" else size_m
        if key in first:
            os.link(first[key], path)  # readers cannot tell the difference
            continue
        first[key] = path
        side = 109_800 // size_m
        if band == "SCL":
            pixels = np.full((side, side), 4, np.uint8)
        else:
            pixels = np.clip(random.normal(1000, 90, (side, side)), 1, 9000).astype(np.uint16)
        with rasterio.open(
            path, "w", driver="COG", width=side, height=side, count=1, dtype=pixels.dtype.name,
            crs=f"EPSG:{EPSG}", nodata=0, blocksize=1024, compress="deflate", level=1,
            transform=rasterio.Affine(size_m, 0, CORNER[0], 0, -size_m, CORNER[1]),
        ) as dataset:  # fmt: skip
            dataset.write(pixels, 1)


@contextmanager
def _served(root: Path, items: Path) -> Iterator[str]:
    bands = [*L2A_BANDS, "SCL"]
    found = [item_of(scene, "10SFH", scene.split("_")[2], bands) for scene in SCENES]
    items.write_text(json.dumps(found))
    command = [sys.executable, sys.modules[Server.__module__].__file__, str(root), str(items)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:  # else after a failure Popen would wait for the server forever
            server.kill()


def _urls(url: str, scenes: Sequence[str] = SCENES) -> list[str]:
    return [f"{url}/files/{scene}/{band}.tif" for scene in scenes for band in [*L2A_BANDS, "SCL"]]


def _bare(url: str, folder: Path, *, keep: bool) -> int:
    """Read all files by ranges, and discard or write the bytes."""
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=STREAMS))
    sizes, outputs = {}, {}
    for u in _urls(url):
        answer = session.get(u, headers={"Range": "bytes=0-0"})
        sizes[u] = int(answer.headers["Content-Range"].split("/")[1])
        if keep:
            outputs[u] = os.open(folder / u.replace("/", "-"), os.O_CREAT | os.O_WRONLY)
    ranges = [(u, at) for u, size in sizes.items() for at in range(0, size, RANGE)]

    def read(job: tuple[str, int]) -> int:
        u, at = job
        last = min(at + RANGE, sizes[u]) - 1
        done = 0
        with session.get(u, headers={"Range": f"bytes={at}-{last}"}, stream=True) as response:
            for piece in response.iter_content(PIECE):
                if keep:
                    os.pwrite(outputs[u], piece, at + done)
                done += len(piece)
        return done

    with ThreadPoolExecutor(STREAMS) as pool:
        return sum(pool.map(read, ranges))


def _gdal(url: str, folder: Path) -> int:
    """Read one band per resolution through GDAL, and write it with the same compression."""
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": 128 * 2**20}

    def read(u: str) -> None:
        with rasterio.Env(**options), rasterio.open(f"/vsicurl/{u}") as source:
            profile = {**source.profile, "driver": "GTiff"}
            with rasterio.open(folder / Path(u).name, "w", **profile, zlevel=1) as copy:
                for _, window in source.block_windows(1):
                    copy.write(source.read(1, window=window), 1, window=window)

    with rasterio.Env(**options), ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(read, [u for u in _urls(url, SCENES[:1]) if Path(u).stem in SAMPLE]))
    return sum(path.stat().st_size for path in folder.iterdir())


def _fetch(url: str, folder: Path, *, whole: bool) -> int:
    config = FetchConfig(
        url=f"{url}/stac", output=str(folder), boxes=[EVERYWHERE], whole_scenes=whole,
        streams=STREAMS, one_owner=False,
    )  # fmt: skip
    return fetch(config).bytes


FORGOTTEN = "bare range reader, bytes forgotten"
BARE = "bare range reader, bytes written"
WINDOWS = "simclr-fetch, windows of the whole tile"
WHOLE = "simclr-fetch, whole scenes"
GDAL = "GDAL's vsicurl, three bands, decoded and written again"
WORK: dict[str, Callable[[str, Path], int]] = {
    FORGOTTEN: lambda url, folder: _bare(url, folder, keep=False),
    BARE: lambda url, folder: _bare(url, folder, keep=True),
    WINDOWS: lambda url, folder: _fetch(url, folder, whole=False),
    WHOLE: lambda url, folder: _fetch(url, folder, whole=True),
    GDAL: _gdal,
}


def _measure(name: str, url: str, home: str) -> Measured:
    folder = Path(tempfile.mkdtemp(dir=home))
    found = measured(lambda: WORK[name](url, folder) / 1e6)
    shutil.rmtree(folder)
    return found


def _report(found: dict[str, list[Measured]]) -> None:
    title = "Fetching two scenes from a server on the loopback, eight streams"
    report = Report("fetch", title, "MB", BARE, packages=("requests", "rasterio"))
    for name, rounds in found.items():
        wall, cpu = (tuple(entry[key] for entry in rounds) for key in ("wall_s", "cpu_s"))
        report.timings.append(Timing(name, rounds[0]["found"], wall, cpu))
    timing = {entry.name: entry for entry in report.timings}
    for name in (WINDOWS, WHOLE):
        share = timing[name].times(timing[BARE])
        report.claims.append(Claim(f"{name}: share of the bare reader", share, at_least=SHARE))
        peak = max(entry["peak_mib"] for entry in found[name])
        report.claims.append(Claim(f"{name}: peak memory, MiB", peak, at_most=MEMORY_MIB))
    for name, entry in timing.items():
        seconds = float(np.median(entry.cpu_s)) / entry.amount * 1000
        report.claims.append(Claim(f"{name}: CPU seconds per GB", seconds))
    report.notes.append(
        "The server shares the machine's cores. Each process finds and plans the scene itself, and "
        "makes every file durable; the bare reader does neither."
    )
    report.write()


if __name__ == "__main__":
    main()
