"""The state of a run, from its folder and from Slurm, with what a person should do next.

Called by simclr-status and by the report of a run. Nothing here needs torch, and neither squeue nor
sacct has to answer: then the run's own records decide. Reads only.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.run_dir import (
    CONFIG_NAME,
    JOB_FOLDER,
    Submission,
    read_attempts,
    read_heartbeats,
    read_submission,
)
from jobs.slurm import client as slurm
from jobs.slurm.client import JobState, seconds_of
from jobs.slurm.environment import LOG_NAME
from jobs.status.causes import AttemptRecord, Events, history, why_waiting
from jobs.tracking.sink import tracker_links
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    MANIFEST_NAME,
    read_checkpoint_manifest,
    verify,
)
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

# A thread writes about one heartbeat a second, however long a step takes: minutes of silence mean
# that the process is gone or suspended, or that it cannot write.
STALE_S = 900.0
ANSWER_S = 4.0  # a controller that is away would keep a person waiting for minutes
INTERVAL_S = 30.0  # many people watch many runs; the controller answers all of them
_LONGEST_CAUSE = 200  # characters; the whole is in the log
_RECENT = 5  # metric lines whose pace says when the run will end
_SHOWN = ("loss", "learning_rate")
_PROBES = ("probe/", "knn/")
_WHOLE = ("verified", "whole")  # what is said of an undamaged checkpoint
_LATER_COMMANDS = ("evaluate", "export")  # on a trained run, with jobs of their own


@dataclass(frozen=True, slots=True)
class SlurmAnswer:
    """States of jobs, as squeue and sacct report them.

    Attributes:
        jobs: job id to its state; those that Slurm has forgotten are absent.
        endings: job id to the state in which each of its starts ended, where accounting is on.
        error: why there was no answer; empty when there was.
    """

    jobs: Mapping[str, JobState] = field(default_factory=dict)
    endings: Mapping[str, list[str]] = field(default_factory=dict)
    error: str = ""


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
            # each by itself, and side by side: one may be down while the other answers
            with ThreadPoolExecutor(2) as pool:
                both = [pool.submit(_query, ask, job_ids) for ask in (slurm.queue, slurm.endings)]
            (jobs, error), (ends, other_error) = (each.result() for each in both)
            self._last = SlurmAnswer(jobs, ends, error or other_error)
        return self._last


def _query(query: Callable[..., Any], job_ids: Sequence[str]) -> tuple[dict[str, Any], str]:
    try:
        return query(job_ids, ANSWER_S), ""
    except slurm.SlurmError as error:
        return {}, f"no answer of Slurm, so this is what the folders say: {error}"


@dataclass(slots=True)
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
        others: jobs of later commands on this run, and how they fare.
        trackers: of its metrics, each with its address, or the command that shows or sends them.
        slurm_error: why Slurm's word is missing; empty when it is not.
    """

    run: str
    state: str = ""
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
    trackers: dict[str, str] = field(default_factory=dict)
    slurm_error: str = ""

    @property
    def is_damaged(self) -> bool:
        """Whether the newest checkpoint is."""
        return bool(self.checkpoint_state) and self.checkpoint_state not in _WHOLE


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, and those of sweeps one level below."""
    found = [*folder.glob(f"*/{CONFIG_NAME}"), *folder.glob(f"*/*/{CONFIG_NAME}")]
    return sorted(path.parent for path in found)


def jobs_of(run_dir: Path) -> list[str]:
    """Return the jobs of a run: its training, submitted in any way, and what came after."""
    names = ("pretrain", *_LATER_COMMANDS)
    found = [read_submission(run_dir / JOB_FOLDER, name) for name in names]
    # jobs of plain sbatch scripts have no submission record
    latest = _latest_job(found[0], _starts(read_attempts(run_dir)))
    ids = [*(submission.job_id for submission in found if submission), latest]
    return list(dict.fromkeys(filter(None, ids)))


def describe(
    run_dir: Path,
    answer: SlurmAnswer | None = None,
    now: float | None = None,
    *,
    thorough: bool = False,
) -> RunRecord:
    """Return the record of a run.

    Args:
        run_dir: run folder.
        answer: states of its jobs; without them the run's own records decide.
        now: seconds since 1970.
        thorough: compare the checksums of its newest checkpoint, not only sizes.

    Raises:
        ValueError: it is not a run folder.
    """
    if not (run_dir / CONFIG_NAME).exists():
        raise ValueError(f"{run_dir} is not a run folder: it has no {CONFIG_NAME}")
    now, answer = time.time() if now is None else now, answer or SlurmAnswer()
    events, submission = read_attempts(run_dir), read_submission(run_dir / JOB_FOLDER, "pretrain")
    starts = _starts(events)
    job = answer.jobs.get(_latest_job(submission, starts))
    record = RunRecord(
        str(run_dir),
        attempt=max((event["attempt"] for event in events), default=0),
        attempts=history(events, answer.endings, is_over=bool(job and job.is_final)),
        log=_log(run_dir, events, submission),
        others=_others(run_dir, answer.jobs),
        trackers=tracker_links(run_dir),
        slurm_error=answer.error,
    )
    if job:
        record.job_id, record.nodes = job.job_id, job.nodes
        record.limit_left_s = seconds_of(job.time_left) if job.state == "RUNNING" else None
    _add_metrics(record, run_dir)
    silent_rank = _add_heartbeat(record, run_dir, starts[-1]["time"] if starts else 0.0, now)
    _add_checkpoint(record, run_dir, now, thorough)
    state = _with_damage(record, _assess(record, events, job, silent_rank, now))
    record.state, record.needs_person, record.action = state.text, state.needs_person, state.action
    if state.is_live and record.time_left_s is not None:
        record.expected_end = now + record.time_left_s
    if state.is_live and record.step:
        record.at_risk_steps = record.step - (record.checkpoint_step or 0)
        record.at_risk_s = record.checkpoint_age_s
    return record


def _starts(events: Events) -> Events:
    return [event for event in events if event["event"] == "start"]


def _latest_job(submission: Submission | None, starts: Events) -> str:
    """Return the id of the job of the latest start or submission; empty without Slurm."""
    if submission and not (starts and starts[-1]["time"] >= submission.time):
        return submission.job_id
    # processes of one machine are numbered too; Slurm may have a job of that number
    is_slurm = bool(starts) and starts[-1].get("launcher") != "local"
    return str(starts[-1].get("job_id", "")) if is_slurm else ""


def _log(run_dir: Path, events: Events, submission: Submission | None) -> str:
    logs = [event["log"] for event in events if event.get("log")]
    own = run_dir / LOG_NAME
    return logs[-1] if logs else submission.log if submission else str(own if own.exists() else "")


def _others(run_dir: Path, jobs: Mapping[str, JobState]) -> dict[str, str]:
    found = {name: read_submission(run_dir / JOB_FOLDER, name) for name in _LATER_COMMANDS}
    return {
        name: f"job {submission.job_id}, {jobs[submission.job_id].state.lower()}"
        for name, submission in found.items()
        if submission and submission.job_id in jobs
    }


def _add_metrics(record: RunRecord, run_dir: Path) -> None:
    path = run_dir / METRICS_NAME
    lines = read_metrics(path) if path.exists() else []
    if not lines:
        return
    last, first = lines[-1], lines[-_RECENT:][0]
    record.step, record.num_steps = last["step"], last["num_steps"]
    record.patches_per_s = last.get("patches_per_s")
    record.metrics = {name: last[name] for name in _SHOWN if name in last}
    if (steps := last["step"] - first["step"]) > 0:
        pace = (last["time"] - first["time"]) / steps
        record.time_left_s = pace * (last["num_steps"] - last["step"])
    for line in reversed(lines):
        if probes := {key: value for key, value in line.items() if key.startswith(_PROBES)}:
            record.metrics |= probes | {"probed_at_step": line["step"]}
            return


def _add_heartbeat(record: RunRecord, run_dir: Path, since: float, now: float) -> int | None:
    """Add the heartbeat of the rank that was silent the longest; return the rank."""
    # an attempt on fewer ranks leaves the files of the others as they were
    beats = read_heartbeats(run_dir, since)
    if not beats:
        return None
    # heartbeats come every second or so, metric lines once an interval of steps
    record.step = max(record.step, *(beat["step"] or 0 for beat in beats))
    slowest = min(beats, key=lambda beat: float(beat["time"]))
    record.heartbeat_age_s = now - slowest["time"]
    where = f" on {slowest['node']}" if slowest["node"] else ""
    record.heartbeat_of = f"rank {slowest['rank']}{where}, step {slowest['step'] or 0}"
    return int(slowest["rank"])


def _add_checkpoint(record: RunRecord, run_dir: Path, now: float, thorough: bool) -> None:
    """Add the newest checkpoint that is there, and whether it is damaged."""
    for folder in sorted(run_dir.glob(f"{CHECKPOINTS}/{FOLDER_PATTERN}"), reverse=True):
        manifest = folder / MANIFEST_NAME
        try:
            written = (manifest if manifest.exists() else folder).stat().st_mtime
            state = _checked(folder, thorough)
        except FileNotFoundError:
            continue  # the run has just removed it: it has a newer one
        except ValueError as error:
            if not folder.exists():
                continue
            state = f"damaged: {error}"
        record.checkpoint_step = int(folder.name.rpartition("-")[2])
        record.checkpoint_age_s, record.checkpoint_state = now - written, state
        return


def _checked(folder: Path, thorough: bool) -> str:
    if thorough:
        verify(folder)
        return "verified"
    for name, expected in read_checkpoint_manifest(folder).files.items():
        size = (folder / name).stat().st_size
        if size != expected["size_bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {expected['size_bytes']}")
    return "whole"


@dataclass(frozen=True, slots=True)
class _State:
    text: str
    needs_person: bool = False
    action: str = ""
    is_live: bool = False  # its processes are running


def _with_damage(record: RunRecord, state: _State) -> _State:
    if not record.is_damaged:
        return state
    # the run itself skips a damaged checkpoint; a person should know why there is one
    action = state.action or "check the disk; the run continues from the checkpoint before"
    text = f"{state.text}; newest checkpoint {record.checkpoint_state}"
    return replace(state, text=text, needs_person=True, action=action)


def _assess(
    record: RunRecord, events: Events, job: JobState | None, silent_rank: int | None, now: float
) -> _State:
    last, again = events[-1]["event"] if events else "", _start_again(record)
    if last == "finished":
        evaluated = Path(record.run, "evaluation.json").exists()
        return _State(
            "finished", action="" if evaluated else f"simclr-evaluate run={record.run} ..."
        )
    # before the first heartbeat the age of the attempt counts
    silent_s = record.heartbeat_age_s
    if silent_s is None:
        silent_s = now - record.attempts[-1].start if record.attempts else 0.0
    if job and not job.is_final:
        return _of_live_job(record, events, job, silent_rank, silent_s, now)
    if not events:
        if job:
            return _State(f"ended before it began: {job.state.lower()}", True, "read the log")
        return _State("not started")
    if job and job.state == "CANCELLED" and last != "failed":
        saved = f", saved at step {events[-1]['step']}" if last == "stop" else ""
        return _State(f"cancelled{saved}", True, again)
    if job and last in ("start", "training"):
        return _State(f"ended by Slurm: {job.state.lower()}", True, again)
    return _without_job(record, events, silent_s, now)


def _without_job(record: RunRecord, events: Events, silent_s: float, now: float) -> _State:
    attempt, again = record.attempts[-1], _start_again(record)
    if attempt.outcome == "failed":
        return _State(attempt.cause[:_LONGEST_CAUSE], True, f"read the log; {again}")
    if attempt.outcome == "stopped":
        return _State(attempt.cause, True, again)
    if attempt.outcome == "running" and _may_be_alive(events, silent_s):
        return _at_work(record, events, now)
    cause = attempt.cause or "killed, or the machine failed"
    return _State(f"ended unrecorded: {cause}", True, again)


def _of_live_job(
    record: RunRecord,
    events: Events,
    job: JobState,
    silent_rank: int | None,
    silent_s: float,
    now: float,
) -> _State:
    if job.state == "PENDING":
        text, fix = why_waiting(job)
        action = f"{fix}; scontrol show job {job.job_id}" if fix else ""
        return _State(f"waiting: {text}", bool(fix), action)
    if job.state != "RUNNING":
        return _State(job.state.lower())
    if silent_s > STALE_S:
        who = "every rank" if silent_rank is None else f"rank {silent_rank}"
        action = f"read the log; unless it still trains, scancel {job.job_id} and submit again"
        return _State(f"running, but {who} is silent", True, action, is_live=True)
    return _at_work(record, events, now)


def _at_work(record: RunRecord, events: Events, now: float) -> _State:
    if events and events[-1]["event"] == "start":
        return _State(f"starting for {round(now - events[-1]['time'])} s", is_live=True)
    return _State("training" if record.step else "starting", is_live=True)


def _may_be_alive(events: Events, silent_s: float) -> bool:
    """Return whether the process of an attempt runs: by its id on this host, else by its age."""
    start = _starts(events)[-1]
    if start.get("host") == socket.gethostname():
        return Path(f"/proc/{start['pid']}").exists()
    return silent_s < STALE_S


def _start_again(record: RunRecord) -> str:
    if record.is_damaged:
        return "the same command continues from the checkpoint before"
    step = record.checkpoint_step
    return f"the same command continues {'from the start' if step is None else f'at step {step}'}"
