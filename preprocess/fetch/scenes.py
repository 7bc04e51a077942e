"""Fetch scenes of a STAC search into one folder each: plan exact bytes, then fetch in parallel.

A scene is assembled in a hidden folder and renamed when all of its bands are there, so that packing
never sees half a scene. ``fetch.json`` beside its rasters records its state.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from preprocess.bands import BANDS
from preprocess.config import FetchConfig
from preprocess.fetch.cog import Layout, blocks_of, overview_for, plan_copy, read_layout
from preprocess.fetch.http import (
    FetchError,
    Http,
    PartialFile,
    RemoteChangedError,
    RemoteFile,
    Span,
    StoppedError,
    UnreachableError,
    chunks,
    read_json,
)
from preprocess.fetch.stac import NO_GROUND, SCL, Area, Scene, area_of, search
from preprocess.progress import progress_of
from preprocess.radiometry import DARK_BANDS
from preprocess.raster import keep_squares
from preprocess.shards.atomic_io import atomic_path, fsync, write_json
from preprocess.tiling import PATCH_SIDE_M, TILE_M, Flags, TileGrid, is_corner_of_tile

STATE = "fetch.json"
STAGING = ".fetch"
OUTLINE_M = 60  # ground resolution of the coarsest bands
_HEAD_BYTES = 32 * 2**10  # contains the directory of a COG and the offsets of its blocks
_VERSIONS = 3  # attempts for a file that changes while it is fetched
_PROBE_SPANS, _PROBE_BYTES = 2, 2**20  # reads per stream, and their size, to measure the rate

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Copy:
    """Content of a copy of a remote raster: a new header if it is cut, then spans of the file."""

    remote: RemoteFile
    layout: Layout
    header: bytes
    spans: list[Span]

    @property
    def size(self) -> int:
        """Bytes of the copy."""
        return len(self.header) + sum(span.length for span in self.spans)


def plan_copy_of(http: Http, url: str, squares: Flags | None, band: str) -> Copy:
    """Return the copy to make of the raster of a band or ``SCL``: ground of squares, or all.

    Raise ``ValueError`` if the raster does not cover a whole tile.
    """
    remote, head = http.open(url, _HEAD_BYTES)

    def read(offset: int, length: int) -> bytes:
        """Read from the first bytes where they suffice, else from the server."""
        end = offset + length
        return head[offset:end] if end <= len(head) else http.read(remote, offset, length)

    layout = read_layout(read)
    width, height, pixel_m = layout.image.width, layout.image.height, layout.resolution_m
    if (pixel_m * width, width) != (TILE_M, height) or PATCH_SIDE_M % pixel_m:
        raise ValueError(f"{band} has {width} x {height} pixels of {pixel_m:g} m: no whole tile")
    # Packing checks the offset by dark pixels of the entire scene, from the classification and
    # overviews of these bands. Without them it would see less than in the entire scene.
    if squares is None or band == SCL:
        return Copy(remote, layout, b"", chunks(remote.size))
    coarse_m = 60 * pixel_m / BANDS[band].ground_resolution_m
    overview = overview_for(layout, coarse_m) if band in DARK_BANDS else None
    header, spans = plan_copy(layout, blocks_of(layout, squares, PATCH_SIDE_M), overview)
    if any(span.offset + span.length > remote.size for span in spans):
        raise ValueError(f"{band} lists blocks beyond its end")
    return Copy(remote, layout, header, spans)


class SceneFolder:
    """A scene to be fetched, and the folder it is fetched into.

    Attributes:
        num_squares: maximum number of patches; clouds and nodata leave fewer.
        sizes: bytes of each band, of the planned or the existing copy.
        missing: bands that are not there yet.
        done: whether the scene is there, complete and as planned.
        sample: a span of one of its files, used to measure the rate.
    """

    def __init__(
        self, scene: Scene, squares: Flags, corner: tuple[int, float, float], config: FetchConfig
    ) -> None:
        self.scene, self.num_squares = scene, int(squares.sum())
        self.final = Path(config.output, scene.id)
        # not the scene's own name, or packing would find it
        self.staging = Path(config.output, STAGING, scene.id.replace("_", "-"))
        self.sizes: dict[str, int] = {}
        self.missing = set(scene.urls)
        self.done = False
        self.sample: tuple[RemoteFile, Span] | None = None
        self._wanted = None if config.whole_scenes else squares
        self._lock = threading.Lock()
        self._identity = {
            "item": scene.id,
            "updated": (scene.item.get("properties") or {}).get("updated", ""),
            "corner": list(corner),
            "whole": config.whole_scenes,
            "squares": self.num_squares,
            "squares_crc32": zlib.crc32(np.packbits(squares).tobytes()),
        }
        state = read_json(self.staging / STATE)
        self._bands: dict[str, Any] = state.pop("bands", {})
        if state != self._identity:
            self._bands = {}

    @property
    def size(self) -> int:
        """Bytes of all bands."""
        return sum(self.sizes.values())

    def plan(self, http: Http) -> None:
        """Determine which bands are there, and the bytes to copy per band."""
        if self._is_complete():
            return
        samples: list[tuple[RemoteFile, Span]] = []
        for band, url in self.scene.urls.items():
            copy = plan_copy_of(http, url, self._wanted, band)
            self.sizes[band] = copy.size
            if self._has(band, copy.remote):
                self.missing.discard(band)
            samples += [(copy.remote, span) for span in copy.spans]
        self.sample = max(samples, key=lambda sample: sample[1].length, default=None)

    def fetch(
        self, http: Http, bands: Executor, ranges: Executor, advance: Callable[[int], object]
    ) -> None:
        """Fetch the missing bands, and rename the scene to its final name.

        Each thread of ``bands`` plans and finishes one band and waits for its byte ranges, which
        threads of ``ranges`` fetch; ``advance`` is called with numbers of bytes received.
        """
        urls = self.scene.urls
        for _ in range(_VERSIONS):
            jobs = [
                bands.submit(_steady, partial(self._fetch_band, http, band, ranges, advance))
                for band in sorted(self.missing)
            ]
            for job in jobs:
                job.result()
            # a scene republished in the meantime must not be half old, half new
            changed = [band for band in urls if not self._has(band, http.open(urls[band])[0])]
            if not changed:
                self._finish()
                return
            _log.warning("%s: %s changed on the server", self.final.name, ", ".join(changed))
            self.missing.update(changed)
        raise FetchError(f"{self.final.name}: its files change while they are fetched")

    def _is_complete(self) -> bool:
        """Return whether the scene is there, complete and as planned; if so, update attributes."""
        if not self.final.exists():
            return False
        state = read_json(self.final / STATE)
        if not state:
            raise FetchError(
                f"{self.final} is there, but simclr-fetch did not write it (it has no {STATE}); "
                "move it away or give another output"
            )
        bands: dict[str, Any] = state.pop("bands")
        sound = all(_size(self.final / f"{b}.tif") == entry["bytes"] for b, entry in bands.items())
        if sound and state == self._identity and bands.keys() == self.scene.urls.keys():
            self.done, self.missing = True, set()
            self.sizes = {band: entry["bytes"] for band, entry in bands.items()}
            return True
        why = "area, bands or item changed" if sound else "a file of it is missing or cut"
        _log.warning("%s is fetched again, for this area alone: %s", self.final.name, why)
        return False

    def _has(self, band: str, remote: RemoteFile) -> bool:
        """Return whether a band is there in the server's current version."""
        entry = self._bands.get(band, {})
        same = (entry.get("size"), entry.get("etag")) == (remote.size, remote.etag)
        return same and _size(self.staging / f"{band}.tif") == entry["bytes"]

    def _fetch_band(
        self, http: Http, band: str, ranges: Executor, advance: Callable[[int], object]
    ) -> None:
        """Fetch one raster and record it in the state."""
        path = self.staging / f"{band}.tif"
        copy = plan_copy_of(http, self.scene.urls[band], self._wanted, band)
        part = PartialFile(path, copy.remote, copy.header)
        part.fetch_missing(http, copy.spans, ranges, advance)
        if self._wanted is None or band == SCL or BANDS[band].ground_resolution_m != OUTLINE_M:
            part.finish()
        else:
            # Packing finds nodata in the coarsest bands. Their blocks contain ground beyond the
            # squares, which the blocks of finer bands do not contain.
            with atomic_path(path) as temporary:
                side_px = int(PATCH_SIDE_M / copy.layout.resolution_m)
                keep_squares(part.data, temporary, self._wanted, side_px)
            part.discard()
        entry = {"size": copy.remote.size, "etag": copy.remote.etag, "bytes": _size(path)}
        with self._lock:
            self._bands = dict(sorted({**self._bands, band: entry}.items()))
            write_json(self.staging / STATE, {**self._identity, "bands": self._bands})
            self.missing.discard(band)

    def _finish(self) -> None:
        self.sizes = {band: entry["bytes"] for band, entry in self._bands.items()}
        write_json(self.staging / f"{self.scene.id}.json", self.scene.item)
        for path in self.staging.glob(".*"):  # leftovers of killed processes
            path.unlink()
        fsync(self.staging)
        if self.final.exists():
            old = self.staging.with_suffix(".old")
            shutil.rmtree(old, ignore_errors=True)
            self.final.rename(old)
        self.staging.rename(self.final)
        fsync(self.final.parent)
        megabytes = self.size / 1e6
        _log.info("%s: %d patches at most, %.1f MB", self.scene.id, self.num_squares, megabytes)


