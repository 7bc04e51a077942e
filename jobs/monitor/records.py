"""What a run says of itself, and Slurm of its job: a run folder comes in, plain words go out.

Nothing here needs Slurm's accounting, or torch; a run that is queued or dead is described as well.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.joblog import LOG_NAME
from jobs.runfolder import (
    CHECKPOINTS,
    CONFIG_NAME,
    JOB_FOLDER,
    Submission,
    read_attempts,
    read_submission,
)
from jobs.slurm import JobState
from simclr.metrics import METRICS_NAME, read_metrics

STALE_S = 900.0  # a heartbeat comes every log interval; minutes without one is a hang

# Slurm's reasons for waiting, for people; others are shown as Slurm writes them.
WAITING = {
    "Priority": "other jobs go first",
    "Resources": "no free nodes yet",
    "BeginTime": "may not start yet; after a requeue for a minute or two",
    "Dependency": "waits for another job",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as the QOS allows",
    "AssocGrpGRES": "the account's GPUs are all in use",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "JobHeldUser": "held: scontrol release",
    "JobHeldAdmin": "held by an administrator",
}
_NEVER = ("PartitionTimeLimit", "JobHeldAdmin", "DependencyNeverSatisfied", "BadConstraints")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a run fares.

    Attributes:
        run: run folder.
        state: in plain words.
        needs_person: True when it will not go on or end by itself.
        action: what to do next; empty when nothing.
        job_id: Slurm's, if any.
        attempt: how often it was started.
        step: optimizer steps done.
        num_steps: of the whole run.
        patches_per_s: over all ranks, in the last interval.
        time_left_s: at that rate.
        checkpoint_step: of the newest checkpoint.
        checkpoint_age_s: since it was written.
        heartbeat_age_s: of the rank that was silent the longest.
        log: where its main rank writes.
    """

    run: str
    state: str
    needs_person: bool = False
    action: str = ""
    job_id: str = ""
    attempt: int = 0
    step: int = 0
    num_steps: int = 0
    patches_per_s: float | None = None
    time_left_s: float | None = None
    checkpoint_step: int | None = None
    checkpoint_age_s: float | None = None
    heartbeat_age_s: float | None = None
    log: str = ""


def describe(run_dir: Path, jobs: Mapping[str, JobState], now: float | None = None) -> RunRecord:
    """Return how a run fares.

    Args:
        run_dir: run folder.
        jobs: Slurm's word on its job, by job id; without it the run's own record decides.
        now: seconds since 1970.

    Raises:
        ValueError: it is no run folder.
    """
    if not (run_dir / CONFIG_NAME).exists():
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG_NAME}")
    now = time.time() if now is None else now
    events, submission = read_attempts(run_dir), read_submission(run_dir / JOB_FOLDER, "pretrain")
    facts = _progress(run_dir, now)
    facts["attempt"] = max((event["attempt"] for event in events), default=0)
    facts["log"] = _log(run_dir, events, submission)
    job = jobs.get(submission.job_id) if submission and _is_of_job(events, submission) else None
    if job:
        facts["job_id"] = job.job_id
    state, needs, action = _state(job, events, facts, run_dir, now)
    return RunRecord(str(run_dir), state, needs, action, **facts)


def job_of(run_dir: Path) -> str | None:
    """Return the job that was submitted for a run, if any."""
    submission = read_submission(run_dir / JOB_FOLDER, "pretrain")
    return submission.job_id if submission else None


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder and one level below."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))


def _progress(run_dir: Path, now: float) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    metrics = run_dir / METRICS_NAME
    records = read_metrics(metrics) if metrics.exists() else []
    if records:
        last = records[-1]
        facts |= {key: last[key] for key in ("step", "num_steps", "patches_per_s")}
        facts["time_left_s"] = _time_left(records)
    checkpoints = sorted(run_dir.glob(CHECKPOINTS))
    if checkpoints:
        facts["checkpoint_step"] = int(checkpoints[-1].name.rpartition("-")[2])
        facts["checkpoint_age_s"] = now - checkpoints[-1].stat().st_mtime
    beats = [_heartbeat(path) for path in run_dir.glob("heartbeats/rank-*.json")]
    if beats:
        facts["heartbeat_age_s"] = now - min(beats)
    return facts


