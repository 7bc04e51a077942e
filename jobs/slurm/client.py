"""Call Slurm's commands and return typed answers; unknown states stay unknown.

Only formats requested here are parsed, and only fields that every release since 20.11 has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 30

# States after which a job does not run again (squeue(1), JOB STATE CODES). A requeued job has
# PENDING or REQUEUED instead. Unknown states of later releases are not considered final.
FINAL = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
    *("NODE_FAIL", "PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "SPECIAL_EXIT"),
)

# A field starts at the beginning or after a space; values may contain spaces and equal signs.
_FIELD = re.compile(r"(?:^| )([A-Z][A-Za-z:/]*)=")
_DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
_NOTHING = ("None", "(null)", "Unknown", "N/A", "None assigned")  # placeholders for a missing value
# sacct's messages if accounting is disabled: not an error, so the answer is empty
_NO_ACCOUNTING = (
    "accounting storage is disabled",
    "not running a supported accounting_storage",
    "is not installed",
)


class SlurmError(RuntimeError):
    """A command of Slurm failed, or did not answer in time."""


class RefusedError(SlurmError):
    """Slurm refuses the request, and will do so again."""


class DeniedError(RefusedError):
    """The site does not allow users to do this; Slurm itself still may."""


@dataclass(frozen=True, slots=True)
class JobState:
    """Slurm's record of one job."""

    job_id: str  # 12, or 12_3 in an array
    state: str  # Slurm's own term, for example RUNNING
    reason: str = ""  # why it waits, in Slurm's own term
    preempted: bool = False  # PreemptTime is set
    restarts: int = 0  # how often it was requeued
    nodes: str = ""  # in Slurm's abbreviation
    time_left: str = ""  # until the time limit, [days-]hours:minutes:seconds
    start: str = ""  # when it started, or is expected to

    @property
    def is_final(self) -> bool:
        """Whether the job cannot run again; an unknown state is not final."""
        return self.state in FINAL


def is_available() -> bool:
    """Return whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def call(arguments: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """Run a Slurm command, return its stdout; SlurmError: not installed, failed, or timed out."""
    # without variables that change the query: SQUEUE_STATES, for example, hides jobs
    filters = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(filters)}
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            errors="replace",  # folders and comments may contain any byte
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{arguments[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{' '.join(arguments)} gave no answer in {timeout_s:.0f} s") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(arguments)} failed: {one_line(done.stderr or done.stdout)}")
    return done.stdout


def one_line(complaint: str) -> str:
    """Return Slurm's messages on one line, each without the command's name."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    # an unreachable Slurm reports every attempt; only the fatal line states the problem
    fatal = [line for line in lines if ": fatal: " in line]
    return "; ".join(re.sub(r"^\w+: (?:error|fatal): ", "", line) for line in fatal or lines)


def show_job(job_id: str) -> JobState:
    """Ask ``scontrol`` for a job; SlurmError: it does not exist (any more), or no answer."""
    return parse_job(call(["scontrol", "-o", "show", "job", job_id]))


def parse_job(text: str) -> JobState:
    """Parse a line of ``scontrol -o show job``; SlurmError: it is not such a line."""
    fields = _fields(text)
    if "JobId" not in fields or "JobState" not in fields:
        raise SlurmError(f"scontrol said {text.strip()[:80]!r}, not a job")
    array, index = fields.get("ArrayJobId"), fields.get("ArrayTaskId", "")
    return JobState(
        job_id=f"{array}_{index}" if array and index.isdigit() else fields["JobId"],
        # "CANCELLED by 1000" appears in accounting only, "RUNNING" never has a second word
        state=fields["JobState"].split()[0],
        reason=_known(fields.get("Reason", "")),
        preempted=bool(_known(fields.get("PreemptTime", ""))),
        restarts=int(fields.get("Restarts", "0") or 0),
        nodes=_known(fields.get("NodeList", "")),
        start=_known(fields.get("StartTime", "")),
    )


def queue(job_ids: Iterable[str], timeout_s: float = TIMEOUT_S) -> dict[str, JobState]:
    """Ask ``squeue`` for jobs; those it has forgotten are omitted. SlurmError: no answer."""
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%S|%L|%N|%r"]
    # the error when the only requested job is forgotten
    return parse_queue(_ask(command, job_ids, timeout_s, ("Invalid job id",)))


