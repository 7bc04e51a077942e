"""A rank's pulse goes out every second or so, another's is watched; who falls silent is named.

A rank that is stopped, swapped out or on a frozen node keeps all others waiting in a collective,
and none of them says for whom. Each rank writes down that it lives, its step, and the line of our
code that its main thread is in; and each watches the one after it, so that the work of watching
does not grow with the ranks. Whoever is stopped has no pulse; whoever is merely stuck has one,
which says where.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from jobs.slurm.environment import RankEnvironment

FOLDER_NAME = "pulses"
# One rank a second and file, up to this many files a second for all ranks together.
_FILES_PER_S = 64
_OURS = ("simclr.", "preprocess.", "jobs.")
_log = logging.getLogger("simclr")


class Pulse:
    """Context manager that beats while a rank trains, and watches the next rank.

    Args:
        run_dir: run folder.
        env: of this rank.
        silence_s: without a pulse for so long, a rank is taken for hung.
        on_silence: called once, from a thread, with words on the silent rank.
    """

    def __init__(
        self,
        run_dir: Path,
        env: RankEnvironment,
        silence_s: float,
        on_silence: Callable[[str], object],
    ) -> None:
        self._folder, self._env = folder_of(run_dir, env), env
        self._silence_s, self._on_silence = silence_s, on_silence
        self._period_s = period_s(env.num_ranks)
        self._step: int | None = None
        self._beats = 0
        self._ear = _Ear(self._folder / file_name((env.rank + 1) % env.num_ranks))
        self._over = threading.Event()
        self._main = threading.get_ident()
        # a daemon: a write that hangs must not keep a process alive that is done
        self._thread = threading.Thread(target=self._live, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        if self._env.num_ranks > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * self._period_s)  # bounded: the folder may be what hangs

    def reached(self, step: int) -> None:
        """Take the number of steps that this rank has done; the first one starts the watch.

        Before, a rank may still be importing; from here on all have met.
        """
        self._step = step

    def _live(self) -> None:
        while not self._over.wait(self._period_s):
            if self._beat("") and self._step is not None:
                # who was away for three beats was suspended itself, and blames nobody for them
                silent_s = self._ear.listen(3 * self._period_s)
                if silent_s > self._silence_s and self._ear.misses():
                    self._on_silence(f"{self._ear.describe()} for {silent_s:.0f} s")
                    return
        self._beat("left")  # an orderly end is no silence

    def _beat(self, state: str) -> bool:
        """Write this rank's pulse; a rank that cannot is in no position to judge others."""
        self._beats += 1
        record = {
            "rank": self._env.rank,
            "node": self._env.node,
            "pid": os.getpid(),
            "step": self._step,
            "at": whereabouts(self._main),
            "state": state,
            "beat": self._beats,
        }
        # Replaced, not rewritten: who reads it sees one beat or the next. Closed each time, as
        # network file systems show a file to other nodes when it is closed.
        path = self._folder / file_name(self._env.rank)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            _log.warning("no pulse: %s", error)
            return False
        return True


def period_s(num_ranks: int) -> float:
    """Return the seconds from a pulse of one rank to its next."""
    return max(1.0, num_ranks / _FILES_PER_S)


class _Ear:
    """Listens for one rank's pulse; by this process' clock, as those of nodes may differ."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard = ""
        self._since = self._listened = time.monotonic()

    def listen(self, gap_s: float) -> float:
        """Return for how long there was no new pulse.

        Args:
            gap_s: when this process itself was away for longer, it begins to count anew.
        """
        now = time.monotonic()
        heard = read_text(self._path)
        if heard != self._heard or now - self._listened > gap_s:
            self._heard, self._since = heard, now
        self._listened = now
        return now - self._since

    def misses(self) -> bool:
        """Say whether the pulse is missed: it was there, and did not take its leave."""
        return bool(self._heard) and _parsed(self._heard).get("state") != "left"

    def describe(self) -> str:
        """Return whose pulse it is, in words."""
        return f"{described(_parsed(self._heard))}, has had no pulse"


def folder_of(run_dir: Path, env: RankEnvironment) -> Path:
    """Return where one start of a job keeps its pulses, apart from those of ranks left behind."""
    return run_dir / FOLDER_NAME / f"{env.job_id or 'here'}-{env.restarts}"


def file_name(rank: int) -> str:
    """Return the name of a rank's pulse."""
    return f"rank-{rank:04d}.json"


def missing_ranks(run_dir: Path, env: RankEnvironment, watch_s: float) -> str:
    """Watch all pulses for a while and say who is silent, or else who is behind the others.

    Args:
        run_dir: run folder.
        env: of this rank.
        watch_s: for how long; two beats at least, or nothing can be said.
    """
    folder = folder_of(run_dir, env)
    paths = [folder / file_name(rank) for rank in range(env.num_ranks) if rank != env.rank]
    before = {path: read_text(path) for path in paths}
    time.sleep(watch_s)
    after = {path: _parsed(read_text(path)) for path in paths}
    silent = [
        pulse
        for path, pulse in after.items()
        if pulse == _parsed(before[path]) and pulse.get("state") != "left"
    ]
    steps = [pulse["step"] for pulse in after.values() if pulse.get("step") is not None]
    behind = [pulse for pulse in after.values() if steps and (pulse.get("step") or 0) < max(steps)]
    return "; ".join(described(pulse) for pulse in silent or behind if pulse)


def described(pulse: dict[str, Any]) -> str:
    """Return a rank's last words: who it is, and where it was."""
    done = "before its first step" if pulse.get("step") is None else f"{pulse['step']} steps done"
    return f"rank {pulse.get('rank')} on {pulse.get('node')}, {done}, last at {pulse.get('at')}"


def whereabouts(thread: int) -> str:
    """Return the innermost line of our own code that a thread is in."""
    frame: FrameType | None = sys._current_frames().get(thread)
    # of ours, not of torch: that every rank waits in a collective is no news
    while frame and not str(frame.f_globals.get("__name__", "")).startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return "no line of ours"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


def read_text(path: Path) -> str:
    """Return a pulse as it stands; empty when there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _parsed(text: str) -> dict[str, Any]:
    pulse: dict[str, Any] = json.loads(text) if text else {}
    return pulse


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
