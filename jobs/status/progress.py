"""Progress and attempts of a run: its metrics, checkpoints, heartbeats and attempts.jsonl.

Called by the status of a run. Reads only; files that are being written do not disturb it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.run_dir import read_heartbeats
from jobs.slurm.client import Ending
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    MANIFEST_NAME,
    read_checkpoint_manifest,
    verify,
)
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

_RECENT = 5  # metric lines whose pace says when the run will end
_PROBES = ("probe/", "knn/")
_SHOWN = ("loss", "learning_rate")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The newest checkpoint of a run.

    Attributes:
        step: optimizer steps done.
        time: when it was finished, seconds since 1970.
        state: ``verified`` (every checksum), ``whole`` (every size), or what is wrong.
        is_whole: no check failed.
    """

    step: int
    time: float
    state: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The rank that was silent the longest.

    Attributes:
        rank: its number.
        node: where it runs.
        step: the last one it began.
        time: of its heartbeat, seconds since 1970.
    """

    rank: int
    node: str
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: optimizer steps done.
        num_steps: of the whole run.
        patches_per_s: over all ranks, in the last interval.
        time_left_s: at the pace of the last intervals.
        metrics: last loss and learning rate, and the last scores of probes with their step.
        checkpoint: newest one.
        slowest: rank that was silent the longest.
    """

    step: int = 0
    num_steps: int = 0
    patches_per_s: float | None = None
    time_left_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    slowest: Heartbeat | None = None


def read_progress(run_dir: Path, since: float = 0.0, *, thorough: bool = False) -> Progress:
    """Read the progress of a run.

    Args:
        run_dir: run folder.
        since: when its latest attempt began; heartbeats of earlier ones are ignored.
        thorough: compare the checksums of the newest checkpoint, not its sizes only.
    """
    path = run_dir / METRICS_NAME
    records = read_metrics(path) if path.exists() else []
    last = records[-1] if records else {}
    beats = _heartbeats(run_dir, since)
    return Progress(
        # A heartbeat comes every step, a metric line every interval.
        step=max([last.get("step", 0), *(beat.step for beat in beats)]),
        num_steps=last.get("num_steps", 0),
        patches_per_s=last.get("patches_per_s"),
        time_left_s=_time_left(records),
        metrics=_last_metrics(records),
        checkpoint=newest_checkpoint(run_dir, thorough=thorough),
        slowest=min(beats, key=lambda beat: beat.time, default=None),
    )


def newest_checkpoint(run_dir: Path, *, thorough: bool) -> Checkpoint | None:
    """Return the newest checkpoint that is there, with its state."""
    for folder in sorted(run_dir.glob(f"{CHECKPOINTS}/{FOLDER_PATTERN}"), reverse=True):
        step = int(folder.name.rpartition("-")[2])
        try:
            time = _written(folder)
            state = _checked(folder, thorough)
        except FileNotFoundError:
            continue  # the run has just removed it: it has a newer one
        except ValueError as error:
            if folder.exists():
                return Checkpoint(step, time, f"damaged: {error}", is_whole=False)
        else:
            return Checkpoint(step, time, state, is_whole=True)
    return None


def _written(folder: Path) -> float:
    manifest = folder / MANIFEST_NAME
    return (manifest if manifest.exists() else folder).stat().st_mtime


def _checked(folder: Path, thorough: bool) -> str:
    if thorough:
        verify(folder)
        return "verified"
    for name, expected in read_checkpoint_manifest(folder).files.items():
        size = (folder / name).stat().st_size
        if size != expected["size_bytes"]:
            raise ValueError(f"{name} has {size} bytes, not {expected['size_bytes']}")
    return "whole"


def _time_left(records: Sequence[dict[str, Any]]) -> float | None:
    recent = records[-_RECENT:]
    steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
    if steps <= 0:
        return None
    pace: float = (recent[-1]["time"] - recent[0]["time"]) / steps
    return pace * float(recent[-1]["num_steps"] - recent[-1]["step"])


def _last_metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    if not records:
        return {}
    shown = {name: records[-1][name] for name in _SHOWN if name in records[-1]}
    for record in reversed(records):
        probes = {key: value for key, value in record.items() if key.startswith(_PROBES)}
        if probes:
            return shown | probes | {"probed_at_step": record["step"]}
    return shown


def _heartbeats(run_dir: Path, since: float) -> list[Heartbeat]:
    return [
        Heartbeat(beat["rank"], beat["node"], beat["step"] or 0, float(beat["time"]))
        # An attempt on fewer ranks leaves the files of the others as they were.
        for beat in read_heartbeats(run_dir, since)
    ]


Events = Sequence[Mapping[str, Any]]

