"""Published archives: files with sizes and checksums, and how they are fetched and unpacked.

An archive is unpacked into a hidden folder, which is renamed when all members are there, so that
packing never sees half a data set. pooch is no alternative: it restarts an interrupted download,
restarts an interrupted unpacking, and does not unpack tar.zst.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import zstandard

from preprocess.config import FetchConfig, FetchTarget
from preprocess.fetch.http import (
    FetchError,
    Http,
    PartialFile,
    RemoteChangedError,
    RemoteFile,
    chunks,
    read_json,
    shown,
)
from preprocess.fetch.scenes import STAGING, STATE
from preprocess.progress import progress_of
from preprocess.shards.atomic_io import fsync, write_json

_CHUNK_BYTES = 64 * 2**20  # large, since record servers limit the number of requests
_MAX_STREAMS = 4  # record servers refuse more from one address
_SYNC_FILES, _SYNC_BYTES = 50_000, 4 * 2**30  # unpacked files are flushed after this much
_BLOCK_BYTES = 4_096  # of a usual file system
_PATCH_BYTES = 4 * 32_768 + 6 * 8_192 + 2 * 4_096  # twelve bands in file-system blocks of 4 KiB

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file of a record."""

    name: str  # last part of its URL, and name of the local file
    md5: str  # as published
    size: int  # published bytes; 0 if unknown
    source: str  # origin of checksum and size, and how far they are verified
    root: str = ""  # folder that it unpacks to; empty if it is not unpacked
    files: int = 0  # number of rasters in it
    unpacked_bytes: int = 0  # size of the rasters on a file system with 4 KiB blocks


@dataclass(frozen=True, slots=True)
class Archive:
    """A published data set: the base URL of its files, and the files."""

    url: str
    files: tuple[ArchiveFile, ...]


_READ = "record page as quoted by several public projects, which checked their download against it"
ARCHIVES = {
    FetchTarget.bigearthnet_v1: Archive(
        "https://zenodo.org/records/12687186/files",
        (
            ArchiveFile(
                "BigEarthNet-S2-v1.0.tar.gz", "5a64e9ce38deb036a435a7b59494924c", 0,
                "checksum: torchgeo's data set BigEarthNet; exact size: not found, about 66 GB",
                root="BigEarthNet-v1.0", files=590_326 * 12,
                unpacked_bytes=590_326 * (_PATCH_BYTES + 4_096),
            ),
        ),
    ),
    FetchTarget.bigearthnet_v2: Archive(
        "https://zenodo.org/records/10891137/files",
        (
            ArchiveFile(
                "metadata.parquet", "55687065e77b6d0b0f1ff604a6e7b49c", 3_616_349,
                "checksum: compared with a copy of the file; size: " + _READ,
            ),
            ArchiveFile(
                "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
                "fe31856f4986d446c9468b59d6387c91", 710_162,
                "checksum: compared with a copy of the file; size: " + _READ,
            ),
            ArchiveFile(
                "Reference_Maps.tar.zst", "95d85a222fa983faddcac51a19f28917", 282_391_301, _READ,
                root="Reference_Maps", files=549_488, unpacked_bytes=549_488 * 4_096,
            ),
            ArchiveFile(
                "BigEarthNet-S2.tar.zst", "2245ed2d1a93f6ce637d839bc856396e", 63_251_710_377, _READ,
                root="BigEarthNet-S2", files=549_488 * 12, unpacked_bytes=549_488 * _PATCH_BYTES,
            ),
        ),
    ),
    FetchTarget.eurosat: Archive(
        "https://zenodo.org/records/7711810/files",
        (
            ArchiveFile(
                "EuroSAT_MS.zip", "091174add3c8e680a49244acf185b9f0", 2_065_402_329, _READ,
                root="EuroSAT_MS", files=27_000, unpacked_bytes=27_000 * 110_592,
            ),
        ),
    ),
}  # fmt: skip


# a file to be fetched and unpacked, with its size and version on the server
ArchivePlan = tuple[ArchiveFile, RemoteFile]


def plan_archive(http: Http, archive: Archive, config: FetchConfig) -> list[ArchivePlan]:
    """Return the missing files.

    Raises:
        FetchError: a size on the server is not the published one, or somebody else unpacked a file.
    """
    output, base = Path(config.output), (config.url or archive.url).rstrip("/")
    done = fetched_files(output)
    plans = []
    for file in archive.files:
        target = output / (file.root or file.name)
        if file.name in done and target.exists():
            continue
        staging, journal = _staging_of(target)
        # until its state is written, the journal of a folder tells that it was unpacked here
        if file.root and target.exists() and (staging.exists() or not journal.exists()):
            raise FetchError(
                f"{target} is there, but simclr-fetch did not unpack it; move it away or give "
                "another output"
            )
        remote, _ = http.open(f"{base}/{file.name}")
        if file.size and remote.size != file.size:
            raise FetchError(
                f"{shown(remote.url)} has {remote.size} bytes, published are {file.size}: another "
                "file, or another version of it; give the URL of a mirror: url=https://..."
            )
        plans.append((file, remote))
    return plans


def fetched_files(output: Path) -> dict[str, Any]:
    """Return size, md5 and number of rasters of each file that was fetched to a folder."""
    files: dict[str, Any] = read_json(output / STATE).get("files", {})
    return files


