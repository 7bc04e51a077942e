"""Files while they are fetched: the bytes under a hidden name, and a journal of what is there.

A file gets its name only when every byte is there and on the disk, so a file under its final name
is always whole.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from preprocess.fetch.http import Http, RemoteFile
from preprocess.shards.atomic_io import publish

RANGE_BYTES = 16 * 2**20  # what a killed download may have to fetch again, for each stream


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes to copy.

    Attributes:
        offset: in the remote file.
        length: bytes.
        target: offset in the local file.
    """

    offset: int
    length: int
    target: int


class PartialFile:
    """A file while it is fetched: its bytes, and a journal of the spans that are there.

    The journal's first line names the remote version; each further line is a span with the CRC-32
    of its bytes, appended after they were written. Bytes without a line, or that do not have the
    CRC their line states, are fetched again: neither a kill nor a power cut can leave a hole.
    """

    def __init__(self, path: Path, remote: RemoteFile, prefix: bytes = b"") -> None:
        self.path = path
        self.data = path.with_name(f".{path.name}.part")
        self.journal = path.with_name(f".{path.name}.journal")
        self._prefix = prefix
        # another prefix means other spans: nothing of the old ones fits
        self._identity = {
            "url": remote.url,
            "size": remote.size,
            "etag": remote.etag,
            "prefix": zlib.crc32(prefix),
        }
        self.remote = remote
        self._lock = threading.Lock()

    def missing(self, spans: Iterable[Span]) -> list[Span]:
        """Return the spans that are not there yet, each checked; start anew for another version."""
        path_exists = self.data.exists() and self.journal.exists()
        lines = self.journal.read_bytes().split(b"\n") if path_exists else []
        # without its line break the last line was cut while it was written
        entries = [entry for line in lines[:-1] if (entry := _parsed(line)) is not None]
        if not entries or entries[0] != self._identity:
            self._start_anew()
            return list(spans)
        crc_of = {(e["target"], e["length"]): e["crc"] for e in entries[1:] if "crc" in e}
        wanted = list(spans)
        with self.data.open("rb") as file:
            file.seek(0)
            if file.read(len(self._prefix)) != self._prefix:
                self._start_anew()
                return wanted
            there = {
                span
                for span in wanted
                if (crc := crc_of.get((span.target, span.length))) is not None
                and crc == _crc(file, span.target, span.length)
            }
        if lines[-1]:
            self._append({})  # ends the torn line, or the next one would be lost with it
        return [span for span in wanted if span not in there]

    def fetch(self, http: Http, span: Span, advance: Callable[[int], object]) -> None:
        """Fetch one span and note it.

        Raises:
            FetchError: as ``Http.pieces``.
        """
        crc = 0
        with self.data.open("r+b") as file:
            file.seek(span.target)
            for piece in http.pieces(self.remote, span.offset, span.length):
                file.write(piece)
                crc = zlib.crc32(piece, crc)
                advance(len(piece))
        self._append({"target": span.target, "length": span.length, "crc": crc})

    def fetch_all(
        self,
        http: Http,
        spans: Iterable[Span],
        pool: Executor,
        advance: Callable[[int], object],
    ) -> None:
        """Fetch spans side by side; if one fails, the others have ended when this raises.

        Raises:
            FetchError: as ``Http.pieces``.
        """
        jobs = [pool.submit(self.fetch, http, span, advance) for span in spans]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:
            # none may write on into a file that is begun anew
            for job in jobs:
                job.cancel()
            wait(jobs)

    def finish(self) -> None:
        """Make the file durable and give it its name."""
        publish(self.data, self.path)
        self.journal.unlink()

    def discard(self) -> None:
        """Remove what was fetched so far."""
        self.data.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _start_anew(self) -> None:
        self.discard()
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.data.write_bytes(self._prefix)
        self._append(self._identity)

    def _append(self, entry: dict[str, Any]) -> None:
        line = ("\n" if not entry else json.dumps(entry) + "\n").encode()
        with self._lock, self.journal.open("ab") as file:
            file.write(line)


def chunks(size: int, chunk_bytes: int = RANGE_BYTES) -> list[Span]:
    """Return the spans of a whole file."""
    return [
        Span(start, min(chunk_bytes, size - start), start) for start in range(0, size, chunk_bytes)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if it is missing or holds none."""
    try:
        return _parsed(path.read_bytes()) or {}
    except FileNotFoundError:
        return {}


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _crc(file: BinaryIO, offset: int, length: int) -> int | None:
    """Return the CRC-32 of bytes of a file, None if it ends before."""
    file.seek(offset)
    crc = 0
    while length:
        piece = file.read(min(length, 2**20))
        if not piece:
            return None
        crc, length = zlib.crc32(piece, crc), length - len(piece)
    return crc