# (signal that the ranks received, decision of rank 0)
_STOPS = {
    ("SIGUSR2", "requeue"): "warned of the time limit or preemption: saved, requeued",
    ("SIGUSR2", "quit"): "warned, and already ended by Slurm: saved",
    ("SIGTERM", "requeue"): "preempted: saved, requeued",
    ("SIGTERM", "quit"): "ended by Slurm (cancelled, requeued by hand, or node lost): saved",
}
_DECISIONS = {
    "hold": "held: three attempts in a row saved nothing",
    "stay": "asked to end for an unknown reason: saved, waited for Slurm",
}


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One start of a run.

    Attributes:
        number: from 1.
        start: seconds since 1970.
        end: when it ended; None while it runs, or when it was lost unrecorded.
        outcome: running, finished, stopped, failed or lost.
        cause: why it ended.
        first_step: where it began; None when it did not come so far.
        last_step: where it ended, saved; None when unknown.
        nodes: where it ran.
        num_ranks: processes.
        job_id: Slurm's; empty elsewhere.
        lost_steps: done and not saved, as the next attempt found; None before that.
    """

    number: int
    start: float
    end: float | None
    outcome: str
    cause: str
    first_step: int | None
    last_step: int | None
    nodes: str
    num_ranks: int
    job_id: str
    lost_steps: int | None = None


def history(
    events: Events,
    endings: Mapping[str, Sequence[Ending]] | None = None,
    *,
    is_over: bool = False,
) -> list[AttemptRecord]:
    """Return the attempts in order.

    Args:
        events: lines of ``attempts.jsonl``.
        endings: from sacct, if accounting is on; a run that was killed leaves no record.
        is_over: the job of the last attempt has ended; without a record it was lost.
    """
    numbered = [list(group) for _, group in itertools.groupby(events, lambda e: e["attempt"])]
    records = [
        _record(group, may_run=group is numbered[-1] and not is_over, endings=endings or {})
        for group in numbered
    ]
    following = [*zip(records[1:], numbered[1:], strict=True), (None, ())]
    return [
        replace(_ended_before(now, later), lost_steps=_lost_before(group))
        for now, (later, group) in zip(records, following, strict=False)
    ]


def cause_of_stop(event: Mapping[str, Any]) -> str:
    """Return why an attempt stopped; the cause that the run recorded comes first."""
    if event.get("cause"):
        return str(event["cause"])
    if not event.get("job_id"):
        return "stopped by a person (Ctrl-C or SIGTERM)" + (": saved" if event.get("step") else "")
    signal, decision = str(event.get("signal")), str(event.get("decision"))
    known = _STOPS.get((signal, decision)) or _DECISIONS.get(decision)
    return known or f"stopped ({signal})"


def _record(
    group: Events, *, may_run: bool, endings: Mapping[str, Sequence[Ending]]
) -> AttemptRecord:
    start, last = group[0], group[-1]
    outcome, cause = _outcome(last)
    if outcome == "running":
        accounted = _accounted(start, endings)
        if accounted or not may_run:
            outcome, cause = "lost", _loss(accounted)
    return AttemptRecord(
        number=start["attempt"],
        start=start["time"],
        end=None if outcome in ("running", "lost") else last["time"],
        outcome=outcome,
        cause=cause,
        first_step=last.get("first_step"),
        last_step=_last_step(last),
        nodes=start.get("nodes", start.get("host", "")),
        num_ranks=start.get("num_ranks", 1),
        job_id=start.get("job_id", ""),
    )


def _last_step(last: Mapping[str, Any]) -> int | None:
    if "checkpoint" in last:  # step-000012000
        return int(str(last["checkpoint"]).rpartition("-")[2])
    step: int | None = last.get("step", last.get("last_step"))
    return step


def _outcome(last: Mapping[str, Any]) -> tuple[str, str]:
    if last["event"] == "finished":
        return "finished", "finished"
    if last["event"] == "failed":
        return "failed", f"failed: {last.get('error', 'unknown error')}"
    if last["event"] == "stop":
        return "stopped", cause_of_stop(last)
    return "running", ""


def _accounted(start: Mapping[str, Any], endings: Mapping[str, Sequence[Ending]]) -> str:
    """Return the state in which sacct saw this start of the job end; empty if unknown."""
    known = endings.get(start.get("job_id", ""), ())
    number = start.get("restarts", 0)
    ended = number < len(known) and bool(known[number].end)
    return known[number].state if ended else ""


def _loss(state: str) -> str:
    words = {
        "NODE_FAIL": "its node failed",
        "OUT_OF_MEMORY": "out of memory",
        "TIMEOUT": "time limit, without time to save",
        "PREEMPTED": "preempted, without time to save",
    }
    return words.get(state, f"ended by Slurm: {state}" if state else "killed, or its node was lost")


def _lost_before(group: Events) -> int | None:
    """Return the steps that an attempt had to train again, recorded when training began."""
    return next((event["lost_steps"] for event in group if "lost_steps" in event), None)


def _ended_before(record: AttemptRecord, later: AttemptRecord | None) -> AttemptRecord:
    """Give a lost attempt the step from which the next one went on: what came after is lost."""
    if record.outcome != "lost" or later is None or later.first_step is None:
        return record
    return replace(record, last_step=later.first_step)
