"""Write one heartbeat file per rank, detect lost ranks, and enforce the deadline of a save.

Each rank writes a heartbeat every 1 to 4 s: its step, and the line of project code that its main
thread is in. It monitors only the heartbeat of the next rank, so that the cost per rank does not
grow with their number. A dead rank has no heartbeat; a stuck one does, which shows its line of
code. The remaining ranks notice a loss at different times and in different ways; one reports it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jobs.run_dir import (
    HEARTBEATS,
    RunAttempt,
    attempt_number,
    is_superseded,
    read_attempts,
    record_event,
    saved_step,
)
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.requeue import RUN_AGAIN, RunStop, decide_and_requeue, end_process, exit_for_requeue
from simclr.preemption import STOP_SIGNALS, DeviceFaultError, LostPeerError, TrainerHooks

DEADLINE_EXCEEDED = 76  # exit code: a stop took too long; older checkpoints are complete
# One file per rank and second, up to this many files per second over all ranks. From 256 ranks on
# there are more: two beats must fit into the time in which a lost rank is identified.
_FILES_PER_S, _LONGEST_PERIOD_S = 64, 4.0
# How long heartbeats are observed, in periods. Slurm kills the ranks of a step KillWait (30 s, at
# least 5) after one of them has died.
OBSERVED_PERIODS = 2.5
FOLDER_HANGS_S = 20.0
TERM_S = 15.0
_REPORTER = "reporter"
_PROJECT = ("simclr.", "preprocess.", "jobs.")
_log = logging.getLogger("simclr")


class HeartbeatMonitor(TrainerHooks):
    """Context manager that writes a rank's heartbeat while it trains, and monitors the next rank.

    As trainer hooks, it learns the step and checks the fence of ``attempt``, which is None except
    on the main rank. If the next rank has no heartbeat for ``silence_s``, it is considered hung,
    and ``on_silence`` is called once, from a thread, with a description of it.
    """

    def __init__(
        self,
        run_dir: Path,
        env: RankEnvironment,
        attempt: RunAttempt | None,
        silence_s: float,
        on_silence: Callable[[str], object],
    ) -> None:
        self._folder, self._env, self._attempt = heartbeat_folder(run_dir, env), env, attempt
        self._silence_s, self._on_silence = silence_s, on_silence
        self._period_s = period_s(env.num_ranks)
        self._step: int | None = None
        self._count, self._failing = 0, False
        self._next = HeartbeatReader(self._folder / file_name((env.rank + 1) % env.num_ranks))
        self._over = threading.Event()
        self._main = threading.get_ident()
        # a daemon: a hung write must not keep a finished process alive
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)

    def __enter__(self) -> HeartbeatMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(2 * self._period_s)  # bounded: the folder may be what hangs

    def on_start(self, step: int) -> None:
        """Record the step at which training begins."""
        if self._attempt:
            self._attempt.training_begins(step)

    def on_step(self, step: int) -> None:
        """Note the steps done; monitoring starts here, as ranks may still import before."""
        self._step = step

    def before_publish(self) -> None:
        """Check the fence; SupersededError: a later attempt has begun."""
        if self._attempt:
            self._attempt.check_fence()

    def _live(self) -> None:
        self._beat("alive")
        step, since = self._step, time.monotonic()
        while not self._over.wait(self._period_s):
            if self._step != step:
                step, since = self._step, time.monotonic()
            if self._beat("alive") and self._step is not None and self._env.num_ranks > 1:
                # A process that was itself suspended for three beats must not blame others. While
                # steps progress, no rank is lost: a silent one merely cannot write.
                silent_s = self._next.silence_s(3 * self._period_s)
                silent_s = min(silent_s, time.monotonic() - since)
                if silent_s > self._silence_s and (rank := self._next.stale_rank()):
                    self._on_silence(f"{rank}, has had no heartbeat for {silent_s:.0f} s")
                    return
        self._beat("left")  # an orderly exit does not count as silence

    def _beat(self, state: str) -> bool:
        """Write the heartbeat; return whether it worked, as otherwise no rank may be judged."""
        self._count += 1
        rank, node, at = self._env.rank, self._env.node, line_of_thread(self._main)
        record = {"rank": rank, "node": node, "pid": os.getpid(), "time": time.time()}
        record |= {"step": self._step, "at": at, "state": state, "count": self._count}
        # Replaced, not rewritten: a reader sees one beat or the next. Closed each time, as
        # network file systems make a file visible to other nodes on close.
        path = self._folder / file_name(rank)
        temporary = path.with_suffix(".tmp")
        try:
            if self._count == 1:
                self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            if not self._failing:
                _log.warning("heartbeats cannot be written, training continues: %s", error)
            self._failing = True
            return False
        self._failing = False
        return True


class HeartbeatReader:
    """Reads one rank's heartbeat; uses this process' clock, as those of nodes may differ."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = ""
        self._since = self._read = time.monotonic()

    def silence_s(self, gap_s: float) -> float:
        """Return the seconds without a new heartbeat; restart at 0 if suspended for ``gap_s``."""
        now = time.monotonic()
        text = read_text(self._path)
        if text != self._seen or now - self._read > gap_s:
            self._seen, self._since = text, now
        self._read = now
        return now - self._since

    def stale_rank(self) -> str:
        """Describe the rank if it had a heartbeat and did not exit cleanly; else empty."""
        beat = parse_heartbeat(self._seen)
        return describe_rank(beat) if self._seen and beat.get("state") != "left" else ""


