"""Progress of packing, verifying and staging: a bar on a terminal, else a log line every 30 s."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

LOG_EVERY_S = 30.0

_log = logging.getLogger(__name__)


@contextmanager
def progress_of(total: int, what: str, enabled: bool = True) -> Iterator[Callable[[int], object]]:
    """Yield a function that adds to the number of patches that are done, out of ``total``."""
    if not enabled:
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=what, unit=" patches", dynamic_ncols=True) as bar:
            yield bar.update
    else:
        yield _LogLines(total, what).advance


class _LogLines:
    """Counts, and logs a line at intervals and at the end."""

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.done = 0
        self.started = self.reported = time.monotonic()

    def advance(self, count: int) -> None:
        """Add to the number of patches that are done."""
        self.done += count
        now = time.monotonic()
        if now - self.reported >= LOG_EVERY_S or self.done == self.total:
            rate = self.done / max(now - self.started, 1e-9)
            left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
            _log.info(
                "%s: %d of %d patches, %.0f/s, %s left",
                self.what,
                self.done,
                self.total,
                rate,
                left,
            )
            self.reported = now
