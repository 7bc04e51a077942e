"""Data from the network to a folder that packing reads; ``fetch`` is called by ``simclr-fetch``.

What is under its final name is whole: a fetch can be killed at any moment and started again.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preprocess.fetch.archives import ARCHIVES, Archive, ArchivePlan, fetch_archive, plan_archive
from preprocess.fetch.config import EARTH_SEARCH, FetchConfig, What
from preprocess.fetch.http import FetchError, Http, refuse_offline
from preprocess.fetch.scenes import STAGING, ScenePlan, fetch_scenes, measure_rate, plan_scenes
from preprocess.fetch.stac import Area, Scene, area_of, search, write_scenes

__all__ = ["FetchConfig", "FetchError", "Summary", "What", "fetch"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Summary:
    """What there was to fetch.

    Attributes:
        found: scenes that the search found, or files of an archive.
        taken: of them.
        patches: at most; 0 where that is not known before packing.
        bytes: of all that is taken.
        missing_bytes: of them, that were not there at the start.
        bytes_per_s: rate that was measured by a dry run, else 0.
    """

    found: int
    taken: int
    patches: int
    bytes: int
    missing_bytes: int
    bytes_per_s: float = 0.0

    @property
    def hours(self) -> float:
        """Time for what is missing, at the measured rate."""
        return self.missing_bytes / self.bytes_per_s / 3600 if self.bytes_per_s else 0.0


def fetch(config: FetchConfig, archive: Archive | None = None) -> Summary:
    """Fetch what the settings name, or with ``dry_run`` find out how much that is.

    Args:
        config: the settings.
        archive: fetch this one instead of the published one.

    Raises:
        ValueError: a setting is wrong; the message says which.
        FetchError: something could not be fetched; what is complete is kept.
    """
    if not config.output:
        raise ValueError("output is empty; give the folder to fill: output=DIR")
    http = Http(config.retries, config.streams, config.max_mb_per_s * 1e6)
    if config.what is What.stac:
        area = area_of(config)
        refuse_offline(http, config.url or EARTH_SEARCH)
        with _only_fetch_of(config):
            return _fetch_scenes(http, config, area)
    record = archive or ARCHIVES[config.what]
    refuse_offline(http, config.url or record.url)
    with _only_fetch_of(config):
        return _fetch_archive(http, config, record)


def _fetch_scenes(http: Http, config: FetchConfig, area: Area) -> Summary:
    scenes, plans = plan_scenes(http, search(http, config, area), config, area)
    rate = measure_rate(http, plans, config.streams) if config.dry_run else 0.0
    missing = sum(plan.sizes[band] for plan in plans for band in plan.missing)
    summary = Summary(
        found=len(scenes),
        taken=len(plans),
        patches=sum(plan.num_squares for plan in plans),
        bytes=sum(plan.size for plan in plans),
        missing_bytes=missing,
        bytes_per_s=rate,
    )
    if not config.dry_run:
        _refuse_too_much(config, missing, missing)
        output = Path(config.output)
        failed = fetch_scenes(http, plans, config)
        write_scenes(output / "scenes.csv", _rows(scenes, plans))
        if failed:
            raise FetchError(
                f"{len(failed)} of {len(plans)} scenes could not be fetched, first {failed[0]}; "
                "the others are there: start again to try these once more"
            )
        shutil.rmtree(output / STAGING, ignore_errors=True)
    return summary


def _rows(scenes: list[Scene], plans: list[ScenePlan]) -> Iterator[tuple[Scene, int, int]]:
    plan_of = {plan.scene.id: plan for plan in plans}
    for scene in scenes:
        plan = plan_of.get(scene.id)
        yield scene, plan.num_squares if plan else 0, plan.size if plan else 0


def _fetch_archive(http: Http, config: FetchConfig, archive: Archive) -> Summary:
    plans = plan_archive(http, archive, config)
    missing = sum(plan.remote.size for plan in plans)
    if not config.dry_run:
        _refuse_too_much(config, missing, _most_disk(plans))
        fetch_archive(http, plans, config)
        shutil.rmtree(Path(config.output) / STAGING, ignore_errors=True)
    size = missing + sum(file.size for file in archive.files) * (not plans)
    return Summary(len(archive.files), len(archive.files), 0, size, missing)


def _most_disk(plans: list[ArchivePlan]) -> int:
    """Return bytes at the moment when they are most: an archive goes once it is unpacked."""
    unpacked = most = 0
    for plan in plans:
        unpacked += plan.file.unpacked_bytes if plan.file.root else plan.remote.size
        most = max(most, unpacked + (plan.remote.size if plan.file.root else 0))
    return most


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
def _only_fetch_of(config: FetchConfig) -> Iterator[None]:
    """Hold the output folder against a second fetch at the same time."""
    if config.dry_run:  # writes nothing
        yield
        return
    folder = Path(config.output) / STAGING
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
    except BlockingIOError as error:
        os.close(descriptor)
        raise FetchError(f"another simclr-fetch is filling {config.output}; wait for it") from error
    except OSError as error:  # some shared file systems have no locks
        _log.info("%s cannot be locked (%s); start one fetch at a time", folder, error)
    try:
        yield
    finally:
        os.close(descriptor)
