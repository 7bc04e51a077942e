"""A stop signal starts a clock; a process that is still busy stopping when it runs out is ended.

Python runs its signal handlers between two lines of the main thread, so a main thread that hangs
in a write never hears. The clock is therefore started by the number that the interpreter writes to
a pipe the moment a signal comes, whatever the main thread does.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.pulse import whereabouts

LATE = 76  # exit code: ended by the deadline, older checkpoints are whole
_STOPS = frozenset(map(int, (signal.SIGUSR2, signal.SIGTERM)))


@contextmanager
def deadline(budget_s: float, on_late: Callable[[str], object]) -> Iterator[None]:
    """Call ``on_late`` from a thread if the block still runs ``budget_s`` after its first stop.

    Args:
        budget_s: seconds that a stop may take, of the time that the scheduler gives.
        on_late: takes words on where the main thread hangs; it should end the process.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # the interpreter insists
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over, main = threading.Event(), threading.get_ident()

    def watch() -> None:
        """Wait for the first stop, then for the end of the block or of the time."""
        while not over.is_set():
            # several signals may have come at once, a byte each
            if _STOPS.intersection(os.read(reader, 64)) and not over.wait(budget_s):
                on_late(f"not stopped {budget_s:.0f} s after the signal: at {whereabouts(main)}")
                return

    thread = threading.Thread(target=watch, name="deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        over.set()
        os.write(writer, b"\0")  # no signal has this number: it only wakes the thread
        thread.join()  # before the pipe is closed: its number may be another file's soon
        os.close(reader)
        os.close(writer)
