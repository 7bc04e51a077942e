"""What a run says of itself, and Slurm of its job: a run folder comes in, plain words go out.

Nothing here needs torch; a run that is queued or dead is described as well. Slurm's accounting
adds how a start ended that was killed without a word, where a site keeps it.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jobs.attempts import read_attempts
from jobs.run_dir import CONFIG_NAME, JOB_FOLDER, Submission, read_submission
from jobs.slurm import client as slurm
from jobs.slurm.client import Ending, JobState, endings, seconds_of
from jobs.slurm.environment import LOG_NAME
from jobs.status.progress import AttemptRecord, Progress, history, read_progress

_WAITING = {
    "Priority": "other jobs go first",
    "Resources": "no free nodes yet",
    "BeginTime": "may not start yet; after a requeue for a minute or two",
    "Dependency": "waits for another job",
    "JobArrayTaskLimit": "as many members of the array run as may (cluster.parallel_parts)",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation to begin",
    "ReqNodeNotAvail": "nodes are down or reserved",
    "NodeDown": "a node that it asks for is down",
    "PartitionDown": "the partition is closed for now",
    "PartitionInactive": "the partition is closed for now",
    "Cleaning": "its former start is being cleared away",
    "JobLaunchFailure": "could not be started on its nodes and waits to be tried again",
    "launch failed requeued held": "could not be started, and is held",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as the QOS allows",
    "QOSMaxGRESPerUser": "your GPUs are as many as the QOS allows",
    "QOSGrpGRES": "the QOS' GPUs are all in use",
    "QOSGrpNodeLimit": "the QOS' nodes are all in use",
    "MaxGRESPerAccount": "the account's GPUs are all in use",
    "AssocGrpGRES": "the account's GPUs are all in use",
    "AssocGrpNodeLimit": "the account's nodes are all in use",
    "AssocMaxJobsLimit": "you have as many jobs as the account allows",
    "AssocGrpBillingMinutes": "the account has used up its hours",
    "AssocGrpCPUMinutesLimit": "the account has used up its hours",
}

# These do not pass by themselves; the second is what a person can do.
_STUCK = {
    "PartitionTimeLimit": ("asks for more time than the partition allows", "cluster.time_min"),
    "PartitionNodeLimit": ("asks for more nodes than the partition has", "cluster.nodes"),
    "BadConstraints": ("asks for what no node has", "cluster.constraint, gpus, memory"),
    "DependencyNeverSatisfied": ("the job that it waits for has failed", "submit it again"),
    # held by jobs.slurm.preemption after idle attempts, as scontrol and squeue write it
    "job_requeued_in_held_state": ("held after a requeue", "read its Comment; scontrol release"),
    "job requeued in held state": ("held after a requeue", "read its Comment; scontrol release"),
    "JobHeldUser": ("held by you", "scontrol release"),
    "JobHeldAdmin": ("held by an administrator", "ask them"),
    "AccountNotAllowed": ("the partition does not take this account", "cluster.account"),
    "QOSNotAllowed": ("the partition does not take this QOS", "cluster.qos"),
    "QOSTimeLimit": ("asks for more time than the QOS allows", "cluster.time_min"),
    "QOSMaxWallDurationPerJobLimit": ("asks for more time than the QOS allows", "cluster.time_min"),
    "AssocMaxWallDurationPerJobLimit": ("asks for more time than allowed", "cluster.time_min"),
    "InvalidAccount": ("the account is not valid", "cluster.account"),
    "InvalidQOS": ("the QOS is not valid", "cluster.qos"),
    "MaxRequeues": ("was requeued as often as Slurm allows, and is held", "scontrol release"),
    "JobHoldMaxRequeue": ("was requeued as often as Slurm allows, and is held", "scontrol release"),
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job waits.

    Attributes:
        words: for a person.
        cure: what ends it, when nothing but a person does; else empty.
    """

    words: str
    cure: str = ""


def why_waiting(job: JobState) -> Waiting:
    """Translate the reason of a pending job."""
    word = job.reason.partition(",")[0].strip("() ")
    if word in _STUCK:
        words, cure = _STUCK[word]
        return Waiting(words, cure)
    words = _WAITING.get(word, word or "no reason given")
    return Waiting(f"{words}; expected to start {job.start}" if job.start else words)


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


_Word = TypeVar("_Word")

INTERVAL_S = 30.0  # many people watch many runs; the controller answers all of them


class Asker:
    """Asks Slurm, and remembers the answer until it is old enough to ask again."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Begin with no answer; ``interval_s`` is the least time between two questions."""
        self._interval_s = interval_s
        self._asked = -float("inf")
        self._word = SlurmWord()

    def word(self, job_ids: Sequence[str]) -> SlurmWord:
        """Return Slurm's word; an empty one where there is no Slurm, or no answer."""
        due = time.monotonic() - self._asked >= self._interval_s
        if due and job_ids and slurm.is_available():
            self._asked = time.monotonic()
            self._word = _ask(job_ids)
        return self._word


def _ask(job_ids: Sequence[str]) -> SlurmWord:
    # Each by itself: accounts may be down while the controller answers.
    jobs = _answer(slurm.queue, job_ids)
    accounts: dict[str, list[Ending]] = _answer(endings, job_ids)
    return SlurmWord(jobs, accounts)


def _answer(
    question: Callable[[Sequence[str]], dict[str, _Word]], job_ids: Sequence[str]
) -> dict[str, _Word]:
    try:
        return question(job_ids)
    except slurm.SlurmError as error:
        # The runs' own records are worth showing without it.
        sys.stderr.write(f"simclr-status: {error}; shown is what the runs say of themselves\n")
        return {}
