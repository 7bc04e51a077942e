"""Scenes of a STAC search, into one folder each: planned by exact bytes, then fetched in parallel.

A scene is put together in a hidden folder and gets its name when all of its bands are there, so
that packing never meets half a scene. ``fetch.json`` beside its rasters is its state.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from preprocess.bands import BANDS
from preprocess.config import FetchConfig
from preprocess.fetch.cog import Layout, blocks_of, overview_for, plan_copy, read_layout
from preprocess.fetch.http import (
    FetchError,
    Http,
    RemoteChangedError,
    RemoteFile,
    StoppedError,
    UnreachableError,
)
from preprocess.fetch.partial import PartialFile, Span, chunks, read_json
from preprocess.fetch.stac import NO_GROUND, SCL, Area, Scene
from preprocess.progress import progress_of
from preprocess.radiometry import DARK_BANDS
from preprocess.raster import keep_squares
from preprocess.shards.atomic_io import atomic_path, fsync, write_json
from preprocess.tiling import PATCH_SIDE_M, SIDE, TILE_M, Flags, TileGrid, is_corner_of_tile

STATE = "fetch.json"
STAGING = ".fetch"
OUTLINE_M = 60  # ground resolution of the coarsest bands
_HEAD_BYTES = 32 * 2**10  # holds the directory of a COG and the places of its blocks
_VERSIONS = 3  # of a file that changes again and again while it is fetched
_PROBE_SPANS, _PROBE_BYTES = 2, 2**20  # for each stream, to measure the rate

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Copy:
    """What is copied of a remote raster: a new header, if it is cut, then spans of the file."""

    remote: RemoteFile
    layout: Layout
    header: bytes
    spans: list[Span]

    @property
    def size(self) -> int:
        """Bytes of the copy."""
        return len(self.header) + sum(span.length for span in self.spans)


@dataclass(slots=True)
class ScenePlan:
    """A scene that is to be fetched.

    Attributes:
        scene: the scene.
        squares: that hold ground of interest, (columns, rows).
        corner: EPSG code, easting and northing of its tile's upper left corner.
        sizes: bytes to copy of each band.
        sample: a span of one of its files, with which the rate is measured.
        done: whether it is there, whole and as planned.
        missing: bands that are not there yet.
        failed: why it could not be planned; empty if it could.
    """

    scene: Scene
    squares: Flags
    corner: tuple[int, float, float]
    sizes: dict[str, int] = field(default_factory=dict)
    sample: tuple[RemoteFile, Span] | None = None
    done: bool = False
    missing: set[str] = field(default_factory=set)
    failed: str = ""

    @property
    def num_squares(self) -> int:
        """Patches at most; clouds and nodata leave fewer."""
        return int(self.squares.sum())

    @property
    def size(self) -> int:
        """Bytes of all bands."""
        return sum(self.sizes.values())


def plan_scenes(
    http: Http, scenes: list[Scene], config: FetchConfig, area: Area
) -> tuple[list[Scene], list[ScenePlan]]:
    """Return all scenes, with reasons added, and the plans of those that are taken.

    Reads the headers of all rasters, about 0.4 MB a scene; scenes that are there cost nothing.

    Raises:
        FetchError: a header cannot be fetched.
    """
    judged: dict[str, Scene] = {scene.id: scene for scene in scenes}
    plans = []
    pool = ThreadPoolExecutor(config.streams)
    try:
        taken = [scene for scene in scenes if not scene.reason]
        for scene, plan in zip(
            taken,
            pool.map(lambda s: _plan_or_failure(http, s, config, area), taken),
            strict=True,
        ):
            if isinstance(plan, str):
                judged[scene.id] = replace(scene, reason=plan)
            else:
                plans.append(plan)
    except BaseException:
        http.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return list(judged.values()), plans


def fetch_scenes(http: Http, plans: list[ScenePlan], config: FetchConfig) -> list[str]:
    """Fetch planned scenes; return what failed, a line each, when all others are there.

    Raises:
        FetchError: the server cannot be reached any more.
        OSError: the disk is full, for example.
    """
    todo = [plan for plan in plans if not plan.done and not plan.failed]
    total = sum(plan.sizes[band] for plan in todo for band in plan.missing)
    with (
        progress_of(total, "fetch", bool(todo), "B") as advance,
        ThreadPoolExecutor(config.streams) as ranges,
        # one for each band that is worked on: it plans and finishes, and waits for its ranges
        ThreadPoolExecutor(config.streams) as pool,
    ):
        transfer = _Transfer(http, ranges, advance)
        jobs: dict[Future[None], str] = {}
        for plan in todo:
            folder = _SceneFolder(plan, config)
            for band in sorted(plan.missing):
                jobs[pool.submit(folder.fetch_band, band, transfer)] = plan.scene.id
            if not plan.missing:  # killed between its last band and its name
                folder.finish()
        failed: dict[str, str] = {}
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except UnreachableError:  # no scene can be fetched any more
                    raise
                except (FetchError, ValueError) as error:
                    failed.setdefault(jobs[job], f"{jobs[job]}: {error}")
        except BaseException:
            http.stop.set()  # threads end at their next piece
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [failed[key] for key in sorted(failed)]


def measure_rate(http: Http, plans: Iterable[ScenePlan], streams: int) -> float:
    """Return bytes per second of all streams together, from a few megabytes that are read."""
    samples = [plan.sample for plan in plans if plan.sample and not plan.done]
    if not samples:
        return 0.0
    remote, span = max(samples, key=lambda sample: sample[1].length)
    length = min(_PROBE_BYTES, span.length)
    started = time.monotonic()
    with ThreadPoolExecutor(streams) as pool:
        count = streams * _PROBE_SPANS
        read = sum(pool.map(lambda _: len(http.read(remote, span.offset, length)), range(count)))
    return read / max(time.monotonic() - started, 1e-6)


def remote_copy(http: Http, url: str, squares: Flags | None, band: str) -> Copy:
    """Return what is to be copied of a remote raster.

    Args:
        http: for the requests.
        url: of the raster.
        squares: whose ground is copied; None copies all of it.
        band: of the raster, or ``SCL``.

    Raises:
        FetchError: it cannot be read.
        ValueError: it is no raster of a whole tile; the message tells what it is.
    """
    remote, head = http.open(url, _HEAD_BYTES)

    def read(offset: int, length: int) -> bytes:
        """Return a byte range, from the head where it holds it."""
        if offset + length <= len(head):
            return head[offset : offset + length]
        return http.read(remote, offset, length)

    layout = read_layout(read)
    width, height = layout.image.width, layout.image.height
    side_m = layout.resolution_m * width
    if (side_m, width) != (TILE_M, height) or PATCH_SIDE_M % layout.resolution_m:
        raise ValueError(
            f"{band} has {width} x {height} pixels of {layout.resolution_m:g} m: no whole tile"
        )
    # Packing judges the offset by dark pixels of the whole scene, from the classification and
    # overviews of these bands. Without them it would see less than in the whole scene.
    if squares is None or band == SCL:
        return Copy(remote, layout, b"", chunks(remote.size))
    coarse_m = 60 * layout.resolution_m / BANDS[band].ground_resolution_m
    overview = overview_for(layout, coarse_m) if band in DARK_BANDS else None
    header, spans = plan_copy(layout, blocks_of(layout, squares, PATCH_SIDE_M), overview)
    if any(span.offset + span.length > remote.size for span in spans):
        raise ValueError(f"{band} lists blocks beyond its end")
    return Copy(remote, layout, header, spans)


def _steady(action: Callable[[], _Result]) -> _Result:
    """Run an action anew when a file changes on the server meanwhile, a few times."""
    for _ in range(_VERSIONS - 1):
        try:
            return action()
        except RemoteChangedError as error:
            _log.warning("%s; it is fetched anew", error)
    return action()


def _plan_or_failure(http: Http, scene: Scene, config: FetchConfig, area: Area) -> ScenePlan | str:
    """Plan a scene; what is wrong with it alone does not hold up the others."""
    try:
        return _steady(lambda: _plan_scene(http, scene, config, area))
    except (UnreachableError, StoppedError):
        raise
    except FetchError as error:
        nothing = np.zeros((SIDE, SIDE), bool)
        return ScenePlan(scene, nothing, (0, 0.0, 0.0), failed=f"{scene.id}: {error}")


def _plan_scene(http: Http, scene: Scene, config: FetchConfig, area: Area) -> ScenePlan | str:
    """Return the plan of a scene, or the reason why there is none."""
    try:
        state = read_json(Path(config.output) / scene.id / STATE)
        corner = state.get("corner") or _corner(
            remote_copy(http, scene.urls[SCL], None, SCL).layout
        )
        squares = area.squares(TileGrid(scene.tile, *corner), config.one_owner)
        if not squares.any():
            return NO_GROUND
        plan = ScenePlan(scene, squares, corner, missing=set(scene.urls))
        folder = _SceneFolder(plan, config)
        if folder.is_complete():
            return plan
        longest: list[tuple[RemoteFile, Span]] = []
        for band, url in scene.urls.items():
            copy = remote_copy(http, url, None if config.whole_scenes else squares, band)
            plan.sizes[band] = copy.size
            if folder.has(band, copy.remote):
                plan.missing.discard(band)
            longest += [(copy.remote, span) for span in copy.spans]
        plan.sample = max(longest, key=lambda sample: sample[1].length, default=None)
    except ValueError as error:
        return f"cannot be read: {error}"
    return plan


def _corner(layout: Layout) -> tuple[int, float, float]:
    """Return EPSG code, easting and northing of the upper left corner.

    Raises:
        ValueError: no tile begins there.
    """
    if not layout.epsg or not is_corner_of_tile(layout.x, layout.y):
        raise ValueError(f"EPSG {layout.epsg} {layout.x:g}, {layout.y:g} is not a corner of a tile")
    return layout.epsg, layout.x, layout.y


@dataclass(frozen=True, slots=True)
class _Transfer:
    """What a band is fetched with: requests, the threads of ranges, and the count of bytes."""

    http: Http
    ranges: Executor
    advance: Callable[[int], object]


class _SceneFolder:
    """The folder of a scene while it is filled."""

    def __init__(self, plan: ScenePlan, config: FetchConfig) -> None:
        output = Path(config.output)
        self.plan = plan
        self.final = output / plan.scene.id
        # not the scene's own name, by which packing would find it
        self.staging = output / STAGING / plan.scene.id.replace("_", "-")
        self._whole = config.whole_scenes
        self._lock = threading.Lock()
        self._identity = {
            "item": plan.scene.id,
            "updated": (plan.scene.item.get("properties") or {}).get("updated", ""),
            "corner": list(plan.corner),
            "whole": self._whole,
            "squares": plan.num_squares,
            "squares_crc32": zlib.crc32(np.packbits(plan.squares).tobytes()),
        }
        state = read_json(self.staging / STATE)
        kept = state if _without_bands(state) == self._identity else {}
        self.state: dict[str, Any] = kept or {**self._identity, "bands": {}}

    def is_complete(self) -> bool:
        """Say whether the scene is there, whole and as planned; if so, the plan notes it.

        Raises:
            FetchError: a folder of that name is not ours.
        """
        if not self.final.exists():
            return False
        state = read_json(self.final / STATE)
        if not state:
            raise FetchError(
                f"{self.final} is there, but simclr-fetch did not write it (it has no {STATE}); "
                "move it away or give another output"
            )
        bands: dict[str, Any] = state["bands"]
        same = (_without_bands(state), bands.keys()) == (
            self._identity,
            self.plan.scene.urls.keys(),
        )
        sound = all(_size(self.final / f"{b}.tif") == entry["bytes"] for b, entry in bands.items())
        if same and sound:
            self.plan.done, self.plan.missing = True, set()
            self.plan.sizes = {band: entry["bytes"] for band, entry in bands.items()}
            return True
        why = "area, bands or item changed" if sound else "a file of it is missing or cut"
        _log.warning("%s is fetched again: %s", self.final.name, why)
        return False

    def has(self, band: str, remote: RemoteFile) -> bool:
        """Say whether a band is there in the version that the server has now."""
        entry = self.state["bands"].get(band)
        return bool(entry) and (
            (entry["size"], entry["etag"]) == (remote.size, remote.etag)
            and _size(self.staging / f"{band}.tif") == entry["bytes"]
        )

    def fetch_band(self, band: str, transfer: _Transfer) -> None:
        """Fetch one raster; in the last one's thread the scene gets its name."""
        last = self._fetch_and_note(band, transfer)
        for _ in range(_VERSIONS):
            if not last:
                return
            # a scene that was published anew meanwhile must not be half old, half new
            urls = self.plan.scene.urls
            changed = [b for b in urls if not self.has(b, transfer.http.open(urls[b])[0])]
            if not changed:
                self.finish()
                return
            _log.warning("%s: %s changed on the server", self.final.name, ", ".join(changed))
            self.plan.missing.update(changed)
            last = [self._fetch_and_note(b, transfer) for b in changed][-1]
        raise FetchError(f"{self.final.name}: its files change while they are fetched")

    def finish(self) -> None:
        """Give the scene its name."""
        bands = self.state["bands"]
        self.plan.sizes = {band: bands[band]["bytes"] for band in bands}
        write_json(self.staging / f"{self.plan.scene.id}.json", self.plan.scene.item)
        for path in self.staging.iterdir():
            if path.name.startswith("."):  # of processes that were killed
                path.unlink()
        fsync(self.staging)
        if self.final.exists():
            old = self.staging.with_suffix(".old")
            shutil.rmtree(old, ignore_errors=True)
            self.final.rename(old)
        self.staging.rename(self.final)
        fsync(self.final.parent)
        _log.info(
            "%s: %d patches at most, %.1f MB",
            self.final.name, self.plan.num_squares, self.plan.size / 1e6,
        )  # fmt: skip

    def _fetch_and_note(self, band: str, transfer: _Transfer) -> bool:
        """Fetch one raster and write it into the state; return whether none is missing now."""
        remote = _steady(lambda: self._fetch(band, transfer))
        entry = {"size": remote.size, "etag": remote.etag}
        entry["bytes"] = _size(self.staging / f"{band}.tif")
        with self._lock:
            bands = {**self.state["bands"], band: entry}
            self.state["bands"] = {name: bands[name] for name in sorted(bands)}
            write_json(self.staging / STATE, self.state)
            self.plan.missing.discard(band)
            return not self.plan.missing

    def _fetch(self, band: str, transfer: _Transfer) -> RemoteFile:
        squares = None if self._whole else self.plan.squares
        http, advance = transfer.http, transfer.advance
        copy = remote_copy(http, self.plan.scene.urls[band], squares, band)
        path = self.staging / f"{band}.tif"
        partial = PartialFile(path, copy.remote, copy.header)
        missing = partial.missing(copy.spans)
        advance(copy.size - sum(span.length for span in missing))
        try:
            partial.fetch_all(http, missing, transfer.ranges, advance)
        except RemoteChangedError:
            partial.discard()
            raise
        if squares is not None and band != SCL and BANDS[band].ground_resolution_m == OUTLINE_M:
            # Packing reads from the coarsest bands where nodata is. Their blocks hold ground beyond
            # the squares, which the blocks of finer bands do not hold.
            with atomic_path(path) as temporary:
                side_px = int(PATCH_SIDE_M / copy.layout.resolution_m)
                keep_squares(partial.data, temporary, squares, side_px)
            partial.discard()
        else:
            partial.finish()
        return copy.remote


def _without_bands(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "bands"}


def _size(path: Path) -> int:
    """Return the bytes of a file, -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
