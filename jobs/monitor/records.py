"""What a run says of itself, and Slurm of its job: a run folder comes in, plain words go out.

Nothing here needs torch; a run that is queued or dead is described as well. Slurm's accounting
adds how a start ended that was killed without a word, where a site keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.accounting import Ending
from jobs.attempts import read_attempts
from jobs.joblog import LOG_NAME
from jobs.monitor.history import AttemptRecord, history
from jobs.monitor.progress import Progress, read_progress
from jobs.monitor.verdict import Facts, judge
from jobs.runfolder import CONFIG_NAME, JOB_FOLDER, Submission, read_submission
from jobs.slurm import JobState, seconds_of

# verbs that work on a run after its training, with jobs of their own
_LATER_VERBS = ("evaluate", "export")


@dataclass(frozen=True, slots=True)
class SlurmWord:
    """What Slurm says, of all jobs that were asked about.

    Attributes:
        jobs: job id to its present state; those that Slurm has forgotten are absent.
        endings: job id to how each of its starts ended, where accounts are kept.
    """

    jobs: Mapping[str, JobState] = field(default_factory=dict)
    endings: Mapping[str, Sequence[Ending]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a run fares; times in seconds, ages against the moment of asking.

    Attributes:
        run: run folder.
        state: in plain words, with the reason.
        needs_person: True when it will not go on or end by itself.
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
    slurm: SlurmWord | None = None,
    now: float | None = None,
    *,
    thorough: bool = False,
) -> RunRecord:
    """Return how a run fares.

    Args:
        run_dir: run folder.
        slurm: Slurm's word on its jobs; without it the run's own record decides.
        now: seconds since 1970.
        thorough: compare the checksums of its newest checkpoint, not only sizes.

    Raises:
        ValueError: it is no run folder.
    """
    if not (run_dir / CONFIG_NAME).exists():
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG_NAME}")
    now, slurm = time.time() if now is None else now, slurm or SlurmWord()
    events, submission = read_attempts(run_dir), read_submission(run_dir / JOB_FOLDER, "pretrain")
    starts = [event for event in events if event["event"] == "start"]
    progress = read_progress(run_dir, starts[-1]["time"] if starts else 0.0, thorough=thorough)
    job = slurm.jobs.get(submission.job_id) if submission and _is_of(submission, starts) else None
    attempts = history(events, slurm.endings, is_over=bool(job and job.is_final))
    verdict = judge(Facts(run_dir, job, events, attempts, progress, now))
    return RunRecord(
        str(run_dir),
        verdict.state,
        verdict.needs_person,
        verdict.action,
        attempt=max((event["attempt"] for event in events), default=0),
        attempts=attempts,
        log=_log(run_dir, events, submission),
        others=_others(run_dir, slurm.jobs),
        **_of_job(job),
        **_of_progress(progress, now, is_live=verdict.is_live),
    )


def jobs_of(run_dir: Path) -> list[str]:
    """Return the jobs that were submitted for a run: its training, and what came after."""
    found = (read_submission(run_dir / JOB_FOLDER, verb) for verb in ("pretrain", *_LATER_VERBS))
    return [submission.job_id for submission in found if submission]


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
    found = {verb: read_submission(run_dir / JOB_FOLDER, verb) for verb in _LATER_VERBS}
    return {
        verb: f"job {submission.job_id}, {jobs[submission.job_id].state.lower()}"
        for verb, submission in found.items()
        if submission and submission.job_id in jobs
    }


def _log(run_dir: Path, events: Sequence[Mapping[str, Any]], submission: Submission | None) -> str:
    logs = [event["log"] for event in events if event.get("log")]
    own = run_dir / LOG_NAME
    return logs[-1] if logs else submission.log if submission else str(own if own.exists() else "")


def _is_of(submission: Submission, starts: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the submitted job is the latest that happened to the run."""
    if not starts or starts[-1]["job_id"] == submission.job_id:
        return True
    return bool(starts[-1]["time"] < submission.time)