def period_s(num_ranks: int) -> float:
    """Return the seconds between two heartbeats of a rank."""
    return min(max(1.0, num_ranks / _FILES_PER_S), _LONGEST_PERIOD_S)


def heartbeat_folder(run_dir: Path, env: RankEnvironment) -> Path:
    """Return the folder of one start of a job, separate from those of leftover ranks."""
    return run_dir / HEARTBEATS / f"{env.job_id or 'here'}-{env.restarts}"


def file_name(rank: int) -> str:
    """Return the name of a rank's heartbeat file."""
    return f"rank-{rank:04d}.json"


def find_silent_ranks(
    run_dir: Path, env: RankEnvironment, observe_s: float = 0.0, *, or_behind: bool = True
) -> str:
    """Observe all heartbeats for a while; name the silent ranks, or else those that are behind.

    ``observe_s``: at least two periods, to be conclusive; 0 derives it from the number of ranks.
    ``or_behind``: if all are alive, name those with fewer steps than others.
    """
    folder = heartbeat_folder(run_dir, env)
    paths = [folder / file_name(rank) for rank in range(env.num_ranks) if rank != env.rank]
    before = [parse_heartbeat(read_text(path)) for path in paths]
    time.sleep(observe_s or OBSERVED_PERIODS * period_s(env.num_ranks))
    after = [parse_heartbeat(read_text(path)) for path in paths]
    pairs = zip(before, after, strict=True)
    # a rank without a heartbeat may not have started, so it is not judged
    silent = [beat for old, beat in pairs if beat and beat == old and beat.get("state") != "left"]
    steps = [beat["step"] for beat in after if beat.get("step") is not None]
    behind = [beat for beat in after if steps and (beat.get("step") or 0) < max(steps)]
    named = silent or (behind if or_behind else [])
    return "; ".join(map(describe_rank, filter(None, named)))


def describe_rank(beat: dict[str, Any]) -> str:
    """Return who a rank is and where it was at its last heartbeat."""
    done = "before its first step" if beat.get("step") is None else f"{beat['step']} steps done"
    return f"rank {beat.get('rank')} on {beat.get('node')}, {done}, last at {beat.get('at')}"


def line_of_thread(thread: int) -> str:
    """Return the innermost line of project code that a thread is in."""
    frame: FrameType | None = sys._current_frames().get(thread)
    # not of torch: that every rank waits in a collective is not informative
    while frame and not str(frame.f_globals.get("__name__", "")).startswith(_PROJECT):
        frame = frame.f_back
    if frame is None:
        return "a line outside project code"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"


