"""Fetch archives and scenes into a folder that packing reads, for ``simclr-fetch``.

Everything under its final name is complete, so a fetch can be killed and restarted at any time.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.config import EARTH_SEARCH, FetchConfig
from preprocess.fetch.archives import (
    ARCHIVES,
    Archive,
    ArchivePlan,
    fetch_archive,
    fetched_files,
    most_disk,
    plan_archive,
)
from preprocess.fetch.http import FetchError, Http
from preprocess.fetch.scenes import STAGING, SceneFolder, fetch_scenes, measure_rate, plan_scenes
from preprocess.fetch.stac import Scene, area_of, write_scenes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """Size of a fetch."""

    found: int  # scenes found by the search, or files of an archive
    taken: int  # number of them to fetch
    patches: int  # upper limit; 0 if unknown before packing
    bytes: int  # total size of the selected files
    missing_bytes: int  # size of the files still missing
    bytes_per_s: float = 0.0  # measured rate; 0 if not measured


def fetch(config: FetchConfig, archive: Archive | None = None) -> Summary:
    """Fetch the archive or scenes of the settings; ``archive`` replaces the published one.

    Raises:
        ValueError: a setting is wrong; the message says which.
        FetchError: something could not be fetched; complete files are kept.
    """
    http, record = _connect(config, archive)
    output = Path(config.output)
    with _only_fetch_of(output):
        if record:
            files = plan_archive(http, record, config)
            summary = _summary_of_files(record, files, output)
            _refuse_too_much(config, summary.missing_bytes, most_disk(files, config))
            fetch_archive(http, files, config)
        else:
            scenes, folders, failed = plan_scenes(http, config)
            summary = _summary_of_scenes(scenes, folders)
            _refuse_too_much(config, summary.missing_bytes, summary.missing_bytes)
            failed |= fetch_scenes(http, folders, config)
            kept = {folder.scene.id: (folder.num_squares, folder.size) for folder in folders}
            kept |= dict.fromkeys(failed, (0, 0))
            judged = (replace(scene, reason=failed.get(scene.id, scene.reason)) for scene in scenes)
            rows = ((scene, *kept.get(scene.id, (0, 0))) for scene in judged)
            write_scenes(output / "scenes.csv", rows)
            _refuse_failed(summary, failed)
        shutil.rmtree(output / STAGING, ignore_errors=True)
    return summary


def plan(config: FetchConfig, archive: Archive | None = None) -> Summary:
    """Return what ``fetch`` would fetch, and how fast; write nothing.

    Raises:
        ValueError: a setting is wrong; the message says which.
        FetchError: the server does not answer.
    """
    http, record = _connect(config, archive)
    if record:
        files = plan_archive(http, record, config)
        return _summary_of_files(record, files, Path(config.output))
    scenes, folders, failed = plan_scenes(http, config)
    summary = _summary_of_scenes(scenes, folders)
    _refuse_failed(summary, failed)
    return replace(summary, bytes_per_s=measure_rate(http, folders, config.streams))


def _connect(config: FetchConfig, archive: Archive | None) -> tuple[Http, Archive | None]:
    """Return the HTTP client, and the record of an archive or None for scenes."""
    if not config.output:
        raise ValueError("output is empty; give the folder to fill: output=DIR")
    http = Http(config.retries, config.streams, config.max_mb_per_s * 1e6)
    record = archive or ARCHIVES.get(config.what)
    if record is None:
        area_of(config)  # reports a wrong area before the network is used
    http.refuse_offline(config.url or (record.url if record else EARTH_SEARCH))
    return http, record


def _summary_of_scenes(scenes: list[Scene], folders: list[SceneFolder]) -> Summary:
    return Summary(
        found=len(scenes),
        taken=sum(not scene.reason for scene in scenes),
        patches=sum(folder.num_squares for folder in folders),
        bytes=sum(folder.size for folder in folders),
        missing_bytes=sum(folder.sizes[band] for folder in folders for band in folder.missing),
    )


def _summary_of_files(archive: Archive, plans: list[ArchivePlan], output: Path) -> Summary:
    # published sizes may be unknown
    sizes = {name: entry["size"] for name, entry in fetched_files(output).items()}
    sizes |= {file.name: remote.size for file, remote in plans}
    missing, count = sum(remote.size for _, remote in plans), len(archive.files)
    return Summary(count, count, 0, sum(sizes[file.name] for file in archive.files), missing)


def _refuse_failed(summary: Summary, failed: dict[str, str]) -> None:
    if failed:
        first = min(failed)
        raise FetchError(
            f"{len(failed)} of {summary.taken} scenes could not be fetched, first {first}: "
            f"{failed[first]}; the others are kept: start again to try these once more"
        )


def _refuse_too_much(config: FetchConfig, download: int, disk: int) -> None:
    if download > config.max_gb * 1e9:
        raise ValueError(
            f"{download / 1e9:.1f} GB are to be fetched, more than max_gb={config.max_gb:g}; set "
            f"max_gb={math.ceil(download / 1e9)}, or narrow area, dates or max_cloud"
        )
    free = shutil.disk_usage(config.output).free
    if disk > free:
        raise FetchError(
            f"{config.output} has {free / 1e9:.1f} GB free, {disk / 1e9:.1f} GB are needed; free "
            "some, or give another output"
        )


@contextmanager
def _only_fetch_of(output: Path) -> Iterator[None]:
    """Lock the output folder against a second fetch at the same time."""
    folder = output / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
    except BlockingIOError as error:
        os.close(descriptor)
        raise FetchError(f"another simclr-fetch is filling {output}; wait for it") from error
    except OSError as error:  # some shared file systems do not support locks
        _log.info("%s cannot be locked (%s); start one fetch at a time", folder, error)
    try:
        yield
    finally:
        os.close(descriptor)
