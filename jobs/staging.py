"""Copy packed shards to each node's local disk, once per node; training reads the copies.

Readers of a copy hold a shared lock on it; creating or removing one takes an exclusive lock. The
kernel releases the locks of killed processes, so no lock is ever stale.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from preprocess.progress import progress_of
from preprocess.shards.atomic_io import TEMPORARY_SUFFIX, atomic_path
from preprocess.shards.format import sha256_of
from preprocess.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest

# One stream from a parallel file system is far slower than several; more gain nothing on one disk.
NUM_STREAMS = 4
SCRATCH = "SIMCLR_SCRATCH"  # passes cluster.scratch to the processes of a job
GIB = 2**30
_log = logging.getLogger("simclr")


def scratch_folder() -> str:
    """Return this node's folder for copies, or ""; ValueError: its path has an unset variable."""
    named = os.environ.get(SCRATCH, "")
    folder = os.path.expandvars(named)
    if "$" in folder:
        raise ValueError(
            f"cluster.scratch is {named}, which becomes {folder} on node {os.uname().nodename}; "
            "name a variable that is set there, or export it in cluster.setup"
        )
    return folder


@contextmanager
def staged(shards: Sequence[str], scratch: str, progress: bool = True) -> Iterator[list[str]]:
    """Yield folders on the node's local disk with copies of the shards; remove them at the end.

    Every process of a node calls it: the first one copies, the others wait, and the last to leave
    removes the copy. An interrupted copy is resumed. Folders are named by the manifest's content:
    jobs that read the same shards share a copy, and repacked ones never use an old one. With an
    empty ``scratch`` the shards are read in place.

    Raises:
        ValueError: there is too little space, the file system has no locks, or a copy does not
            match its manifest.
    """
    if not scratch:
        yield list(shards)
        return
    with ExitStack() as copies:
        held = [_copy_of(Path(folder), Path(scratch), progress) for folder in shards]
        yield [str(copies.enter_context(copy)) for copy in held]


def copy_path(manifest: Manifest, scratch: Path) -> Path:
    """Return the path of the copy of a packed folder."""
    # not its fingerprint: packs of equal shards may differ in their processing level, for example
    digest = hashlib.sha256(repr(manifest).encode()).hexdigest()[:16]
    # users of one node cannot lock each other's files in /tmp
    return scratch / f"simclr-shards-{os.getuid()}-{digest}"


@contextmanager
def _copy_of(folder: Path, scratch: Path, progress: bool) -> Iterator[Path]:
    manifest = read_manifest(folder)
    copy = copy_path(manifest, scratch)
    with _lock_of(copy) as lock:
        # downgrading a lock is not atomic: a leaving process may remove the copy in between
        while not _is_held(lock, manifest, copy):
            _log.info("%s: staging, or waiting for the process that does", copy)
            fcntl.flock(lock, fcntl.LOCK_EX)
            _complete(folder, manifest, copy, progress)
        try:
            yield copy
        finally:
            _remove_if_last(lock, copy)


@contextmanager
def _lock_of(copy: Path) -> Iterator[int]:
    """Open the lock of a copy; its file is never removed, as a removed one would exclude nobody."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(copy.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _is_held(lock: int, manifest: Manifest, copy: Path) -> bool:
    """Take a shared lock, and return whether the copy is complete."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError as error:
        # Lustre mounted without -o flock, and some FUSE file systems
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
        raise ValueError(
            f"cluster.scratch is {copy.parent}, whose file system has no file locks "
            f"({error.strerror}); give a folder on the node's own disk, or cluster.scratch=null"
        ) from error
    return (copy / MANIFEST_NAME).exists() and not _missing(manifest, copy)


def _missing(manifest: Manifest, copy: Path) -> list[ShardEntry]:
    """Return the shards that are not in a copy; a node may remove old files from its disk."""
    sizes = {path.name: path.stat().st_size for path in copy.glob("*")}
    return [entry for entry in manifest.shards if sizes.get(entry.file) != entry.size_bytes]


def _remove_if_last(lock: int, copy: Path) -> None:
    with suppress(BlockingIOError):  # another process still reads it, and will remove it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # the manifest first: an interrupted removal must not leave a copy that looks complete
        (copy / MANIFEST_NAME).unlink(missing_ok=True)
        if copy.exists():
            shutil.rmtree(copy)


def _complete(folder: Path, manifest: Manifest, copy: Path, progress: bool) -> None:
    """Copy missing files, the manifest last; the caller holds the lock exclusively."""
    copy.mkdir(exist_ok=True)
    for left in copy.glob(f".*{TEMPORARY_SUFFIX}"):
        left.unlink()  # of a killed process: the lock guarantees that nobody writes
    # a shard gets its name only after its checksum has been verified
    missing = _missing(manifest, copy)
    _make_room(folder, copy, sum(entry.size_bytes for entry in missing))
    with (
        progress_of(sum(entry.rows for entry in missing), f"stage {folder}", progress) as advance,
        ThreadPoolExecutor(NUM_STREAMS) as pool,
    ):
        for entry in pool.map(lambda entry: _copy_shard(folder, entry, copy), missing):
            advance(entry.rows)
    manifest.write(copy)  # not a copy of the file, which may meanwhile be another


def _copy_shard(folder: Path, entry: ShardEntry, copy: Path) -> ShardEntry:
    with atomic_path(copy / entry.file) as temporary:
        shutil.copyfile(folder / entry.file, temporary)
        # of the copy, not of the source: this checks both disks and the transfer
        if sha256_of(temporary) != entry.sha256:
            raise ValueError(
                f"{folder / entry.file} does not match its checksum after the copy to {copy}; "
                f"find out which is damaged: simclr-verify shards={folder}"
            )
    return entry


def _make_room(folder: Path, copy: Path, needed: int) -> None:
    """Remove this user's unused copies if their space is needed; ValueError: too little space."""
    abandoned = copy.parent.glob(f"simclr-shards-{os.getuid()}-*.lock")
    for path in abandoned if needed > shutil.disk_usage(copy).free else ():
        # a second lock on our own file is refused, so our own copy is never removed
        with _lock_of(other := path.with_suffix("")) as lock:
            _remove_if_last(lock, other)
    free = shutil.disk_usage(copy).free
    if needed > free:
        raise ValueError(
            f"cluster.scratch is {copy.parent} with {free / GIB:.2f} GiB free, but the rest of "
            f"{folder} takes {needed / GIB:.2f} GiB; name a larger disk, or read in place: "
            "cluster.scratch=null"
        )
