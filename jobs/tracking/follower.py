"""The process of one tracker: sends ``metrics.jsonl`` as it grows, until its stdin is closed.

Started by ``jobs.tracking.sink`` as ``python -m jobs.tracking.follower NAME RUN``. Its stdout is
for complaints, which the training logs; what libraries print goes to its stderr, the tracker's log.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.run_dir import FENCE_NAME, read_attempts
from jobs.tracking.sink import ARTIFACTS_NAME, FINISH_S, FOLDER
from jobs.tracking.trackers import TRACKERS, Tracker
from simclr.monitoring.metrics import METRICS_NAME

POLL_S = 1.0
_LONGEST_PAUSE_S = 60.0  # between attempts to reach a server that is away


class MetricsReader:
    """Reads the lines of ``metrics.jsonl`` that are new and complete."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_NAME
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the records since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        return [record for line in whole.splitlines() if (record := _parse(line))]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}  # cut by a full disk; whoever reads the file for people says so
    return record


class Follower:
    """Sends the records of a run to one tracker.

    Args:
        tracker: not yet opened.
        run_dir: run folder.
    """

    def __init__(self, tracker: Tracker, run_dir: Path) -> None:
        self._tracker, self._run_dir = tracker, run_dir
        self._reader = MetricsReader(run_dir)
        self._fence = _fence(run_dir)
        self._pending: list[dict[str, Any]] = []
        self._reached: int | None = None

    def is_overtaken(self) -> bool:
        """Return whether a later attempt has taken the run over: its tracker sends the rest."""
        return _fence(self._run_dir) != self._fence

    def send(self) -> None:
        """Open the tracker if need be, and send what is new; after an error all comes again."""
        self._pending += self._reader.read()
        if self._reached is None:
            self._reached = self._tracker.open()
        new = [record for record in self._pending if record["step"] > self._reached]
        if new:
            self._tracker.write(new)
            self._reached = new[-1]["step"]
        self._pending = []

    def finish(self) -> None:
        """Send the rest, and the files that later commands have left."""
        self.send()
        for name, path in artifacts_of(self._run_dir).items():
            self._tracker.add_artifact(name, path)
        events = [event["event"] for event in read_attempts(self._run_dir)]
        self._tracker.close(events[-1] if events else "")


def follow(
    follower: Follower, wait: Callable[[float], bool], complain: Callable[[str], None]
) -> bool:
    """Send records to a tracker until the training is over; return whether all were sent.

    Args:
        follower: of the run.
        wait: waits for some seconds; true once the training is over.
        complain: tells the training of trouble: once until it is over, and at the end.
    """
    pause_s, in_trouble = 0.0, False
    while True:
        over = wait(pause_s)
        if follower.is_overtaken():
            return True
        try:
            (follower.finish if over else follower.send)()
        except Exception as error:  # a tracker's library may raise anything; training goes on
            if over or not in_trouble:
                lines = str(error).splitlines() or [""]
                complain(f"{type(error).__name__}: {lines[0]}; the records are in {METRICS_NAME}")
            in_trouble, pause_s = True, min(max(2 * pause_s, POLL_S), _LONGEST_PAUSE_S)
        else:
            in_trouble, pause_s = False, POLL_S
        if over:
            return not in_trouble


def artifacts_of(run_dir: Path) -> dict[str, Path]:
    """Return name and path of the files that later commands have added and that still exist."""
    path = run_dir / FOLDER / ARTIFACTS_NAME
    named = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: Path(file) for name, file in named.items() if Path(file).is_file()}


def _fence(run_dir: Path) -> bytes:
    path = run_dir / FENCE_NAME
    return path.read_bytes() if path.exists() else b""


def _stdin_closes(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    if not ready:
        return False
    # Nothing may keep a tracker longer: on Slurm the nodes would wait for it.
    signal.alarm(round(FINISH_S))
    return True


def _is_only_one(run_dir: Path, name: str) -> bool:
    """Lock the tracker of a run for this process; true where the file system has no locks."""
    number = os.open(run_dir / FOLDER / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return False
    except OSError:
        return True
    return True  # the lock is held until the process ends


def main() -> None:
    """Follow the run that the arguments name."""
    name, run_dir = sys.argv[1], Path(sys.argv[2])
    # the training receives the signals, and closes stdin when it ends
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    complaints = os.dup(1)
    os.dup2(2, 1)

    def complain(text: str) -> None:
        """Write a line for the training, which may have ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(complaints, f"{text}\n".encode())
        sys.stderr.write(f"{text}\n")

    while not _is_only_one(run_dir, name):
        # The attempt before is sending its last records; or a training is under way, whose tracker
        # adds at its end what an evaluation has left in the list.
        if _stdin_closes(POLL_S):
            raise SystemExit(0)
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S start\n"))
    sent = follow(Follower(TRACKERS[name](run_dir), run_dir), _stdin_closes, complain)
    signal.alarm(round(FINISH_S))  # libraries wait for their servers when Python ends
    raise SystemExit(0 if sent else 1)


if __name__ == "__main__":
    main()
