"""Determine the state of a run or packing, from its folder and Slurm, and the next action.

Called by simclr-status and by the report of a run. Needs no torch; without an answer from squeue
or sacct, the folder's own records decide. Reads only.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
from preprocess.plan import PLAN_NAME, WORK_FOLDER
from preprocess.shards.manifest import MANIFEST_NAME, read_manifest
from simclr.checkpoint import manifest as checkpoints
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

# A thread writes a heartbeat every 1 to 4 s, however long a step takes: minutes of silence mean
# that the process is gone or suspended, or that it cannot write.
STALE_S = 900.0
ANSWER_S = 4.0  # an unreachable controller would make the user wait for minutes
INTERVAL_S = 30.0  # many users watch many runs; the controller answers them all
_LONGEST_CAUSE = 200  # characters; the full text is in the log
_RECENT = 5  # metric lines from which the time left is estimated
_SHOWN = ("loss", "learning_rate")
_PROBES = ("probe/", "knn/")
_WHOLE = ("verified", "whole")  # states of an undamaged checkpoint
_CHECKPOINTS = f"{checkpoints.CHECKPOINTS}/{checkpoints.FOLDER_PATTERN}"
_LATER_COMMANDS = ("evaluate", "export")  # on a trained run, in separate jobs


@dataclass(frozen=True, slots=True)
class SlurmAnswer:
    """States of jobs, as squeue and sacct report them."""

    jobs: Mapping[str, JobState] = field(default_factory=dict)  # those that squeue knows
    # the state in which each start of a job ended, if accounting is on
    endings: Mapping[str, list[str]] = field(default_factory=dict)
    error: str = ""  # why there was no answer; empty if there was one


class SlurmPoller:
    """Queries squeue and sacct for job states, at most once per interval."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Start without an answer; ``interval_s`` is the minimum time between two queries."""
        self._interval_s = interval_s
        self._asked = -float("inf")
        self._last = SlurmAnswer()

    def ask(self, job_ids: Sequence[str]) -> SlurmAnswer:
        """Return the latest states; empty without Slurm or an answer."""
        due = time.monotonic() - self._asked >= self._interval_s
        if due and job_ids and slurm.is_available():
            self._asked = time.monotonic()
            # separately and in parallel: one may be down while the other answers
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
    """Everything that simclr-status shows about a run; durations and ages in seconds."""

    run: str  # its folder
    state: str = ""  # in plain English, with the reason
    needs_person: bool = False  # it will neither continue nor end by itself
    action: str = ""  # what to do next; empty when nothing
    job_id: str = ""  # Slurm's, if any
    nodes: str = ""
    attempt: int = 0  # how often it was started
    attempts: list[AttemptRecord] = field(default_factory=list)
    step: int = 0  # optimizer steps done
    num_steps: int = 0  # of the entire run
    patches_per_s: float | None = None  # over all ranks, in the last interval
    time_left_s: float | None = None  # at that rate
    expected_end: float | None = None  # at that rate, without requeues; seconds since 1970
    limit_left_s: float | None = None  # until the time limit of its job
    checkpoint_step: int | None = None  # of the newest checkpoint
    checkpoint_age_s: float | None = None
    checkpoint_state: str = ""  # verified, whole (sizes only), or the damage
    at_risk_steps: int | None = None  # lost if the run were killed now
    at_risk_s: float | None = None  # age of the checkpoint that they follow
    heartbeat_age_s: float | None = None  # of the rank that has been silent longest
    heartbeat_of: str = ""  # that rank, with its node and step
    metrics: dict[str, float] = field(default_factory=dict)  # the latest, also of the probes
    log: str = ""  # file of its main rank
    others: dict[str, str] = field(default_factory=dict)  # jobs of later commands on this run
    trackers: dict[str, str] = field(default_factory=dict)  # URL, or command to show or upload
    slurm_error: str = ""  # why Slurm did not answer; empty if it did

    @property
    def is_damaged(self) -> bool:
        """Whether the newest checkpoint is damaged."""
        return bool(self.checkpoint_state) and self.checkpoint_state not in _WHOLE


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, those of sweeps one level below, or those of a study."""
    patterns = ("*", "*/*", "runs/*/*")
    found = (path for each in patterns for path in folder.glob(f"{each}/{CONFIG_NAME}"))
    return sorted(path.parent for path in found)


def jobs_of(run_dir: Path) -> list[str]:
    """Return the jobs of a run: its training, however submitted, and later commands."""
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
    """Return the record of a run at ``now``, in seconds since 1970.

    ``thorough`` compares the checksums of its newest checkpoint, not only sizes.

    Raises:
        ValueError: ``run_dir`` is not a run folder.
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
    since = starts[-1]["time"] if starts else 0.0
    _add_metrics(record, run_dir, since)
    who = _add_heartbeat(record, run_dir, since, now)
    _add_checkpoint(record, run_dir, now, thorough)
    assessed = _assess(record, events, job, who, now)
    record.state, record.needs_person, record.action, is_live = assessed
    if record.is_damaged:
        # the run itself skips a damaged checkpoint, but a person should find out the cause
        record.state += f"; newest checkpoint {record.checkpoint_state}"
        record.needs_person = True
        advice = "check the disk; the run continues from the checkpoint before"
        record.action = record.action or advice
    if is_live and record.time_left_s is not None:
        record.expected_end = now + record.time_left_s
    if is_live and record.step:
        record.at_risk_steps = record.step - (record.checkpoint_step or 0)
        record.at_risk_s = record.checkpoint_age_s
    return record


