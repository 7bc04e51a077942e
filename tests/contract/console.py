"""The console scripts as users start them: in this process by entry point, or as programs."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import h5py

COMMANDS = (
    *("fetch", "pack", "verify", "pretrain", "evaluate", "export"),
    *("status", "chain", "study", "doctor", "inspect"),
)
# A training of some seconds; one thread, so that equal samples give equal bits.
TRAINING = (
    *("recipe=laptop", "epochs=100", "max_steps=24", "data.bands=[B02,B04]"),
    *("data.global_batch_size=8", "augment.view_size_px=24", "checkpoint.every_steps=10"),
    # bfloat16, which auto takes on some machines, tells one rank from two in the second digit
    *("world.threads_per_rank=1", "precision=float32"),
)
# What a step of a Slurm job finds in its environment, and scontrol's answer while it is preempted.
OF_A_JOB = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    **{"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"},
    **{"SLURM_STEP_NODELIST": "n0", "SLURM_RESTART_COUNT": "0"},
}
PREEMPTED = "JobId=7 JobState=RUNNING Restarts=0 PreemptTime=2026-01-01T00:00:00 NodeList=n0"


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Made:
    """What a command has made.

    Attributes:
        folder: of its output.
        ended: how it ended.
        files: all files of the folder right afterwards, relative, without the copy of the code.
    """

    folder: Path
    ended: Ended
    files: frozenset[str]


def call(command: str, *arguments: str, cwd: Path) -> Ended:
    """Run a console script in this process and leave the process as it was."""
    (script,) = entry_points(group="console_scripts", name=f"simclr-{command}")
    out, err = io.StringIO(), io.StringIO()
    with (
        _state_restored(),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        sys.argv = [f"simclr-{command}", *arguments]
        try:
            script.load()()
        except SystemExit as ended:
            code = ended.code
        else:
            code = None
    assert isinstance(code, int), f"simclr-{command} ended with {code!r} instead of an exit code"
    return Ended(code, out.getvalue(), err.getvalue())


def start(command: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start an installed console script in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name(f"simclr-{command}")), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts its background jobs with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen[str], timeout_s: float = 600) -> Ended:
    """Wait for the end of a started command."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Ended(process.returncode, out, err)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something holds that a living process brings about.

    Raises:
        AssertionError: the process ended before, or ten minutes have passed.
    """
    limit = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, end(process)
        assert time.monotonic() < limit, "not within ten minutes"
        time.sleep(0.005)


def files(folder: Path) -> set[str]:
    """Return the relative paths of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def datasets(shard: Path) -> dict[str, bytes]:
    """Return the raw bytes of every data set of a shard, by name."""
    found: dict[str, bytes] = {}

    def keep(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node[()].tobytes()

    with h5py.File(shard) as file:
        file.visititems(keep)
    return found


@contextlib.contextmanager
def _state_restored() -> Iterator[None]:
    """Restore what a script may change for good because its process ends anyway."""
    argv, environment = sys.argv, dict(os.environ)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    former = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        root.setLevel(level)
        for added in set(root.handlers) - set(handlers):
            added.close()
        root.handlers[:] = handlers
        for number, handler in former.items():
            signal.signal(number, handler)
