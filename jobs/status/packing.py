"""The state of a packing: shards in place, array members, and what a person should do next.

Called by simclr-status.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from jobs.run_dir import JOB_FOLDER, read_submission
from jobs.status.run_status import SlurmAnswer
from preprocess.plan import PLAN_NAME, WORK_FOLDER
from preprocess.shards.manifest import MANIFEST_NAME, read_manifest


@dataclass(frozen=True, slots=True)
class PackingRecord:
    """All that simclr-status shows of a packing.

    Attributes:
        shards: output folder.
        state: in plain English.
        needs_person: True when it will neither continue nor end by itself.
        action: what to do next; empty when nothing.
        job_id: of the array, if there is one.
        members: Slurm's states of the array's members, with their number.
        failed: members that failed, as scontrol knows them.
        num_done: shards in place.
        num_shards: of the whole plan; 0 before there is one.
        log: where the members write.
        slurm_error: why Slurm's word is missing; empty when it is not.
    """

    shards: str
    state: str
    needs_person: bool = False
    action: str = ""
    job_id: str = ""
    members: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    num_done: int = 0
    num_shards: int = 0
    log: str = ""
    slurm_error: str = ""


def is_packing(folder: Path) -> bool:
    """Return whether a folder is, or was, packed into."""
    return (folder / WORK_FOLDER).is_dir() or (folder / MANIFEST_NAME).exists()


def packing_job(folder: Path) -> list[str]:
    """Return the job that was submitted for a packing, if any."""
    submission = read_submission(folder / WORK_FOLDER / JOB_FOLDER, "pack")
    return [submission.job_id] if submission else []


def describe_packing(folder: Path, answer: SlurmAnswer) -> PackingRecord:
    """Return the record of a packing.

    Args:
        folder: for shards.
        answer: states of the members of its array, ``12_0``, ``12_1``, ...
    """
    submission = read_submission(folder / WORK_FOLDER / JOB_FOLDER, "pack")
    array = submission.job_id if submission else ""
    arrays = array.split(",")  # more members than fit into one array lie in several
    members = {name: job for name, job in answer.jobs.items() if name.partition("_")[0] in arrays}
    failed = sorted(
        name for name, job in members.items() if job.is_final and job.state != "COMPLETED"
    )
    done, planned = _shards(folder)
    alive = any(not job.is_final for job in members.values())
    state, action, needs_person = _assess(folder, failed, alive=alive)
    return PackingRecord(
        shards=str(folder),
        state=state,
        needs_person=needs_person,
        action=action,
        job_id=array,
        members=dict(Counter(job.state.lower() for job in members.values())),
        failed=failed,
        num_done=done,
        num_shards=planned,
        log=submission.log if submission else "",
        slurm_error=answer.error,
    )


def _assess(folder: Path, failed: list[str], *, alive: bool) -> tuple[str, str, bool]:
    """Return the state, the next action, and whether a person has to take it."""
    if (folder / MANIFEST_NAME).exists():
        try:
            read_manifest(folder)
        except ValueError as error:
            state, _, fix = str(error).partition("; ")
            return state, fix, True
        return "packed", f"simclr-verify shards={folder}", False
    again = "the same command packs what is missing"
    if failed:
        state = f"{len(failed)} members failed"
        return f"packing; {state}" if alive else state, f"read their logs; {again}", True
    return ("packing", "", False) if alive else ("not complete", again, False)


def _shards(folder: Path) -> tuple[int, int]:
    """Count the shards in place, and those of the plan."""
    done = sum(1 for _ in folder.glob("shard-*.h5"))
    plan = folder / WORK_FOLDER / PLAN_NAME
    if not plan.exists():
        return done, done
    with plan.open("rb") as file:
        rows = int(json.loads(next(file))["rows_per_shard"])
        return done, -(-sum(1 for _ in file) // rows)
