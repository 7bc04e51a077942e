"""Slurm's accounting, where a site keeps it: job numbers come in, how each start ended goes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs import slurm

_FIELDS = "JobID,State,ExitCode,Start,End,NodeList"
# what sacct says where nobody keeps accounts: no fault of the job, and no word about it
_NONE_KEPT = ("accounting storage is disabled", "not running a supported accounting_storage")


@dataclass(frozen=True, slots=True)
class Ending:
    """How one start of a job ended, or that it has not.

    Attributes:
        job_id: ``12``, or ``12_3`` in an array.
        state: Slurm's word without additions: CANCELLED, not ``CANCELLED by 1000``.
        exit_code: what the batch script left with, ``1:0``; the second number is a signal.
        start: as Slurm writes it; empty when it never started.
        end: as Slurm writes it; empty while it runs.
        nodes: as Slurm abbreviates them.
    """

    job_id: str
    state: str
    exit_code: str
    start: str
    end: str
    nodes: str


def endings(job_ids: Iterable[str]) -> dict[str, list[Ending]]:
    """Ask ``sacct`` for all starts of some jobs, in order; nothing where no accounts are kept.

    Raises:
        SlurmError: no answer.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    # -D: without it sacct hides every start but the last. -X: jobs, not their steps.
    command = ["sacct", "-n", "-P", "-X", "-D", "-o", _FIELDS, "-j", ",".join(wanted)]
    try:
        return parse_endings(slurm.call(command))
    except slurm.SlurmError as error:
        if any(words in str(error) for words in (*_NONE_KEPT, "is not installed")):
            return {}
        raise


def parse_endings(text: str) -> dict[str, list[Ending]]:
    """Parse lines of our own ``sacct -P`` format; lines of another form are left out."""
    found: dict[str, list[Ending]] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != _FIELDS.count(",") + 1 or not parts[1]:
            continue
        job_id, state, code, start, end, nodes = parts
        known = ["" if time in ("Unknown", "None", "N/A") else time for time in (start, end)]
        where = "" if nodes == "None assigned" else nodes
        ending = Ending(job_id, state.split()[0].rstrip("+"), code, known[0], known[1], where)
        found.setdefault(job_id, []).append(ending)
    return found