def plan_scenes(
    http: Http, config: FetchConfig
) -> tuple[list[Scene], list[SceneFolder], dict[str, str]]:
    """Return all scenes of a search, the folders of those taken, and errors by scene.

    Reads the headers of all rasters, about 0.4 MB per scene; finished scenes cost nothing.
    """
    area = area_of(config)
    scenes = search(http, config, area)
    judged = {scene.id: scene for scene in scenes}
    folders, failed = [], {}

    def plan(scene: Scene) -> SceneFolder | FetchError | str:
        """Plan a scene; return the reason if it cannot be fetched."""
        try:
            return _steady(lambda: _plan_scene(http, scene, config, area))
        except (UnreachableError, StoppedError):
            raise
        except FetchError as error:
            return error  # a failure of one scene must not stop the others

    with http.threads(config.streams) as pool:
        taken = [scene for scene in scenes if not scene.reason]
        for scene, planned in zip(taken, pool.map(plan, taken), strict=True):
            if isinstance(planned, SceneFolder):
                folders.append(planned)
            elif isinstance(planned, FetchError):
                failed[scene.id] = str(planned)
            else:
                judged[scene.id] = replace(scene, reason=planned)
    return list(judged.values()), folders, failed


def _plan_scene(http: Http, scene: Scene, config: FetchConfig, area: Area) -> SceneFolder | str:
    """Return a scene's planned folder, or the reason why it is not taken."""
    try:
        corner = read_json(Path(config.output, scene.id, STATE)).get("corner")
        if not corner:
            layout = plan_copy_of(http, scene.urls[SCL], None, SCL).layout
            corner = layout.epsg, layout.x, layout.y
            if not layout.epsg or not is_corner_of_tile(layout.x, layout.y):
                where = f"EPSG {layout.epsg} {layout.x:g}, {layout.y:g}"
                raise ValueError(f"{where} is not a corner of a tile")
        squares = area.squares(TileGrid(scene.tile, *corner), config.one_owner)
        if not squares.any():
            return NO_GROUND
        folder = SceneFolder(scene, squares, corner, config)
        folder.plan(http)
    except ValueError as error:
        return f"cannot be read: {error}"
    return folder


