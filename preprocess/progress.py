"""Progress of packing, verifying, staging and fetching: a bar on a terminal, else log lines."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

LOG_EVERY_S = 30.0

_log = logging.getLogger(__name__)


@contextmanager
def progress_of(
    total: int, what: str, enabled: bool = True, unit: str = "patches"
) -> Iterator[Callable[[int], object]]:
    """Yield a thread-safe function that adds to the completed share of ``total``.

    ``what`` names the work; ``unit`` is the unit of ``total``, ``B`` for bytes.
    """
    if not enabled:
        yield lambda count: None
    elif sys.stderr.isatty():
        shown = unit if unit == "B" else f" {unit}"
        with tqdm(
            total=total, desc=what, unit=shown, unit_scale=unit == "B", dynamic_ncols=True
        ) as bar:
            yield bar.update
    else:
        yield _LogLines(total, what, unit).advance


class _LogLines:
    """Logs progress at intervals and at the end."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._done = 0
        self._started = self._reported = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """Add ``count`` completed units."""
        with self._lock:
            self._done += count
            done, now = self._done, time.monotonic()
            if now - self._reported < LOG_EVERY_S and done != self._total:
                return
            self._reported = now
        rate = done / max(now - self._started, 1e-9)
        if self._unit == "B":
            far = f"{done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
        else:
            far = f"{done} of {self._total} {self._unit}, {rate:.0f}/s"
        left = timedelta(seconds=round(max(0, self._total - done) / max(rate, 1e-9)))
        _log.info("%s: %s, %s left", self._what, far, left)
