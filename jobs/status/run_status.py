"""The state of a run, from its folder and from Slurm, with what a person should do next.

Called by simclr-status and by the report of a run. Nothing here needs torch, and neither squeue nor
sacct has to answer: then the run's own records decide.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jobs.run_dir import CONFIG_NAME, JOB_FOLDER, Submission, read_attempts, read_submission
from jobs.slurm import client as slurm
from jobs.slurm.client import Ending, JobState, endings, seconds_of
from jobs.slurm.environment import LOG_NAME
from jobs.status.pending import why_waiting
from jobs.status.progress import AttemptRecord, Progress, history, read_progress

STALE_S = 900.0  # a heartbeat comes every step; minutes without one is a hang


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a run.

    Attributes:
        run_dir: run folder.
        job: state of its job; None when there is none, or Slurm has forgotten it.
        events: lines of its attempts.
        attempts: the same, one record a start.
        progress: step, checkpoint, heartbeats.
        now: seconds since 1970.
    """

    run_dir: Path
    job: JobState | None
    events: Sequence[Mapping[str, Any]]
    attempts: Sequence[AttemptRecord]
    progress: Progress
    now: float


@dataclass(frozen=True, slots=True)
class RunState:
    """State of a run.

    Attributes:
        state: in plain English.
        needs_person: it will neither continue nor end by itself.
        action: what to do; empty when nothing.
        is_live: its processes are running.
    """

    state: str
    needs_person: bool = False
    action: str = ""
    is_live: bool = False


def assess(facts: Facts) -> RunState:
    """Return the state of a run."""
    kept = facts.progress.checkpoint
    if kept and not kept.is_whole:
        # the run itself skips a damaged checkpoint; a person should know why there is one
        found = _assess(facts)
        return RunState(
            f"{found.state}; newest checkpoint {kept.state}",
            True,
            found.action or "check the disk; the run continues from the checkpoint before",
            found.is_live,
        )
    return _assess(facts)


def _assess(facts: Facts) -> RunState:
    last = facts.events[-1]["event"] if facts.events else "none"
    if last == "finished":
        evaluated = (facts.run_dir / "evaluation.json").exists()
        return RunState("finished", action="" if evaluated else _evaluate(facts.run_dir))
    if facts.job and not facts.job.is_final:
        return _live(facts.job, facts)
    if facts.job and last in ("start", "training"):
        word = facts.job.state.lower()
        return RunState(f"ended by Slurm: {word}", True, _start_again(facts))
    if facts.job and last == "none":
        return RunState(f"ended before it began: {facts.job.state.lower()}", True, "read the log")
    return _without_job(facts, last)


def _evaluate(run_dir: Path) -> str:
    return f"simclr-evaluate run={run_dir} ..."


def _live(job: JobState, facts: Facts) -> RunState:
    if job.state == "PENDING":
        why = why_waiting(job)
        fix = f"{why.fix}; scontrol show job {job.job_id}" if why.fix else ""
        return RunState(f"waiting: {why.text}", bool(why.fix), fix)
    if job.state != "RUNNING":
        return RunState(job.state.lower())
    slowest = facts.progress.slowest
    if _silent_s(facts) > STALE_S:
        return RunState(
            f"running, but {f'rank {slowest.rank}' if slowest else 'every rank'} is silent",
            True,
            f"read the log; scancel {job.job_id} if it hangs, and submit again",
            is_live=True,
        )
    return _at_work(facts)


def _without_job(facts: Facts, last: str) -> RunState:
    again = _start_again(facts)
    if last == "none":
        return RunState("not started")
    attempt = facts.attempts[-1]
    if last == "failed":
        return RunState(attempt.cause[:200], True, f"read the log; {again}")
    if last == "stop":
        return RunState(attempt.cause, True, again)
    if attempt.outcome == "running" and _may_be_alive(facts):
        return _at_work(facts)
    cause = attempt.cause or "killed, or the machine failed"
    return RunState(f"ended unrecorded: {cause}", True, again)


def _at_work(facts: Facts) -> RunState:
    if facts.events and facts.events[-1]["event"] == "start":
        return RunState(
            f"starting for {round(facts.now - facts.events[-1]['time'])} s", is_live=True
        )
    return RunState("training" if facts.progress.step else "starting", is_live=True)