def most_disk(plans: list[ArchivePlan], config: FetchConfig) -> int:
    """Return the peak disk use in bytes beyond what is already there."""
    output = Path(config.output)
    held = most = 0
    for file, remote in plans:
        path = output / file.name
        places = (path, PartialFile(path, remote).data)  # with blocks, since it may have holes
        there = sum(place.stat().st_blocks * 512 for place in places if place.exists())
        unpacked = read_json(_staging_of(output / file.root)[1]).get("bytes", 0)
        unpacking = max(0, file.unpacked_bytes - unpacked)
        most = max(most, held + unpacking + remote.size - there)
        removed = file.root and not config.keep_archives
        held += unpacking - there + (0 if removed else remote.size)
    return most


def _staging_of(target: Path) -> tuple[Path, Path]:
    """Return the folder that an archive is unpacked to, and the journal of its unpacking."""
    staging = target.parent / STAGING / target.name
    return staging, staging.with_name(f"{target.name}.json")


def fetch_archive(http: Http, plans: list[ArchivePlan], config: FetchConfig) -> None:
    """Fetch, check and unpack files one after another.

    Raises:
        FetchError: a file differs from the published one, or cannot be fetched.
        OSError: the disk is full, for example.
    """
    output = Path(config.output)
    files = fetched_files(output)
    for file, remote in plans:
        path = output / file.name
        if not path.exists():
            _download(http, file, remote, config)
        elif not _is_sound(path, file, remote):
            raise FetchError(
                f"{path} is there, but its size or md5 is not the published one; remove it"
            )
        entry: dict[str, Any] = {"size": remote.size, "md5": file.md5}
        if file.root:
            entry["rasters"] = unpack(path, output / file.root, file.files)
        files[file.name] = entry
        write_json(output / STATE, {"files": files})
        if file.root and not config.keep_archives:
            path.unlink()


def unpack(path: Path, target: Path, expected: int = 0) -> int:
    """Unpack an archive of a single folder to that folder; return the number of its rasters.

    A killed unpacking resumes after the last member known to be flushed to disk. Links, and names
    outside the folder, are rejected.
    """
    staging, journal = _staging_of(target)
    state = {"members": 0, "rasters": 0, "bytes": 0}  # unpacked and known to be on disk
    if staging.exists() or target.exists():
        state |= read_json(journal)
    if not target.exists():
        done = state["members"]
        files = size = position = 0  # files and bytes since the last sync; offset in the archive
        with (
            path.open("rb") as raw,
            progress_of(path.stat().st_size, f"unpack {path.name}", unit="B") as advance,
        ):
            for index, (name, length, stream) in enumerate(_members(path.name, raw)):
                if index >= done:
                    parts = [part for part in PurePosixPath(name).parts if part != "."]
                    if ".." in parts or len(parts) < 2 or parts[0] != target.name:
                        raise FetchError(
                            f"{path.name} holds {name!r}; expected are files below {target.name}/"
                        )
                    _write_member(staging.joinpath(*parts[1:]), stream)
                    state["members"] = index + 1
                    state["rasters"] += name.endswith(".tif")
                    state["bytes"] += -(-length // _BLOCK_BYTES) * _BLOCK_BYTES
                    files, size = files + 1, size + length
                if files >= _SYNC_FILES or size >= _SYNC_BYTES:
                    os.sync()  # all at once: one fsync per file costs more than writing it
                    write_json(journal, state)
                    files = size = 0
                advance(raw.tell() - position)
                position = raw.tell()
        os.sync()
        write_json(journal, state)
        if expected and state["rasters"] != expected:
            _log.warning("%s holds %d rasters, known are %d", path.name, state["rasters"], expected)
        staging.rename(target)
        fsync(target.parent)
    return state["rasters"]


def _download(http: Http, file: ArchiveFile, remote: RemoteFile, config: FetchConfig) -> None:
    partial = PartialFile(Path(config.output, file.name), remote)
    with (
        progress_of(remote.size, file.name, unit="B") as advance,
        http.threads(min(config.streams, _MAX_STREAMS)) as pool,
    ):
        try:
            partial.fetch_missing(http, chunks(remote.size, _CHUNK_BYTES), pool, advance)
        except RemoteChangedError as error:
            raise FetchError(f"{error}; start again to fetch it") from error
    if not _is_sound(partial.data, file, remote):
        partial.discard()
        raise FetchError(
            f"{shown(remote.url)} has another md5 than the published {file.md5}; it was "
            "removed. Start again, or give the URL of a mirror: url=https://..."
        )
    partial.finish()


def _is_sound(path: Path, file: ArchiveFile, remote: RemoteFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    _log.info("%s: computing its md5", file.name)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == file.md5


def _members(archive: str, raw: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size in bytes and content of all regular files, in archive order."""
    if archive.endswith(".zip"):
        with zipfile.ZipFile(raw) as file:
            for entry in file.infolist():
                if not entry.is_dir():
                    with file.open(entry) as stream:
                        yield entry.filename, entry.file_size, stream
        return
    zstd = archive.endswith(".zst")
    decompress = zstandard.ZstdDecompressor().stream_reader
    content: Any = decompress(raw, read_across_frames=True) if zstd else raw
    with tarfile.open(fileobj=content, mode="r|" if zstd else "r|gz") as tar:
        for member in tar:
            if member.isreg() and (inside := tar.extractfile(member)):
                yield member.name, member.size, inside
            elif not member.isdir():
                raise FetchError(f"{archive} holds {member.name}, which is neither file nor folder")
            # otherwise tarfile keeps millions of members in memory
            tar.members = []  # type: ignore[attr-defined]


def _write_member(path: Path, stream: IO[bytes]) -> None:
    try:
        file = path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        shutil.copyfileobj(stream, file, 2**20)