def _starts(events: Events) -> Events:
    return [event for event in events if event["event"] == "start"]


def _latest_job(submission: Submission | None, starts: Events) -> str:
    """Return the job id of the latest start or submission; empty without Slurm."""
    if submission and not (starts and starts[-1]["time"] >= submission.time):
        return submission.job_id
    # local jobs have ids too, which may coincide with those of Slurm jobs
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


def _add_metrics(record: RunRecord, run_dir: Path, since: float) -> None:
    path = run_dir / METRICS_NAME
    lines = read_metrics(path) if path.exists() else []
    if not lines:
        return
    last = lines[-1]
    # of this attempt: between two of them a job may have waited for hours
    first = next((line for line in lines[-_RECENT:] if line["time"] >= since), last)
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


def _add_heartbeat(record: RunRecord, run_dir: Path, since: float, now: float) -> str:
    """Add the heartbeat of the rank that has been silent longest; return the rank's name."""
    # earlier attempts, perhaps on more ranks, may have left files: ``since`` excludes them
    beats = read_heartbeats(run_dir, since)
    if not beats:
        return "every rank"
    # heartbeats come every 1 to 4 s, metric lines once per interval of steps
    record.step = max(record.step, *(beat["step"] or 0 for beat in beats))
    slowest = min(beats, key=lambda beat: float(beat["time"]))
    record.heartbeat_age_s = now - slowest["time"]
    who, where = f"rank {slowest['rank']}", f" on {slowest['node']}" if slowest["node"] else ""
    record.heartbeat_of = f"{who}{where}, step {slowest['step'] or 0}"
    return who


def _add_checkpoint(record: RunRecord, run_dir: Path, now: float, thorough: bool) -> None:
    """Add the newest existing checkpoint, and whether it is damaged."""
    for folder in sorted(run_dir.glob(_CHECKPOINTS), reverse=True):
        manifest = folder / checkpoints.MANIFEST_NAME
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
        checkpoints.verify(folder)
        return "verified"
    for name, expected in checkpoints.read_checkpoint_manifest(folder).files.items():
        size = (folder / name).stat().st_size
        if size != expected["size_bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {expected['size_bytes']}")
    return "whole"


class _State(NamedTuple):
    text: str
    needs_person: bool = False
    action: str = ""
    is_live: bool = False  # its processes are running


def _assess(
    record: RunRecord, events: Events, job: JobState | None, who: str, now: float
) -> _State:
    last, again = events[-1]["event"] if events else "", _start_again(record)
    is_live = job is not None and not job.is_final
    # a finished run may have been submitted again, with more steps
    if last == "finished" and not (job and is_live and job.job_id != record.attempts[-1].job_id):
        evaluated = Path(record.run, "evaluation.json").exists()
        action = "" if evaluated else f"simclr-evaluate {shlex.quote(f'run={record.run}')} ..."
        return _State("finished", action=action)
    # before the first heartbeat, the age of the attempt counts
    silent_s = record.heartbeat_age_s
    if silent_s is None:
        silent_s = now - record.attempts[-1].start if record.attempts else 0.0
    if job and is_live:
        return _of_live_job(record, events, job, who, silent_s, now)
    if not events:
        began = f"ended before it began: {job.state.lower()}" if job else "not started"
        return _State(began, bool(job), "read the log" if job else "")
    if job and job.state == "CANCELLED" and last != "failed":
        saved = f", saved at step {events[-1]['step']}" if last == "stop" else ""
        return _State(f"cancelled{saved}", True, again)
    if job and last in ("start", "training"):
        return _State(f"ended by Slurm: {job.state.lower()}", True, again)
    attempt = record.attempts[-1]
    if attempt.outcome == "failed":
        return _State(attempt.cause[:_LONGEST_CAUSE], True, f"read the log; {again}")
    if attempt.outcome == "stopped":
        return _State(attempt.cause, True, again)
    if attempt.outcome == "running" and _may_be_alive(events, silent_s):
        return _at_work(record, events, now)
    cause = attempt.cause or "killed, or the machine failed"
    return _State(f"ended unrecorded: {cause}", True, again)


