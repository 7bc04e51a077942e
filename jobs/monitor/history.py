"""The attempts of a run: lines of its log and Slurm's accounts come in, how each ended goes out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.accounting import Ending

Events = Sequence[Mapping[str, Any]]

# (what the ranks were told, what the main one decided) in a person's words
_STOPS = {
    ("warning", "requeue"): "warned of the time limit or preemption: saved, requeued",
    ("warning", "quit"): "warned, and already ended by Slurm: saved",
    ("terminate", "requeue"): "preempted: saved, requeued",
    ("terminate", "quit"): "ended by Slurm (cancelled, requeued by hand, or node lost): saved",
}
_DECISIONS = {
    "hold": "held: three attempts in a row saved nothing",
    "stay": "told to end without a reason: saved, waited for Slurm",
}


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One start of a run.

    Attributes:
        number: from 1.
        start: seconds since 1970.
        end: when it ended; none while it runs, or when it was lost without a word.
        outcome: running, finished, stopped, failed or lost.
        cause: why it ended, in words.
        first_step: where it began; none when it did not come so far.
        last_step: where it ended, saved; none when unknown.
        nodes: where it ran.
        num_ranks: processes.
        job_id: Slurm's; empty elsewhere.
        lost_steps: done and not saved, as the next attempt found; none before that.
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
        endings: Slurm's accounts of its jobs, if there are any; they tell what a run that was
            killed could not write down.
        is_over: the job of the last one has ended: without a word of its own it was lost.
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
    """Say why an attempt stopped; what the run itself wrote down comes first."""
    if event.get("cause"):
        return str(event["cause"])
    if not event.get("job_id"):
        return "stopped by a person (Ctrl-C or SIGTERM): saved"
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
        return "failed", f"failed: {last.get('error', 'no word')}"
    if last["event"] == "stop":
        return "stopped", cause_of_stop(last)
    return "running", ""


def _accounted(start: Mapping[str, Any], endings: Mapping[str, Sequence[Ending]]) -> str:
    """Return Slurm's word on how this start of the job ended; empty when there is none."""
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
    """Return the steps that an attempt had to take again, as it says when training begins."""
    return next((event["lost_steps"] for event in group if "lost_steps" in event), None)


def _ended_before(record: AttemptRecord, later: AttemptRecord | None) -> AttemptRecord:
    """Give a lost attempt the step from which the next one went on: what came after is lost."""
    if record.outcome != "lost" or later is None or later.first_step is None:
        return record
    return replace(record, last_step=later.first_step)
