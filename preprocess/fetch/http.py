"""HTTP with retries, a rate limit and byte ranges: what archives, searches and scenes are read by.

Every answer is checked against what was asked for: range, length, and the version of the file.
"""

from __future__ import annotations

import email.utils
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

PIECE_BYTES = 256 * 2**10  # how much is read before the stop flag and the rate are looked at
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_WAIT_S = 60.0
BACKOFF_S = 0.5  # first pause after a failure; it doubles with every attempt
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class FetchError(OSError):
    """Something could not be fetched; the message says what, why, and what to do."""


class RemoteChangedError(FetchError):
    """A file on the server is no longer the one whose first part was fetched."""


class UnreachableError(FetchError):
    """All attempts failed: the server, or the way to it, is down."""


class StoppedError(FetchError):
    """The user, or a failure elsewhere, stopped the transfer."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server, as it was when first asked for.

    Attributes:
        url: where it is.
        size: bytes.
        etag: version of its content as the server names it; empty if it does not.
    """

    url: str
    size: int
    etag: str


class RateLimit:
    """Holds all streams together below a number of bytes per second; 0 sets no limit."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, count: int, stop: threading.Event) -> None:
        """Wait until ``count`` more bytes may be read."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            pause = self._free_at - now
        stop.wait(pause)