def _of_live_job(
    record: RunRecord, events: Events, job: JobState, who: str, silent_s: float, now: float
) -> _State:
    if job.state == "PENDING":
        text, fix = why_waiting(job)
        action = f"{fix}; scontrol show job {job.job_id}" if fix else ""
        return _State(f"waiting: {text}", bool(fix), action)
    if job.state != "RUNNING":
        return _State(job.state.lower())
    if events and events[-1]["event"] not in ("start", "training"):
        return _State("stopping, or starting again", is_live=True)
    if silent_s > STALE_S:
        action = f"read the log; unless it still trains, scancel {job.job_id} and submit again"
        return _State(f"running, but {who} is silent", True, action, is_live=True)
    return _at_work(record, events, now)


def _at_work(record: RunRecord, events: Events, now: float) -> _State:
    if events and events[-1]["event"] == "start":
        return _State(f"starting for {round(now - events[-1]['time'])} s", is_live=True)
    return _State("training" if record.step else "starting", is_live=True)


def _may_be_alive(events: Events, silent_s: float) -> bool:
    """Return whether the last attempt may run: by its process id on this host, else by silence."""
    start = next(iter(reversed(_starts(events))), {})
    if start.get("host") != socket.gethostname():
        return silent_s < STALE_S
    try:
        stat = Path(f"/proc/{start['pid']}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # one that began later, such as after a reboot, merely has its number: proc(5), field 22
    began_s = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + began_s < float(start["time"]) + 1.0


def _start_again(record: RunRecord) -> str:
    if record.is_damaged:
        return "the same command continues from the checkpoint before"
    step = record.checkpoint_step
    return f"the same command continues {'from the start' if step is None else f'at step {step}'}"


@dataclass(frozen=True, slots=True)
class PackingRecord:
    """Everything that simclr-status shows about a packing."""

    shards: str  # output folder
    state: str  # in plain English
    needs_person: bool = False  # it will neither continue nor end by itself
    action: str = ""  # what to do next; empty when nothing
    job_id: str = ""  # of the array, if any; several are joined by commas
    members: dict[str, int] = field(default_factory=dict)  # number of array tasks by Slurm state
    failed: list[str] = field(default_factory=list)  # array tasks, as scontrol names them
    num_done: int = 0  # complete shards
    num_shards: int = 0  # planned shards; without a plan, the complete ones
    log: str = ""  # file of the first array task
    slurm_error: str = ""  # why Slurm did not answer; empty if it did


def is_packing(folder: Path) -> bool:
    """Return whether shards are being, or were, packed into a folder."""
    return (folder / WORK_FOLDER).is_dir() or (folder / MANIFEST_NAME).exists()


def packing_job(folder: Path) -> list[str]:
    """Return the job that was submitted for a packing, if any."""
    submission = read_submission(folder / WORK_FOLDER / JOB_FOLDER, "pack")
    return [submission.job_id] if submission else []


def describe_packing(folder: Path, answer: SlurmAnswer) -> PackingRecord:
    """Return the record of a packing; members of its array are jobs ``12_0``, ``12_1``, ..."""
    submission = read_submission(folder / WORK_FOLDER / JOB_FOLDER, "pack")
    array = submission.job_id if submission else ""
    arrays = array.split(",")  # several if one array cannot hold all members
    # squeue forgets jobs soon after they end; then accounting, if there is any, has their state
    states = {name: ends[-1] for name, ends in answer.endings.items() if ends[-1]}
    states |= {name: job.state for name, job in answer.jobs.items()}
    members = {name: state for name, state in states.items() if name.partition("_")[0] in arrays}
    over = {name: state for name, state in members.items() if state in slurm.FINAL}
    failed = sorted(name for name, state in over.items() if state != "COMPLETED")
    done = planned = sum(1 for _ in folder.glob("shard-*.h5"))
    if (plan := folder / WORK_FOLDER / PLAN_NAME).exists():
        with plan.open("rb") as file:
            rows = int(json.loads(next(file))["rows_per_shard"])
            planned = -(-sum(1 for _ in file) // rows)
    state, action, needs_person = _assess_packing(folder, failed, alive=len(over) < len(members))
    return PackingRecord(
        shards=str(folder),
        state=state,
        needs_person=needs_person,
        action=action,
        job_id=array,
        members=dict(Counter(map(str.lower, members.values()))),
        failed=failed,
        num_done=done,
        num_shards=planned,
        log=submission.log if submission else "",
        slurm_error=answer.error,
    )


def _assess_packing(folder: Path, failed: list[str], *, alive: bool) -> tuple[str, str, bool]:
    """Return the state, the next action, and whether a person has to take it."""
    if (folder / MANIFEST_NAME).exists():
        try:
            read_manifest(folder)
        except ValueError as error:
            state, _, fix = str(error).partition("; ")
            return state, fix, True
        return "packed", shlex.join(["simclr-verify", f"shards={folder}"]), False
    again = "the same command packs what is missing"
    if failed:
        state = f"{len(failed)} members failed"
        return f"packing; {state}" if alive else state, f"read their logs; {again}", True
    return ("packing", "", False) if alive else ("not complete", again, False)