def _ask(
    command: Sequence[str], job_ids: Iterable[str], timeout_s: float, empty: Sequence[str]
) -> str:
    """Query jobs; return nothing without ids, or for errors that contain a text of ``empty``."""
    wanted = sorted(set(job_ids))
    try:
        return call([*command, "-j", ",".join(wanted)], timeout_s) if wanted else ""
    except SlurmError as error:
        if any(words in str(error) for words in empty):
            return ""
        raise


def parse_queue(text: str) -> dict[str, JobState]:
    """Parse lines of our own ``squeue -o`` format; skip other lines."""
    states = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|", 5)]
        if len(parts) == 6 and parts[1]:
            job_id, state, start, left, nodes, reason = parts
            states[job_id] = JobState(
                job_id, state, _known(reason), nodes=nodes, time_left=left, start=_known(start)
            )
    return states


def endings(job_ids: Iterable[str], timeout_s: float = TIMEOUT_S) -> dict[str, list[str]]:
    """Ask ``sacct`` how jobs ended; empty if accounting is disabled. SlurmError: no answer.

    Returns, by job id, the final state of each start in order; empty for one that has not ended.
    """
    # -D: without it sacct hides every start but the last. -X: jobs, not their steps.
    command = ["sacct", "-n", "-P", "-X", "-D", "-o", "JobID,State,End"]
    return parse_endings(_ask(command, job_ids, timeout_s, _NO_ACCOUNTING))


def parse_endings(text: str) -> dict[str, list[str]]:
    """Parse lines of our own ``sacct -P`` format; skip other lines."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == 3 and parts[1]:
            job_id, state, end = parts
            # "CANCELLED by 1000"; a narrow format cuts OUT_OF_MEMORY to OUT_OF_ME+
            ending = state.split()[0].rstrip("+") if _known(end) else ""
            found.setdefault(job_id, []).append(ending)
    return found


def seconds_of(duration: str) -> int | None:
    """Return the seconds of ``[days-][hours:]minutes:seconds``; None for UNLIMITED etc."""
    found = _DURATION.fullmatch(duration)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def requeue(job_id: str) -> bool:
    """Requeue a running job; return False if Slurm has already done so.

    RefusedError: the job or the site disables requeueing; DeniedError: users may not requeue;
    SlurmError: no answer, or another error.
    """
    try:
        call(["scontrol", "requeue", job_id])
    except SlurmError as error:
        if "pending execution" in str(error):
            return False
        if "presently disabled" in str(error):  # for a job without --requeue
            raise RefusedError(str(error)) from error
        if "permission denied" in str(error):  # where only operators may requeue
            raise DeniedError(str(error)) from error
        raise
    return True


def hold(job_id: str, reason: str) -> None:
    """Requeue a running job and hold it until a person releases it.

    ``squeue -o %k`` and ``scontrol show job`` show the reason. SlurmError: refused, or no answer.
    """
    # first: the hold ends the calling process
    call(["scontrol", "update", f"JobId={job_id}", f"Comment={reason}"])
    call(["scontrol", "requeuehold", job_id])


def host_names(node_list: str) -> list[str]:
    """Expand ``n[1-3]`` to names; SlurmError: not a list of nodes, or no answer."""
    return call(["scontrol", "show", "hostnames", node_list]).split()


def node_address(name: str) -> str:
    """Return the address at which Slurm reaches a node; SlurmError: no such node, or no answer."""
    return _fields(call(["scontrol", "-o", "show", "node", name])).get("NodeAddr", name)


def partitions() -> dict[str, dict[str, str]]:
    """Return the fields of ``scontrol show partition`` by partition; SlurmError: no answer."""
    found = map(_fields, call(["scontrol", "-o", "show", "partition"]).splitlines())
    return {fields["PartitionName"]: fields for fields in found if "PartitionName" in fields}


def parse_settings(text: str) -> dict[str, str]:
    """Return the settings that ``scontrol show config`` prints."""
    return {name: value.strip() for name, value in re.findall(r"^(\w+)\s*= (.*)$", text, re.M)}


def _known(value: str) -> str:
    return "" if value in _NOTHING else value


def _fields(text: str) -> dict[str, str]:
    """Split ``Key=value Key=value``; if a key is repeated, its first value counts."""
    parts = _FIELD.split(text.strip().split("\n", 1)[0])[1:]  # key, value, key, value, ...
    fields: dict[str, str] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        fields.setdefault(key, value.strip())
    return fields