class Http:
    """Requests with retries, shared by all threads of a fetch.

    Proxies and credentials come from the environment and ``.netrc`` alone, as ``requests`` reads
    them; neither they nor the query of a URL are ever logged.

    Args:
        retries: further attempts after a transient failure, without progress in between.
        streams: connections that are kept open.
        max_bytes_per_s: of all threads together; 0 sets no limit.
    """

    def __init__(self, retries: int = 8, streams: int = 8, max_bytes_per_s: float = 0.0) -> None:
        self.retries = retries
        self.stop = threading.Event()
        self.rate = RateLimit(max_bytes_per_s)
        self.session = requests.Session()
        adapter = HTTPAdapter(pool_connections=16, pool_maxsize=streams + 2)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        # the size and the ranges of a file compressed on the way would not be its own
        self.session.headers["Accept-Encoding"] = "identity"

    def open(self, url: str, length: int = 1) -> tuple[RemoteFile, bytes]:
        """Return size and version of a remote file, and its first bytes.

        Raises:
            FetchError: it is not there, the server serves no ranges, or all attempts failed.
        """

        def first_bytes(response: requests.Response) -> tuple[RemoteFile, bytes]:
            """Take the length of the file and its first bytes."""
            start, total = _content_range(response)
            code = response.status_code
            if code != 206 or total is None or start != 0:
                raise _TransientError(f"the server serves no byte ranges (HTTP {code})")
            head = response.content[:length]
            if len(head) != min(length, total):
                raise _TransientError(f"sent {len(head)} bytes of {min(length, total)}")
            return RemoteFile(url, total, response.headers.get("ETag", "")), head

        return self._with_retries(url, {"Range": f"bytes=0-{length - 1}"}, first_bytes)

    def read(self, remote: RemoteFile, offset: int, length: int) -> bytes:
        """Return bytes of a remote file, fewer at its end.

        Raises:
            RemoteChangedError: the file changed since ``open``.
            FetchError: all attempts failed.
        """
        buffer = bytearray()
        length = max(0, min(length, remote.size - offset))
        for piece in self.pieces(remote, offset, length):
            buffer += piece
        return bytes(buffer)

    def pieces(self, remote: RemoteFile, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of a range in order; after a cut it goes on where it was cut.

        Raises:
            RemoteChangedError: the file changed since ``open``.
            FetchError: attempts failed one after another without a byte in between.
        """
        done, attempt = 0, 0
        while done < length:
            before = done
            first, last = offset + done, offset + length - 1
            try:
                with self._get(remote.url, {"Range": f"bytes={first}-{last}"}) as response:
                    self._check_range(response, remote, first, length - done)
                    for piece in response.iter_content(PIECE_BYTES):
                        self._raise_if_stopped()
                        piece = piece[: length - done]
                        self.rate.wait(len(piece), self.stop)
                        done += len(piece)
                        yield piece
                if done < length:
                    raise requests.ConnectionError(f"cut after {done} of {length} bytes")
            except (requests.RequestException, _TransientError) as error:
                attempt = 0 if done - before >= PIECE_BYTES else attempt
                attempt = self._pause(remote.url, error, attempt)

    def get_text(
        self,
        url: str,
        check: Callable[[str], object],
        method: str = "GET",
        headers: dict[str, str] | None = None,
        **request: Any,
    ) -> str:
        """Return the text of an answer that passes a check; one that does not is asked for again.

        Args:
            url: where to ask.
            check: raises ``ValueError`` for an answer that is none, such as a proxy's error page.
            method: GET or POST.
            headers: of the request.
            request: further arguments of ``requests``.

        Raises:
            FetchError: all attempts failed.
        """

        def accept(response: requests.Response) -> str:
            """Take the text if it passes the check."""
            text = response.content.decode()
            check(text)
            return text

        return self._with_retries(url, headers or {}, accept, method, **request)

    def _with_retries(
        self,
        url: str,
        headers: dict[str, str],
        accept: Callable[[requests.Response], _Result],
        method: str = "GET",
        **request: Any,
    ) -> _Result:
        attempt = 0
        while True:
            try:
                with self._get(url, headers, method, **request) as response:
                    return accept(response)
            except (requests.RequestException, _TransientError, ValueError) as error:
                attempt = self._pause(url, error, attempt)

    def _get(
        self, url: str, headers: dict[str, str], method: str = "GET", **request: Any
    ) -> requests.Response:
        self._raise_if_stopped()
        response = self.session.request(
            method, url, headers=headers, stream=True, timeout=_TIMEOUT_S, **request
        )
        if response.ok:
            return response
        code, after = response.status_code, response.headers.get("Retry-After")
        response.close()
        if code in _TRANSIENT:
            raise _TransientError(f"HTTP {code}", _retry_after_s(after))
        if code == 416:  # the file is shorter than it was
            raise RemoteChangedError(f"{shown(url)} changed on the server while it was fetched")
        raise FetchError(f"{shown(url)}: HTTP {code} {response.reason}")

    def _check_range(
        self, response: requests.Response, remote: RemoteFile, first: int, length: int
    ) -> None:
        """Refuse an answer that holds other bytes than asked for."""
        start, total = _content_range(response)
        etag = response.headers.get("ETag", "")
        if response.status_code == 206 and (total, etag) != (remote.size, remote.etag):
            raise RemoteChangedError(
                f"{shown(remote.url)} changed on the server while it was fetched"
            )
        stated = response.headers.get("Content-Length")
        wrong = stated is not None and stated != str(length)
        if response.status_code != 206 or start != first or wrong:
            raise _TransientError(
                f"answered {response.status_code} with {stated} bytes from {start}, not "
                f"{length} from {first}"
            )

    def _pause(self, url: str, error: Exception, attempt: int) -> int:
        """Wait before the next attempt, and count it.

        Raises:
            FetchError: there have been enough.
        """
        self._raise_if_stopped()
        reason = _reason(error)
        if attempt >= self.retries:
            raise UnreachableError(
                f"{shown(url)}: {reason}, in {attempt + 1} attempts; start the same command again "
                "when the network is back: what is complete is kept"
            ) from error
        # full jitter: streams that were refused together do not come back together
        pause = random.uniform(0.5, 1.0) * BACKOFF_S * 2.0**attempt
        pause = min(max(pause, getattr(error, "after_s", 0.0)), _MAX_WAIT_S)
        _log.info("%s: %s; again in %.1f s", shown(url), reason, pause)
        self.stop.wait(pause)
        return attempt + 1

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise StoppedError("stopped")


class _TransientError(Exception):
    """An answer that may be another one next time."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


def shown(url: str) -> str:
    """Return a URL as it may be logged: without user, password and query, which may be secrets."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def refuse_offline(http: Http, url: str) -> None:
    """Find out at once whether a server can be reached.

    Raises:
        FetchError: it cannot; the message says what to set.
    """
    for attempt in range(3):
        try:
            http.session.request("GET", url, stream=True, timeout=_TIMEOUT_S).close()
            return
        except requests.RequestException as error:
            if attempt == 2:
                raise UnreachableError(
                    f"{os.uname().nodename} cannot reach {shown(url)} ({_reason(error)}); run on a "
                    "node with internet access, such as a login or transfer node "
                    "(cluster.partition=NAME), or set https_proxy"
                ) from error
            http.stop.wait(BACKOFF_S)


def _reason(error: Exception) -> str:
    """Return a failure in a few words; those of requests repeat URL and object addresses."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of https_proxy or http_proxy does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not accepted"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):
        cause = str(error)
        for word in ("Name or service not known", "name resolution", "NameResolutionError"):
            if word in cause:
                return "its name cannot be resolved"
        return "no connection" if "Max retries" in cause or not cause else "the connection was cut"
    if isinstance(error, _TransientError):
        return str(error)
    return "the answer is not readable"


def _retry_after_s(value: str | None) -> float:
    """Return the seconds that a server asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """Return first byte and total size of a range answer."""
    try:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        extent, _, total = rest.partition("/")
        return (int(extent.partition("-")[0]), int(total)) if unit == "bytes" else (None, None)
    except ValueError:
        return None, None
