"""Explain why a job waits and why each attempt of a run ended; for ``records``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.slurm.client import JobState

Events = Sequence[Mapping[str, Any]]

# Reasons of squeue(1), all with underscores, though Slurm writes some with spaces.
_WAITING = {
    "other jobs go first": "Priority",
    "no free nodes yet": "Resources",
    "may not start yet; after a requeue for a minute or two": "BeginTime",
    "waits for another job": "Dependency",
    "as many members of the array run as may (cluster.parallel_parts)": "JobArrayTaskLimit",
    "waits for a licence": "Licenses",
    "waits for its reservation to begin": "Reservation",
    "nodes are down or reserved": "ReqNodeNotAvail",
    "a node that it asks for is down": "NodeDown",
    "the partition is closed for now": "PartitionDown PartitionInactive",
    "its former start is being cleared away": "Cleaning",
    "could not be started on its nodes and waits to be tried again": "JobLaunchFailure",
    "could not be started, and is held": "launch_failed_requeued_held",
    "you have as many jobs as the QOS allows": "QOSMaxJobsPerUserLimit",
    "your GPUs are as many as the QOS allows": "QOSMaxGRESPerUser",
    "the QOS' GPUs are all in use": "QOSGrpGRES",
    "the QOS' nodes are all in use": "QOSGrpNodeLimit",
    "the account's GPUs are all in use": "MaxGRESPerAccount AssocGrpGRES",
    "the account's nodes are all in use": "AssocGrpNodeLimit",
    "you have as many jobs as the account allows": "AssocMaxJobsLimit",
    "the account has used up its hours": "AssocGrpBillingMinutes AssocGrpCPUMinutesLimit",
}
# These do not resolve by themselves; the second text is what a person can do.
_STUCK = {
    ("asks for more time than the partition allows", "cluster.time_min"): "PartitionTimeLimit",
    ("asks for more nodes than the partition has", "cluster.nodes"): "PartitionNodeLimit",
    ("asks for what no node has", "cluster.constraint, gpus, memory"): "BadConstraints",
    ("the job that it waits for has failed", "submit it again"): "DependencyNeverSatisfied",
    # done by jobs.slurm.requeue after idle attempts
    ("held after a requeue", "read its Comment; scontrol release"): "job_requeued_in_held_state",
    ("held by you", "scontrol release"): "JobHeldUser",
    ("held by an administrator", "ask them"): "JobHeldAdmin",
    ("the partition does not take this account", "cluster.account"): "AccountNotAllowed",
    ("the partition does not take this QOS", "cluster.qos"): "QOSNotAllowed",
    (
        "asks for more time than the QOS allows",
        "cluster.time_min",
    ): "QOSTimeLimit QOSMaxWallDurationPerJobLimit",
    ("asks for more time than allowed", "cluster.time_min"): "AssocMaxWallDurationPerJobLimit",
    ("the account is not valid", "cluster.account"): "InvalidAccount",
    ("the QOS is not valid", "cluster.qos"): "InvalidQOS",
    (
        "was requeued as often as Slurm allows, and is held",
        "scontrol release",
    ): "MaxRequeues JobHoldMaxRequeue",
}
_WAITING_BY_REASON = {name: text for text, names in _WAITING.items() for name in names.split()}
_STUCK_BY_REASON = {name: both for both, names in _STUCK.items() for name in names.split()}

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
_LOSSES = {
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit, without time to save",
    "PREEMPTED": "preempted, without time to save",
    "": "killed, or its node was lost",
}


def why_waiting(job: JobState) -> tuple[str, str]:
    """Return why a pending job waits, and the fix; empty if the reason resolves by itself.

    An unknown reason is returned as Slurm writes it.
    """
    reason = job.reason.partition(",")[0].strip("() ")
    name = reason.replace(" ", "_")
    if name in _STUCK_BY_REASON:
        return _STUCK_BY_REASON[name]
    text = _WAITING_BY_REASON.get(name, reason or "no reason given")
    return f"{text}; expected to start {job.start}" if job.start else text, ""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One start of a run."""

    number: int  # from 1
    start: float  # seconds since 1970
    end: float | None  # None while it runs, or if it was lost without a record
    outcome: str  # running, finished, stopped, failed or lost
    cause: str  # why it ended
    first_step: int | None  # where training began; None if it did not get that far
    last_step: int | None  # the last one saved; None if unknown
    nodes: str
    num_ranks: int
    job_id: str  # Slurm's; empty elsewhere
    lost_steps: int | None = None  # not saved, as counted by the next attempt; None before


def history(
    events: Events, endings: Mapping[str, Sequence[str]], *, is_over: bool = False
) -> list[AttemptRecord]:
    """Return the attempts in order, from the lines of ``attempts.jsonl``.

    A killed run leaves no record; then ``endings``, from sacct if accounting is on, has the cause.
    ``is_over``: the job of the last attempt has ended; without a record, the attempt was lost.
    """
    attempts = [list(group) for _, group in itertools.groupby(events, lambda e: e["attempt"])]
    return [
        _attempt(own, later, endings, is_over=is_over or bool(later))
        for own, later in zip(attempts, [*attempts[1:], []], strict=False)
    ]


def _attempt(
    own: Events, later: Events, endings: Mapping[str, Sequence[str]], *, is_over: bool
) -> AttemptRecord:
    start, last = own[0], own[-1]
    outcome, cause = _outcome(last)
    last_step = last.get("step", last.get("last_step"))
    if "checkpoint" in last:  # step-000012000
        last_step = int(str(last["checkpoint"]).rpartition("-")[2])
    if outcome == "running":
        # how this start of the job ended according to sacct; empty if unknown
        known, number = endings.get(start.get("job_id", ""), ()), start.get("restarts", 0)
        state = known[number] if number < len(known) else ""
        if state or is_over:
            outcome, cause = "lost", _LOSSES.get(state, f"ended by Slurm: {state}")
            # steps after the one from which the next attempt continued are lost
            continued_at = later[-1].get("first_step") if later else None
            last_step = last_step if continued_at is None else continued_at
    return AttemptRecord(
        number=start["attempt"],
        start=start["time"],
        end=None if outcome in ("running", "lost") else last["time"],
        outcome=outcome,
        cause=cause,
        first_step=last.get("first_step"),
        last_step=last_step,
        nodes=start.get("nodes", start.get("host", "")),
        num_ranks=start.get("num_ranks", 1),
        job_id=start.get("job_id", ""),
        lost_steps=next((e["lost_steps"] for e in later if "lost_steps" in e), None),
    )


def _outcome(last: Mapping[str, Any]) -> tuple[str, str]:
    """Return how an attempt ended, and why; a cause recorded by the run takes precedence."""
    match last["event"]:
        case "finished":
            return "finished", "finished"
        case "failed":
            return "failed", f"failed: {last.get('error', 'unknown error')}"
        case "stop" if last.get("cause"):
            return "stopped", str(last["cause"])
        case "stop" if not last.get("job_id"):
            saved = ": saved" if last.get("step") else ""
            return "stopped", f"stopped by a person (Ctrl-C or SIGTERM){saved}"
        case "stop":
            signal, decision = str(last.get("signal")), str(last.get("decision"))
            known = _STOPS.get((signal, decision)) or _DECISIONS.get(decision)
            return "stopped", known or f"stopped ({signal})"
    return "running", ""