def _may_be_alive(facts: Facts) -> bool:
    """Return whether the process of an attempt runs: by its id on this host, else by its age."""
    start = next(event for event in reversed(facts.events) if event["event"] == "start")
    if start.get("host") == socket.gethostname():
        return Path(f"/proc/{start['pid']}").exists()
    return _silent_s(facts) < STALE_S


def _silent_s(facts: Facts) -> float:
    """Return the age of the oldest heartbeat; before the first one, the age of the attempt."""
    slowest = facts.progress.slowest
    if slowest:
        return facts.now - slowest.time
    return facts.now - facts.attempts[-1].start if facts.attempts else 0.0


def _start_again(facts: Facts) -> str:
    kept = facts.progress.checkpoint
    if kept and not kept.is_whole:
        return "the same command continues from the checkpoint before"
    return f"the same command continues {f'at step {kept.step}' if kept else 'from the start'}"


# commands that work on a trained run, with jobs of their own
_LATER_COMMANDS = ("evaluate", "export")


@dataclass(frozen=True, slots=True)
class SlurmAnswer:
    """States of jobs, as squeue and sacct report them.

    Attributes:
        jobs: job id to its state; those that Slurm has forgotten are absent.
        endings: job id to the end of each of its starts, where accounting is on.
    """

    jobs: Mapping[str, JobState] = field(default_factory=dict)
    endings: Mapping[str, list[Ending]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that simclr-status shows of a run; durations and ages in seconds.

    Attributes:
        run: run folder.
        state: in plain English, with the reason.
        needs_person: True when it will neither continue nor end by itself.
        action: what to do next; empty when nothing.
        job_id: Slurm's, if any.
        nodes: where it runs.
        attempt: how often it was started.
        attempts: each of them, with the cause of its end.
        step: optimizer steps done.
        num_steps: of the whole run.
        patches_per_s: over all ranks, in the last interval.
        time_left_s: at that rate.
        expected_end: when it will be done at that rate, seconds since 1970; requeues left out.
        limit_left_s: until the time limit of its job.
        checkpoint_step: of the newest checkpoint.
        checkpoint_age_s: since it was written.
        checkpoint_state: verified, whole (sizes only), or what is wrong with it.
        at_risk_steps: steps that a kill would cost now.
        at_risk_s: and the time that they took.
        heartbeat_age_s: of the rank that was silent the longest.
        heartbeat_of: that rank, with its node and step.
        metrics: last loss and learning rate, last scores of the probes.
        log: where its main rank writes.
        others: jobs of later verbs on this run, and how they fare.
    """

    run: str
    state: str
    needs_person: bool = False
    action: str = ""
    job_id: str = ""
    nodes: str = ""
    attempt: int = 0
    attempts: list[AttemptRecord] = field(default_factory=list)
    step: int = 0
    num_steps: int = 0
    patches_per_s: float | None = None
    time_left_s: float | None = None
    expected_end: float | None = None
    limit_left_s: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_s: float | None = None
    checkpoint_state: str = ""
    at_risk_steps: int | None = None
    at_risk_s: float | None = None
    heartbeat_age_s: float | None = None
    heartbeat_of: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    log: str = ""
    others: dict[str, str] = field(default_factory=dict)


def describe(
    run_dir: Path,
    slurm: SlurmAnswer | None = None,
    now: float | None = None,
    *,
    thorough: bool = False,
) -> RunRecord:
    """Return the record of a run.

    Args:
        run_dir: run folder.
        slurm: states of its jobs; without them the run's own records decide.
        now: seconds since 1970.
        thorough: compare the checksums of its newest checkpoint, not only sizes.

    Raises:
        ValueError: it is not a run folder.
    """
    if not (run_dir / CONFIG_NAME).exists():
        raise ValueError(f"{run_dir} is not a run folder: it has no {CONFIG_NAME}")
    now, slurm = time.time() if now is None else now, slurm or SlurmAnswer()
    events, submission = read_attempts(run_dir), read_submission(run_dir / JOB_FOLDER, "pretrain")
    starts = [event for event in events if event["event"] == "start"]
    progress = read_progress(run_dir, starts[-1]["time"] if starts else 0.0, thorough=thorough)
    job = slurm.jobs.get(_latest_job(submission, starts))
    attempts = history(events, slurm.endings, is_over=bool(job and job.is_final))
    found = assess(Facts(run_dir, job, events, attempts, progress, now))
    return RunRecord(
        str(run_dir),
        found.state,
        found.needs_person,
        found.action,
        attempt=max((event["attempt"] for event in events), default=0),
        attempts=attempts,
        log=_log(run_dir, events, submission),
        others=_others(run_dir, slurm.jobs),
        **_of_job(job),
        **_of_progress(progress, now, is_live=found.is_live),
    )


def jobs_of(run_dir: Path) -> list[str]:
    """Return the jobs of a run: its training, submitted in any way, and what came after."""
    names = ("pretrain", *_LATER_COMMANDS)
    found = [read_submission(run_dir / JOB_FOLDER, name) for name in names]
    # jobs of plain sbatch scripts have no submission record
    starts = [event for event in read_attempts(run_dir) if event["event"] == "start"]
    latest = _latest_job(found[0], starts)
    ids = [*(submission.job_id for submission in found if submission), latest]
    return list(dict.fromkeys(filter(None, ids)))


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, and those of sweeps one level below."""
    found = [*folder.glob(f"*/{CONFIG_NAME}"), *folder.glob(f"*/*/{CONFIG_NAME}")]
    return sorted(path.parent for path in found)


def _of_job(job: JobState | None) -> dict[str, Any]:
    if job is None:
        return {}
    running = job.state == "RUNNING"
    return {
        "job_id": job.job_id,
        "nodes": job.nodes,
        "limit_left_s": seconds_of(job.time_left) if running else None,
    }


def _of_progress(progress: Progress, now: float, *, is_live: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "step": progress.step,
        "num_steps": progress.num_steps,
        "patches_per_s": progress.patches_per_s,
        "time_left_s": progress.time_left_s,
        "metrics": progress.metrics,
    }
    if is_live and progress.time_left_s is not None:
        facts["expected_end"] = now + progress.time_left_s
    kept, slowest = progress.checkpoint, progress.slowest
    if kept:
        facts["checkpoint_step"], facts["checkpoint_age_s"] = kept.step, now - kept.time
        facts["checkpoint_state"] = kept.state
    if is_live and progress.step:
        facts["at_risk_steps"] = progress.step - (kept.step if kept else 0)
        facts["at_risk_s"] = now - kept.time if kept else None
    if slowest:
        facts["heartbeat_age_s"] = now - slowest.time
        where = f" on {slowest.node}" if slowest.node else ""
        facts["heartbeat_of"] = f"rank {slowest.rank}{where}, step {slowest.step}"
    return facts


def _others(run_dir: Path, jobs: Mapping[str, JobState]) -> dict[str, str]:
    found = {name: read_submission(run_dir / JOB_FOLDER, name) for name in _LATER_COMMANDS}
    return {
        name: f"job {submission.job_id}, {jobs[submission.job_id].state.lower()}"
        for name, submission in found.items()
        if submission and submission.job_id in jobs
    }


def _log(run_dir: Path, events: Sequence[Mapping[str, Any]], submission: Submission | None) -> str:
    logs = [event["log"] for event in events if event.get("log")]
    own = run_dir / LOG_NAME
    return logs[-1] if logs else submission.log if submission else str(own if own.exists() else "")


def _latest_job(submission: Submission | None, starts: Sequence[Mapping[str, Any]]) -> str:
    """Return the id of the job of the latest start or submission; empty without Slurm."""
    started = str(starts[-1].get("job_id", "")) if starts else ""
    if submission and not (starts and starts[-1]["time"] >= submission.time):
        return submission.job_id
    return started


_Answer = TypeVar("_Answer")

INTERVAL_S = 30.0  # many people watch many runs; the controller answers all of them


class SlurmPoller:
    """Queries squeue and sacct for job states, at most once an interval."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Begin with no answer; ``interval_s`` is the least time between two queries."""
        self._interval_s = interval_s
        self._asked = -float("inf")
        self._last = SlurmAnswer()

    def ask(self, job_ids: Sequence[str]) -> SlurmAnswer:
        """Return the latest states; empty where there is no Slurm, or no answer."""
        due = time.monotonic() - self._asked >= self._interval_s
        if due and job_ids and slurm.is_available():
            self._asked = time.monotonic()
            # each by itself: accounting may be down while the controller answers
            self._last = SlurmAnswer(_query(slurm.queue, job_ids), _query(endings, job_ids))
        return self._last


def _query(
    query: Callable[[Sequence[str]], dict[str, _Answer]], job_ids: Sequence[str]
) -> dict[str, _Answer]:
    try:
        return query(job_ids)
    except slurm.SlurmError as error:
        sys.stderr.write(f"simclr-status: {error}; showing the runs' own records alone\n")
        return {}
