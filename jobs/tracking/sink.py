"""Start and end the processes that send a run's metrics to trackers; simclr-pretrain calls it.

Training steps never wait for a tracker: they only poll its process for messages. Records that it
misses are in ``metrics.jsonl``, and the next attempt sends them.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self, cast

from preprocess.shards.atomic_io import write_json

FOLDER = "tracking"  # in the run folder: ids, logs and local data of the trackers
ARTIFACTS_NAME = "artifacts.json"
FINISH_S = 120.0  # time for a tracker to send its last records
_INTERRUPTED_S = 10.0  # the same after an exception, such as Ctrl-C

_log = logging.getLogger("simclr")


class Tracking(Enum):
    """Where metrics go besides ``metrics.jsonl``."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    mlflow = "mlflow"


# mlflow-skinny needs sqlalchemy and alembic for a local store
_MODULES = {  # by package
    Tracking.tensorboard: {"tensorboard": "tensorboard"},
    Tracking.wandb: {"wandb": "wandb"},
    Tracking.mlflow: {"mlflow-skinny": "mlflow", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
}


def check_installed(trackers: Sequence[Tracking]) -> None:
    """Refuse trackers that are not installed, before a job waits in the queue.

    Raises:
        ValueError: a library is missing; the message names the packages.
    """
    for tracker in trackers:
        missing = [name for name, module in _MODULES[tracker].items() if not find_spec(module)]
        if missing:
            raise ValueError(
                f"tracking has {tracker.value}, which is not installed; pip install "
                f"{' '.join(missing)}, or leave it out"
            )


class TrackerProcesses:
    """Metrics sink and context manager: one process per tracker, from the first record on."""

    def __init__(self, trackers: Sequence[Tracking], run_dir: Path) -> None:
        # ignore duplicates
        self._names = list(dict.fromkeys(tracker.value for tracker in trackers))
        self._run_dir = run_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        """Start nothing yet: ``metrics.jsonl`` still has lines from after the checkpoint."""
        return self

    def write(self, record: dict[str, Any]) -> None:
        """Start the trackers, which read ``metrics.jsonl`` themselves, and log their complaints."""
        for name in list(self._names):
            try:
                if name not in self._processes:
                    self._processes[name] = _start(name, self._run_dir, subprocess.PIPE)
            except OSError as error:  # no memory, a full disk
                self._names.remove(name)
                _log.warning("tracking by %s could not start: %s", name, error)
                continue
            _log_complaints(name, self._processes[name])
            if self._processes[name].poll() is not None:
                self._names.remove(name)
                log = self._run_dir / FOLDER / f"{name}.log"
                _log.warning("tracking by %s has ended until the next attempt; see %s", name, log)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the trackers send their last records; kill those that take too long."""
        _finish(self._processes, FINISH_S if kind is None else _INTERRUPTED_S)


def log_artifacts(run_dir: Path, files: Mapping[str, Path]) -> None:
    """Add files to each tracker of a run; ``files`` is keyed by their names in the tracker.

    A tracker that fails only logs a warning.
    """
    folder = run_dir / FOLDER
    names = [one.value for one in Tracking if (folder / f"{one.value}.json").exists()]
    if not names:
        return
    path = folder / ARTIFACTS_NAME
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, known | {name: str(file.resolve()) for name, file in files.items()})
    _finish({name: _start(name, run_dir, subprocess.DEVNULL) for name in names}, FINISH_S)


def tracker_links(run_dir: Path) -> dict[str, str]:
    """Return each tracker's URL for a run, or the command that shows or uploads it."""
    links = {}
    for tracker in Tracking:
        path = run_dir / FOLDER / f"{tracker.value}.json"
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if state.get("link"):
            links[tracker.value] = state["link"]
    return links


def _start(name: str, run_dir: Path, stdin: int) -> subprocess.Popen[bytes]:
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # import the same code as this process, possibly a snapshot, from any working directory
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.tracking.follower", name, str(run_dir)],
            stdin=stdin,  # when it closes, training is over for the tracker
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for the training
        )
    os.set_blocking(_stdout(process).fileno(), False)
    return process


def _finish(processes: Mapping[str, subprocess.Popen[bytes]], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    for process in processes.values():
        if process.stdin:
            process.stdin.close()
    for name, process in processes.items():
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.warning("tracking by %s did not end within %.0f s", name, limit_s)
            process.kill()
            process.wait()
        else:
            _log_complaints(name, process)
        _stdout(process).close()


def _log_complaints(name: str, process: subprocess.Popen[bytes]) -> None:
    # None: nothing to read; empty: the process has ended
    for line in (_stdout(process).read() or b"").decode(errors="replace").splitlines():
        _log.warning("tracking by %s: %s", name, line)


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    return cast(IO[bytes], process.stdout)  # ``_start`` makes it a pipe
