"""Job numbers come in, Slurm's word on them goes out, seldom enough for a shared controller."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from jobs import slurm
from jobs.accounting import Ending, endings
from jobs.monitor.records import SlurmWord

_Word = TypeVar("_Word")

INTERVAL_S = 30.0  # many people watch many runs; the controller answers all of them


class Asker:
    """Asks Slurm, and remembers the answer until it is old enough to ask again."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Begin with no answer; ``interval_s`` is the least time between two questions."""
        self._interval_s = interval_s
        self._asked = -float("inf")
        self._word = SlurmWord()

    def word(self, job_ids: Sequence[str]) -> SlurmWord:
        """Return Slurm's word; an empty one where there is no Slurm, or no answer."""
        due = time.monotonic() - self._asked >= self._interval_s
        if due and job_ids and slurm.is_available():
            self._asked = time.monotonic()
            self._word = _ask(job_ids)
        return self._word


def _ask(job_ids: Sequence[str]) -> SlurmWord:
    # Each by itself: accounts may be down while the controller answers.
    jobs = _answer(slurm.queue, job_ids)
    accounts: dict[str, list[Ending]] = _answer(endings, job_ids)
    return SlurmWord(jobs, accounts)


def _answer(
    question: Callable[[Sequence[str]], dict[str, _Word]], job_ids: Sequence[str]
) -> dict[str, _Word]:
    try:
        return question(job_ids)
    except slurm.SlurmError as error:
        # The runs' own records are worth showing without it.
        sys.stderr.write(f"simclr-status: {error}; shown is what the runs say of themselves\n")
        return {}