def fetch_scenes(http: Http, folders: list[SceneFolder], config: FetchConfig) -> dict[str, str]:
    """Fetch planned scenes; return errors by failed scene after all others are done."""
    todo = [folder for folder in folders if not folder.done]
    total = sum(folder.sizes[band] for folder in todo for band in folder.missing)
    failed = {}
    with (
        progress_of(total, "fetch", bool(todo), "B") as advance,
        http.threads(config.streams) as ranges,
        http.threads(config.streams) as bands,
        http.threads(config.streams) as pool,
    ):
        jobs = {pool.submit(f.fetch, http, bands, ranges, advance): f.scene.id for f in todo}
        for job in as_completed(jobs):
            try:
                job.result()
            except UnreachableError:  # no further scene can be fetched
                raise
            except (FetchError, ValueError) as error:
                failed[jobs[job]] = str(error)
    return failed


def measure_rate(http: Http, folders: Iterable[SceneFolder], streams: int) -> float:
    """Return the rate of all streams together in bytes per second, from reading a few megabytes."""
    samples = [folder.sample for folder in folders if folder.sample]
    if not samples:
        return 0.0
    remote, span = max(samples, key=lambda sample: sample[1].length)
    length = min(_PROBE_BYTES, span.length)
    started = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        count = streams * _PROBE_SPANS
        read = sum(pool.map(lambda _: len(http.read(remote, span.offset, length)), range(count)))
    return read / max(time.monotonic() - started, 1e-6)


def _steady(action: Callable[[], _Result]) -> _Result:
    """Run an action; repeat it a few times if a file changes on the server."""
    for _ in range(_VERSIONS - 1):
        try:
            return action()
        except RemoteChangedError as error:
            _log.warning("%s; it is fetched anew", error)
    return action()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