def _time_left(records: list[dict[str, Any]]) -> float | None:
    """Return the seconds left, from the time between the last metric lines."""
    recent = records[-5:]
    steps = recent[-1]["step"] - recent[0]["step"]
    if steps <= 0:
        return None
    pace: float = (recent[-1]["time"] - recent[0]["time"]) / steps
    return pace * float(recent[-1]["num_steps"] - recent[-1]["step"])


def _heartbeat(path: Path) -> float:
    return float(json.loads(path.read_text(encoding="utf-8"))["time"])


def _log(run_dir: Path, events: list[dict[str, Any]], submission: Submission | None) -> str:
    logs = [event["log"] for event in events if event.get("log")]
    own = run_dir / LOG_NAME
    return logs[-1] if logs else submission.log if submission else str(own if own.exists() else "")


def _is_of_job(events: list[dict[str, Any]], submission: Submission) -> bool:
    """Say whether the submitted job is the latest that happened to the run."""
    starts = [event for event in events if event["event"] == "start"]
    return (
        not starts
        or starts[-1]["job_id"] == submission.job_id
        or (starts[-1]["time"] < submission.time)
    )


_Verdict = tuple[str, bool, str]


def _state(
    job: JobState | None,
    events: list[dict[str, Any]],
    facts: dict[str, Any],
    run_dir: Path,
    now: float,
) -> _Verdict:
    last = events[-1] if events else {"event": "none"}
    if last["event"] == "finished":
        return "finished", False, f"simclr-evaluate run={run_dir} ..."
    if job and not job.is_final:
        return _state_of_live_job(job, facts)
    if job and last["event"] == "start":
        return f"ended by Slurm: {job.state.lower()}", True, _start_again(facts)
    return _state_without_job(last, facts, now)


def _state_of_live_job(job: JobState, facts: dict[str, Any]) -> _Verdict:
    if job.state == "PENDING":
        word = job.reason.partition(",")[0].strip("()")
        stuck = word in _NEVER
        action = f"scontrol show job {job.job_id}" if stuck else ""
        return f"waiting: {WAITING.get(word, word or 'no reason given')}", stuck, action
    if job.state != "RUNNING":
        return f"{job.state.lower()}", False, ""
    if facts.get("heartbeat_age_s", 0.0) > STALE_S:
        return "running, but silent", True, f"read the log; scancel {job.job_id} if it hangs"
    return "training" if facts.get("step") else "starting", False, ""


def _state_without_job(last: dict[str, Any], facts: dict[str, Any], now: float) -> _Verdict:
    again = _start_again(facts)
    if last["event"] == "none":
        return "not started", False, ""
    if last["event"] == "failed":
        return f"failed: {last['error'][:200]}", True, f"read the log; {again}"
    if last["event"] == "stop":
        held = last["decision"] == "hold"
        why = "held: three stops at the same step" if held else f"stopped ({last['signal']})"
        return why, True, again
    if _may_be_alive(last, facts, now):
        return "training" if facts.get("step") else "starting", False, ""
    return "ended without a word: killed, or the machine failed", True, again


def _may_be_alive(start: dict[str, Any], facts: dict[str, Any], now: float) -> bool:
    """Say whether the process of an attempt lives: by its id on this machine, else by its age."""
    if start.get("host") == socket.gethostname():
        return Path(f"/proc/{start['pid']}").exists()
    silent: float = facts.get("heartbeat_age_s", now - start["time"])
    return silent < STALE_S


def _start_again(facts: dict[str, Any]) -> str:
    step = facts.get("checkpoint_step")
    return f"the same command goes on {f'at step {step}' if step else 'from the start'}"
