"""Why a job is pending: the reasons of squeue in plain English, and the fix where there is one.

Called by the status of a run. Reasons as in Slurm's documentation of squeue; unknown ones are shown
as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.slurm.client import JobState

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
        text: plain English.
        fix: what a person has to do; empty if the reason passes by itself.
    """

    text: str
    fix: str = ""


def why_waiting(job: JobState) -> Waiting:
    """Translate the reason of a pending job."""
    word = job.reason.partition(",")[0].strip("() ")
    if word in _STUCK:
        return Waiting(*_STUCK[word])
    words = _WAITING.get(word, word or "no reason given")
    return Waiting(f"{words}; expected to start {job.start}" if job.start else words)
