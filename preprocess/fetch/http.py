"""HTTP with retries, a rate limit and byte ranges, and partially fetched files.

Every response is checked against the request: range, length, and the version of the file. A file
gets its final name once every byte is on disk.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from preprocess.shards.atomic_io import publish

PIECE_BYTES = 256 * 2**10  # bytes read between checks of the stop flag and the rate
RANGE_BYTES = 16 * 2**20  # bytes per stream that a killed download may have to fetch again
BACKOFF_S = 0.5  # first pause after a failure; doubled with every attempt
_MAX_WAIT_S = 60.0
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class FetchError(OSError):
    """Something could not be fetched; the message says what, why, and what to do."""


class RemoteChangedError(FetchError):
    """A file changed on the server after part of it was fetched."""


class UnreachableError(FetchError):
    """All attempts failed: the server or the network is down."""


class StoppedError(FetchError):
    """The transfer was stopped by the user or by a failure elsewhere."""


class _TransientError(Exception):
    """A response that may be different next time."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server as of the first request.

    ``etag`` is the time of its last change if the server gives no ETag; empty without both.
    """

    url: str
    size: int
    etag: str


class Http:
    """Requests with retries, shared by all threads of a fetch; every method raises ``FetchError``.

    ``requests`` reads proxies and credentials only from the environment and ``.netrc``; neither
    they nor the query of a URL are ever logged.

    Args:
        retries: further attempts after transient failures without progress in between.
        streams: number of connections to keep open.
        max_bytes_per_s: rate limit of all threads together; 0 for none.
    """

    def __init__(self, retries: int = 8, streams: int = 8, max_bytes_per_s: float = 0.0) -> None:
        self.retries = retries
        self.stop = threading.Event()
        self.session = requests.Session()
        adapter = HTTPAdapter(pool_connections=16, pool_maxsize=streams + 2)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        # compression in transit would change sizes and ranges
        self.session.headers["Accept-Encoding"] = "identity"
        self._rate = max_bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def open(self, url: str, length: int = 1) -> tuple[RemoteFile, bytes]:
        """Return size and version of a remote file, and its first bytes."""

        def first_bytes(response: requests.Response) -> tuple[RemoteFile, bytes]:
            """Read the total size from the answer, and check its bytes."""
            (start, total), code = _content_range(response), response.status_code
            if code != 206 or start != 0:
                raise _TransientError(f"the server serves no byte ranges (HTTP {code})")
            head, wanted = response.content[:length], min(length, total)
            if len(head) != wanted:
                raise _TransientError(f"sent {len(head)} bytes of {wanted}")
            return RemoteFile(url, total, _version_of(response)), head

        return self._with_retries(first_bytes, url, headers={"Range": f"bytes=0-{length - 1}"})

    def read(self, remote: RemoteFile, offset: int, length: int) -> bytes:
        """Return a range of bytes of a remote file, fewer at its end."""
        return b"".join(self.pieces(remote, offset, min(length, remote.size - offset)))

    def pieces(self, remote: RemoteFile, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of a range in order; resume after an interruption.

        Raise ``RemoteChangedError`` if the file has changed since ``open``.
        """
        done, attempt = 0, 0
        while done < length:
            before, first = done, offset + done
            try:
                headers = {"Range": f"bytes={first}-{offset + length - 1}"}
                with self._request(remote.url, headers=headers) as response:
                    _check_range(response, remote, first, length - done)
                    for piece in response.iter_content(PIECE_BYTES):
                        self._raise_if_stopped()
                        piece = piece[: length - done]
                        self._keep_rate(len(piece))
                        done += len(piece)
                        yield piece
                if done < length:
                    raise requests.ConnectionError(f"cut after {done} of {length} bytes")
            except (requests.RequestException, _TransientError) as error:
                attempt = 0 if done - before >= PIECE_BYTES else attempt
                attempt = self._pause(remote.url, error, attempt)

    def get_json(self, url: str, **request: Any) -> str:
        """Return the text of a JSON object; retry if the response is anything else."""

        def checked(response: requests.Response) -> str:
            """Return the text of an answer that holds a JSON object."""
            text = response.content.decode()
            if not isinstance(json.loads(text), dict):  # for example a proxy's error page
                raise ValueError("no JSON object")
            return text

        return self._with_retries(checked, url, **request)

    @contextmanager
    def threads(self, number: int) -> Iterator[Executor]:
        """Yield a pool of threads; stop their requests if the block fails, and wait for them."""
        pool = ThreadPoolExecutor(number)
        try:
            yield pool
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def refuse_offline(self, url: str) -> None:
        """Check that a server can be reached; else raise an error that says what to set."""
        for attempt in range(3):
            try:
                self.session.get(url, stream=True, timeout=_TIMEOUT_S).close()
                return
            except requests.RequestException as error:
                if attempt == 2:
                    raise UnreachableError(
                        f"{os.uname().nodename} cannot reach {shown(url)} ({_reason(error)}); run "
                        "on a node with internet access, such as a login or transfer node "
                        "(cluster.partition=NAME), or set https_proxy"
                    ) from error
                self.stop.wait(BACKOFF_S)

    def _with_retries(
        self, accept: Callable[[requests.Response], _Result], url: str, **request: Any
    ) -> _Result:
        attempt = 0
        while True:
            try:
                with self._request(url, **request) as response:
                    return accept(response)
            except (requests.RequestException, _TransientError, ValueError) as error:
                attempt = self._pause(url, error, attempt)

    def _request(self, url: str, method: str = "GET", **request: Any) -> requests.Response:
        self._raise_if_stopped()
        response = self.session.request(method, url, stream=True, timeout=_TIMEOUT_S, **request)
        if response.ok:
            return response
        code, after = response.status_code, response.headers.get("Retry-After")
        response.close()
        if code in _TRANSIENT:
            try:
                after_s = Retry().parse_retry_after(after) if after else 0.0
            except InvalidHeader:
                after_s = 0.0
            raise _TransientError(f"HTTP {code}", after_s)
        if code == 416:  # the file has become shorter
            raise RemoteChangedError(f"{shown(url)} changed on the server while it was fetched")
        raise FetchError(f"{shown(url)}: HTTP {code} {response.reason}")

    def _pause(self, url: str, error: Exception, attempt: int) -> int:
        """Wait before the next attempt and return its number; raise if there were too many."""
        self._raise_if_stopped()
        reason = _reason(error)
        if attempt >= self.retries:
            raise UnreachableError(
                f"{shown(url)}: {reason}, in {attempt + 1} attempts; start the same command again "
                "when the network is back: what is complete is kept"
            ) from error
        # jitter: streams that were refused together must not retry together
        pause = random.uniform(0.5, 1.0) * BACKOFF_S * 2.0**attempt
        pause = min(max(pause, getattr(error, "after_s", 0.0)), _MAX_WAIT_S)
        _log.info("%s: %s; again in %.1f s", shown(url), reason, pause)
        self.stop.wait(pause)
        return attempt + 1

    def _keep_rate(self, count: int) -> None:
        """Wait until ``count`` more bytes keep the total rate of all streams below the limit."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            pause = self._free_at - now
        self.stop.wait(pause)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise StoppedError("stopped")


def shown(url: str) -> str:
    """Return a URL for logs: without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _reason(error: Exception) -> str:
    """Return a short reason of a failure; messages of requests repeat URL and object addresses."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of https_proxy or http_proxy does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not accepted"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):
        cause = str(error)
        if re.search("Name or service not known|name resolution|NameResolutionError", cause):
            return "its name cannot be resolved"
        return "no connection" if "Max retries" in cause or not cause else "the connection was cut"
    return str(error) if isinstance(error, _TransientError) else "the answer is not readable"


def _version_of(response: requests.Response) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified", "")


def _content_range(response: requests.Response) -> tuple[int, int]:
    """Return first byte and total size of a range response; -1 and 0 if it states none."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header)
    return (int(found[1]), int(found[2])) if found else (-1, 0)


