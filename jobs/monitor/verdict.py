"""Facts on a run come in; its state in plain words, and what a person should do, go out.

Truth about success is the run's own record: Slurm takes some failures for successes, and forgets.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.monitor.history import AttemptRecord
from jobs.monitor.progress import Progress
from jobs.monitor.reasons import why_waiting
from jobs.slurm import JobState

STALE_S = 900.0  # a heartbeat comes every step; minutes without one is a hang


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run.

    Attributes:
        run_dir: run folder.
        job: Slurm's word on its job; none when there is none, or it is forgotten.
        events: lines of its attempts.
        attempts: the same, in words.
        progress: how far it is.
        now: seconds since 1970.
    """

    run_dir: Path
    job: JobState | None
    events: Sequence[Mapping[str, Any]]
    attempts: Sequence[AttemptRecord]
    progress: Progress
    now: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run fares.

    Attributes:
        state: in plain words.
        needs_person: it will not go on or end by itself.
        action: what to do; empty when nothing.
        is_live: processes of it are at work.
    """

    state: str
    needs_person: bool = False
    action: str = ""
    is_live: bool = False


def judge(facts: Facts) -> Verdict:
    """Return the state of a run."""
    kept = facts.progress.checkpoint
    if kept and not kept.is_whole:
        # the run itself passes over a damaged checkpoint; a person should know why it has one
        verdict = _judge(facts)
        return Verdict(
            f"{verdict.state}; newest checkpoint {kept.state}",
            True,
            verdict.action or "look at the disk; the run goes on from the checkpoint before",
            verdict.is_live,
        )
    return _judge(facts)


def _judge(facts: Facts) -> Verdict:
    last = facts.events[-1]["event"] if facts.events else "none"
    if last == "finished":
        return Verdict("finished", action=f"simclr-evaluate run={facts.run_dir} ...")
    if facts.job and not facts.job.is_final:
        return _live(facts.job, facts)
    if facts.job and last in ("start", "training"):
        word = facts.job.state.lower()
        return Verdict(f"ended by Slurm: {word}", True, _start_again(facts))
    if facts.job and last == "none":
        return Verdict(f"ended before it began: {facts.job.state.lower()}", True, "read the log")
    return _without_job(facts, last)


def _live(job: JobState, facts: Facts) -> Verdict:
    if job.state == "PENDING":
        why = why_waiting(job)
        cure = f"{why.cure}; scontrol show job {job.job_id}" if why.cure else ""
        return Verdict(f"waiting: {why.words}", bool(why.cure), cure)
    if job.state != "RUNNING":
        return Verdict(job.state.lower())
    slowest = facts.progress.slowest
    if _silent_s(facts) > STALE_S:
        return Verdict(
            f"running, but {f'rank {slowest.rank}' if slowest else 'every rank'} is silent",
            True,
            f"read the log; scancel {job.job_id} if it hangs, and submit again",
            is_live=True,
        )
    return _at_work(facts)


def _without_job(facts: Facts, last: str) -> Verdict:
    again = _start_again(facts)
    if last == "none":
        return Verdict("not started")
    attempt = facts.attempts[-1]
    if last == "failed":
        return Verdict(attempt.cause[:200], True, f"read the log; {again}")
    if last == "stop":
        return Verdict(attempt.cause, True, again)
    if attempt.outcome == "running" and _may_be_alive(facts):
        return _at_work(facts)
    cause = attempt.cause or "killed, or the machine failed"
    return Verdict(f"ended without a word: {cause}", True, again)


def _at_work(facts: Facts) -> Verdict:
    return Verdict("training" if facts.progress.step else "starting", is_live=True)


def _may_be_alive(facts: Facts) -> bool:
    """Say whether the process of an attempt lives: by its id on this machine, else by its age."""
    start = next(event for event in reversed(facts.events) if event["event"] == "start")
    if start.get("host") == socket.gethostname():
        return Path(f"/proc/{start['pid']}").exists()
    return _silent_s(facts) < STALE_S


def _silent_s(facts: Facts) -> float:
    """Return for how long a rank has said nothing; before the first word, since the start."""
    slowest = facts.progress.slowest
    if slowest:
        return facts.now - slowest.time
    return facts.now - facts.attempts[-1].start if facts.attempts else 0.0


def _start_again(facts: Facts) -> str:
    kept = facts.progress.checkpoint
    if kept and not kept.is_whole:
        return "the same command goes on from the checkpoint before"
    return f"the same command goes on {f'at step {kept.step}' if kept else 'from the start'}"