def read_text(path: Path) -> str:
    """Return the text of a heartbeat file; empty if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def parse_heartbeat(text: str) -> dict[str, Any]:
    """Return the fields of a heartbeat file; none if it is incomplete."""
    try:
        beat: dict[str, Any] = json.loads(text) if text else {}
    except ValueError:
        return {}
    return beat


def exit_lost_rank(
    run_dir: Path, env: RankEnvironment, cause: str, code: int = RUN_AGAIN
) -> NoReturn:
    """End this process, whose run has lost a rank; the job is requeued as long as that helps.

    Outside Slurm nothing would restart it: the cause is recorded, and the process exits with 1.
    If the run folder hangs, nothing is recorded, and the process exits with ``code``.
    """

    def exit_without_folder() -> None:
        """End the process if the run folder itself hangs."""
        try:
            if env.launcher is Launcher.slurm:
                decide_and_requeue(RunStop(env, None, cause=cause))
        finally:
            os._exit(code)

    _log.error("%s", cause)
    timer = threading.Timer(FOLDER_HANGS_S, exit_without_folder)
    timer.daemon = True
    timer.start()
    is_first = elect_reporter(run_dir, env)
    events = read_attempts(run_dir)
    number = attempt_number(events, env.start)
    reports = is_first and not is_superseded(events, env.start)
    step = saved_step(run_dir)
    if env.launcher is not Launcher.slurm:
        if reports and number:
            record_event(run_dir, number, "failed", error=cause)
        end_process(1)
    timer.cancel()
    stop = RunStop(env, None, run_dir, number if reports else None, step, cause)
    exit_for_requeue(stop, reports=reports, code=code)


def elect_reporter(run_dir: Path, env: RankEnvironment) -> bool:
    """Return True only in the first process of this start of the job that calls it."""
    folder = heartbeat_folder(run_dir, env)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # exclusive creation: the file system lets only one process succeed
        os.close(os.open(folder / _REPORTER, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError as error:
        _log.warning("nothing can be written in %s: %s", run_dir, error)
        return env.is_main
    return True


def lost_rank_cause(run_dir: Path, env: RankEnvironment, event: BaseException) -> str:
    """Describe the lost rank behind an exception; empty if this rank failed by itself.

    Also searches the exception's causes: srun's signal to the remaining ranks may interrupt it.
    """
    behind: BaseException | None = event
    while behind is not None and not isinstance(behind, DeviceFaultError | LostPeerError):
        behind = behind.__cause__ or behind.__context__
    if isinstance(behind, DeviceFaultError):
        return (
            f"the GPU of rank {env.rank} on {env.node} has failed: {behind}; should it happen "
            f"again, leave the node out: cluster.exclude={env.node}"
        )
    if behind is None:
        return ""
    if silent := find_silent_ranks(run_dir, env):
        return f"lost {silent} ({behind})"
    return f"a collective failed, but no rank is silent or behind ({behind})"


def record_failure(run_dir: Path, env: RankEnvironment, error: BaseException) -> None:
    """Record this rank's error, unless another rank has reported first."""
    number = attempt_number(read_attempts(run_dir), env.start)
    if number and elect_reporter(run_dir, env):
        where = f"rank {env.rank} on {env.node}: " if env.num_ranks > 1 else ""
        record_event(run_dir, number, "failed", error=f"{where}{type(error).__name__}: {error}")


def peer_reported_failure(run_dir: Path, env: RankEnvironment) -> bool:
    """Return whether a rank has recorded its own failure, so that no rank is merely lost."""
    events = read_attempts(run_dir)
    number = attempt_number(events, env.start)
    return any(e["attempt"] == number and e["event"] == "failed" for e in events)


def clear_heartbeats(run_dir: Path, env: RankEnvironment) -> None:
    """Remove the heartbeats of earlier starts; called on the main rank before this one begins."""
    own = heartbeat_folder(run_dir, env)
    for folder in own.parent.glob("*"):
        if folder != own:
            # a leftover rank may still write there
            shutil.rmtree(folder, ignore_errors=True)
    (own / _REPORTER).unlink(missing_ok=True)


@contextmanager
def save_deadline(
    budget_s: float,
    on_late: Callable[[str], object],
    on_term: Callable[[], object] | None = None,
    term_s: float = TERM_S,
) -> Iterator[None]:
    """Call ``on_late`` from a thread if the block still runs ``budget_s`` after its first stop.

    Args:
        budget_s: seconds that a stop may take, of the time that the scheduler grants.
        on_late: receives a description of where the main thread hangs; should end the process.
        on_term: called if the block still runs ``term_s`` after a SIGTERM without a warning,
            which srun also sends when another rank has died, with SIGKILL soon after.
        term_s: seconds, less than Slurm's KillWait.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # required by set_wakeup_fd
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over, main = threading.Event(), threading.get_ident()

    def watch() -> None:
        """Wait for the first stop, then for the end of the block or of the time."""
        while not over.is_set():
            received = os.read(reader, 64)  # several signals may come at once, one byte each
            if not any(number in received for number in STOP_SIGNALS):
                continue
            early_s = min(term_s, budget_s) if on_term and signal.SIGUSR2 not in received else 0.0
            if early_s and not over.wait(early_s) and on_term:
                on_term()
            if not over.wait(budget_s - early_s):
                where = line_of_thread(main)
                on_late(f"not stopped {budget_s:.0f} s after the signal: at {where}")
            return

    thread = threading.Thread(target=watch, name="deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        over.set()
        os.write(writer, b"\0")  # no signal has this number: it only wakes the thread
        thread.join()  # before the pipe is closed: its descriptor may soon be reused
        os.close(reader)
        os.close(writer)
