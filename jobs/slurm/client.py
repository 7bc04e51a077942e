"""Slurm's commands with typed answers; unknown states stay unknown.

Only formats that we ask for are parsed, and only the fields that every release since 20.11 has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 30

# Slurm's "job state codes" after which a job does not run again (squeue(1), JOB STATE CODES). One
# that is requeued shows PENDING or REQUEUED instead. States of later releases are not final.
FINAL = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
    *("NODE_FAIL", "PREEMPTED", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED", "SPECIAL_EXIT"),
)

# A field starts at the beginning or after a space; values may hold spaces and equal signs.
_FIELD = re.compile(r"(?:^| )([A-Z][A-Za-z:/]*)=")
_DURATION = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
_NOTHING = ("None", "(null)", "Unknown", "N/A", "None assigned")  # in place of a value
# what sacct says where accounting is disabled: no error of the job, so nothing is reported
_NO_ACCOUNTING = (
    "accounting storage is disabled",
    "not running a supported accounting_storage",
    "is not installed",
)


class SlurmError(RuntimeError):
    """A command of Slurm failed, or did not answer in time."""


class RefusedError(SlurmError):
    """Slurm has understood, and will not do it however often it is asked."""


class DeniedError(RefusedError):
    """Users may not do it on this site; Slurm itself still may."""


@dataclass(frozen=True, slots=True)
class JobState:
    """What Slurm says of one job."""

    job_id: str  # 12, or 12_3 in an array
    state: str  # Slurm's word, RUNNING for example; never translated
    reason: str = ""  # why it waits, in Slurm's word
    preempted: bool = False  # a time of preemption is set
    restarts: int = 0  # how often it was requeued
    nodes: str = ""  # as Slurm abbreviates them
    time_left: str = ""  # until the time limit, [days-]hours:minutes:seconds
    start: str = ""  # when it started, or is expected to
    log: str = ""  # file that takes its standard error

    @property
    def is_final(self) -> bool:
        """True when the job cannot run again; an unknown state is not final."""
        return self.state in FINAL


def is_available() -> bool:
    """Return whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def call(arguments: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """Run a command of Slurm and return what it printed; SlurmError: missing, failed, or late."""
    # without what changes the questions: SQUEUE_STATES, for example, hides jobs
    filters = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(filters)}
    try:
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            errors="replace",  # folders and comments may hold any byte
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
    """Return Slurm's words in one line, without the command's name before each of them."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    # a Slurm that cannot be reached tells of every attempt; only the last line says what it means
    fatal = [line for line in lines if ": fatal: " in line]
    return "; ".join(re.sub(r"^\w+: (?:error|fatal): ", "", line) for line in fatal or lines)


def show_job(job_id: str) -> JobState:
    """Ask ``scontrol`` for a job; SlurmError: there is none (any more), or no answer."""
    return parse_job(call(["scontrol", "-o", "show", "job", job_id]))


def parse_job(text: str) -> JobState:
    """Parse a line of ``scontrol -o show job``; SlurmError: it is no such line."""
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
        log=fields.get("StdErr", ""),
    )


def queue(job_ids: Iterable[str], timeout_s: float = TIMEOUT_S) -> dict[str, JobState]:
    """Ask ``squeue`` for jobs; those it has forgotten are left out. SlurmError: no answer."""
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%S|%L|%N|%r"]
    # said when the only job asked for is forgotten
    return parse_queue(_ask(command, job_ids, timeout_s, ("Invalid job id",)))


def _ask(
    command: Sequence[str], job_ids: Iterable[str], timeout_s: float, empty: Sequence[str]
) -> str:
    """Ask about jobs; empty where there are none to ask about, or an error means just that."""
    wanted = sorted(set(job_ids))
    try:
        return call([*command, "-j", ",".join(wanted)], timeout_s) if wanted else ""
    except SlurmError as error:
        if any(words in str(error) for words in empty):
            return ""
        raise


def parse_queue(text: str) -> dict[str, JobState]:
    """Parse lines of our own ``squeue -o`` format; lines of another form are left out."""
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
    """Ask ``sacct`` how jobs ended; nothing where accounting is disabled. SlurmError: no answer.

    Returns job id to the state of each of its starts in order, empty for one that has not ended.
    """
    # -D: without it sacct hides every start but the last. -X: jobs, not their steps.
    command = ["sacct", "-n", "-P", "-X", "-D", "-o", "JobID,State,End"]
    return parse_endings(_ask(command, job_ids, timeout_s, _NO_ACCOUNTING))


def parse_endings(text: str) -> dict[str, list[str]]:
    """Parse lines of our own ``sacct -P`` format; lines of another form are left out."""
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
    """Return the seconds of ``[days-][hours:]minutes:seconds``; none for UNLIMITED and the like."""
    found = _DURATION.fullmatch(duration)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def requeue(job_id: str) -> bool:
    """Requeue a running job; False when Slurm has done so already.

    RefusedError: the job may not be requeued, as it or the site has it; DeniedError: by users;
    SlurmError: no answer, or another trouble.
    """
    try:
        call(["scontrol", "requeue", job_id])
    except SlurmError as error:
        if "pending execution" in str(error):
            return False
        if "presently disabled" in str(error):  # said of a job without --requeue
            raise RefusedError(str(error)) from error
        if "permission denied" in str(error):  # where only operators may requeue
            raise DeniedError(str(error)) from error
        raise
    return True


def hold(job_id: str, reason: str) -> None:
    """End a running job and keep it in the queue, held, until a person releases it.

    ``squeue -o %k`` and ``scontrol show job`` show the reason. SlurmError: refused, or no answer.
    """
    # first: the hold ends the process that asks for it
    call(["scontrol", "update", f"JobId={job_id}", f"Comment={reason}"])
    call(["scontrol", "requeuehold", job_id])


def host_names(node_list: str) -> list[str]:
    """Expand ``n[1-3]`` to names; SlurmError: not a list of nodes, or no answer."""
    return call(["scontrol", "show", "hostnames", node_list]).split()


def node_address(name: str) -> str:
    """Return under which address Slurm reaches a node; SlurmError: no such node, or no answer."""
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
    """Split ``Key=value Key=value``; of a key that comes twice the first counts."""
    parts = _FIELD.split(text.strip().split("\n", 1)[0])[1:]  # key, value, key, value, ...
    fields: dict[str, str] = {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        fields.setdefault(key, value.strip())
    return fields