def _check_range(response: requests.Response, remote: RemoteFile, first: int, length: int) -> None:
    """Reject a response with other bytes than requested."""
    code, (start, total) = response.status_code, _content_range(response)
    if code == 206 and (total, _version_of(response)) != (remote.size, remote.etag):
        raise RemoteChangedError(f"{shown(remote.url)} changed on the server while it was fetched")
    stated = response.headers.get("Content-Length", str(length))
    if code != 206 or start != first or stated != str(length):
        raise _TransientError(
            f"answered {code} with {stated} bytes from {start}, not {length} from {first}"
        )


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes to copy: offset in the remote file, length, and offset in the local file."""

    offset: int
    length: int
    target: int


class PartialFile:
    """A partially fetched file: its bytes, and a journal of the spans already written.

    The journal's first line identifies the remote version; each further line is a span with the
    CRC-32 of its bytes, appended after they were written. Bytes without a line, or with another CRC
    than their line, are fetched again: neither a kill nor a power cut can leave a hole.
    """

    def __init__(self, path: Path, remote: RemoteFile, prefix: bytes = b"") -> None:
        self.path, self.remote = path, remote
        self.data = path.with_name(f".{path.name}.part")
        self.journal = path.with_name(f".{path.name}.journal")
        self._prefix = prefix
        # another prefix means other spans: the old ones do not fit
        self._identity = {**asdict(remote), "prefix": zlib.crc32(prefix)}
        self._lock = threading.Lock()

    def missing(self, spans: list[Span]) -> list[Span]:
        """Return the spans still missing, checking all others; start over for another version."""
        there = self.data.exists() and self.journal.exists()
        lines = self.journal.read_bytes().split(b"\n") if there else [b""]
        # a last line without line break was torn while being written
        entries = [entry for line in lines[:-1] if (entry := _parsed(line))]
        if entries[:1] != [self._identity] or self._bytes(0, len(self._prefix)) != self._prefix:
            self.discard()
            self.data.parent.mkdir(parents=True, exist_ok=True)
            self.data.write_bytes(self._prefix)
            self._append(json.dumps(self._identity))
            return spans
        if lines[-1]:
            self._append("")  # end the torn line, else the next one would be lost too
        crc_of = {(entry["target"], entry["length"]): entry["crc"] for entry in entries[1:]}
        return [s for s in spans if not self._holds(s, crc_of.get((s.target, s.length)))]

    def fetch(self, http: Http, span: Span, advance: Callable[[int], object]) -> None:
        """Fetch one span and add it to the journal."""
        crc = 0
        with self.data.open("r+b") as file:
            file.seek(span.target)
            for piece in http.pieces(self.remote, span.offset, span.length):
                file.write(piece)
                crc = zlib.crc32(piece, crc)
                advance(len(piece))
        self._append(json.dumps({"target": span.target, "length": span.length, "crc": crc}))

    def fetch_missing(
        self, http: Http, spans: list[Span], pool: Executor, advance: Callable[[int], object]
    ) -> None:
        """Fetch the missing spans in parallel; discard a file that changed on the server.

        ``advance`` is called with numbers of bytes. If a span fails, no other span is being fetched
        any more when this raises.
        """
        missing = self.missing(spans)
        there = sum(span.length for span in spans) - sum(span.length for span in missing)
        advance(len(self._prefix) + there)
        jobs = [pool.submit(self.fetch, http, span, advance) for span in missing]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException as error:
            for job in jobs:
                job.cancel()
            wait(jobs)  # none may still write when the file is started over
            if isinstance(error, RemoteChangedError):
                self.discard()
            raise

    def finish(self) -> None:
        """Make the file durable under its final name."""
        publish(self.data, self.path)
        self.journal.unlink()

    def discard(self) -> None:
        """Remove everything fetched so far."""
        self.data.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def _holds(self, span: Span, crc: int | None) -> bool:
        if crc is None:
            return False
        found = self._bytes(span.target, span.length)
        return len(found) == span.length and zlib.crc32(found) == crc

    def _bytes(self, offset: int, length: int) -> bytes:
        with self.data.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def _append(self, line: str) -> None:
        with self._lock, self.journal.open("ab") as file:
            file.write(line.encode() + b"\n")


def chunks(size: int, chunk_bytes: int = RANGE_BYTES) -> list[Span]:
    """Return the spans of an entire file."""
    starts = range(0, size, chunk_bytes)
    return [Span(start, min(chunk_bytes, size - start), start) for start in starts]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or contains none."""
    return _parsed(path.read_bytes()) if path.exists() else {}


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
