"""The decision table of docs/preemption.md, row by row: Slurm's answer decides a job's end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from conftest import REPOSITORY

from jobs.slurm.preemption import Decision, Launcher, RankEnvironment, StopReason, leave

RUNNING = "JobState=RUNNING Restarts=2 PreemptTime=None"
PREEMPTED = "JobState=RUNNING Restarts=2 PreemptTime=2026-11-28T12:00:00"
SIGNALING = "JobState=SIGNALING Restarts=2 PreemptTime=None"
REFUSED = "Requested operation is presently disabled for job 7"
# The rows of the page: what scontrol says, the signal, the decision. Ours is start 2 of job 7.
PAGE = [
    ("JobState={ending} Restarts=2 PreemptTime=None", "any", "quit"),
    ("JobState=RUNNING Restarts=3 PreemptTime=2026-11-28T12:00:00", "any", "quit"),
    (PREEMPTED, "any", "requeue"),
    (RUNNING, "SIGUSR2", "requeue"),
    (RUNNING, "SIGTERM", "stay"),
]
ENDING = (
    *("CANCELLED", "COMPLETING", "PENDING", "REQUEUED", "PREEMPTED", "TIMEOUT"),
    *("NODE_FAIL", "FAILED", "COMPLETED", "A_STATE_TO_COME"),
)
ROWS = [
    (answer.format(ending=state), stop, decision)
    for answer, signals, decision in PAGE
    for state in (ENDING if "{ending}" in answer else ("",))
    for stop in (("SIGUSR2", "SIGTERM") if signals == "any" else (signals,))
]


class Record:
    """What a run notes of its stop.

    Attributes:
        idle: attempts in a row that saved nothing, this one included.
        noted: the decision, and its reason if there is one.
    """

    step = 12

    def __init__(self, idle: int = 1) -> None:
        self.idle = idle
        self.noted: list[tuple[Decision, str]] = []

    def idle_attempts(self) -> int:
        return self.idle

    def decided(self, decision: Decision, reason: str = "") -> None:
        self.noted.append((decision, reason))

    def decision(self) -> Decision | None:
        return self.noted[-1][0] if self.noted else None


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def end_of_a_job(monkeypatch, tmp_path):
    """Return a function that ends rank 0 of a job: decision, reason, calls of scontrol, code.

    The scontrol that is called is a script: one line an answer, the last one for ever.
    """
    asked, answers = tmp_path / "asked", tmp_path / "answers"

    def ended(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    def give(*says: str, stop: str, idle: int = 1, refuses: str = "") -> tuple[str, str, list, int]:
        answers.write_text("".join(f"JobId=7 {line}\n" for line in says))
        (tmp_path / "scontrol").write_text(
            f"""#!/bin/sh
echo "$*" >> '{asked}'
case "$*" in
  *show*) line=$(head -n 1 '{answers}'); [ $(wc -l < '{answers}') -eq 1 ] || sed -i 1d '{answers}'
    [ "$line" != "JobId=7 SILENT" ] && echo "$line";;
  requeue*) [ -z '{refuses}' ] || {{ echo '{refuses}' >&2; exit 1; }};;
esac
"""
        )
        (tmp_path / "scontrol").chmod(0o755)
        record = Record(idle)
        with pytest.raises(Left) as left:
            leave(RankEnvironment(Launcher.slurm, "7", restarts=2), StopReason[stop], record)
        ((decision, reason),) = record.noted
        calls = [line for line in asked.read_text().splitlines() if "show" not in line]
        return decision.value, reason, calls, left.value.args[0]

    yield give
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("says", "stop", "decision"), ROWS)
def test_the_end_of_a_job_follows_the_table(end_of_a_job, says, stop, decision):
    assert end_of_a_job(says, stop=stop) == (
        decision,
        "",
        ["requeue 7"] * (decision == "requeue"),
        75,
    )


def test_these_are_the_rows_of_the_page():
    page = Path(REPOSITORY, "docs", "preemption.md").read_text()
    table = page.partition("| Slurm says | signal | decision |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines()[2:]]
    names = {"any": "any", "SIGUSR2": "SIGUSR2", "SIGTERM alone": "SIGTERM"}
    assert [
        (names[told.strip()], re.match(r"\w+", decision.strip())[0]) for _, told, decision in rows
    ] == [(stop, decision) for _, stop, decision in PAGE]


@pytest.mark.parametrize("stop", ["SIGUSR2", "SIGTERM"])
def test_a_job_that_saved_nothing_three_times_is_held_with_the_reason(end_of_a_job, stop):
    decision, reason, calls, code = end_of_a_job(PREEMPTED, stop=stop, idle=3)
    assert (decision, code) == ("hold", 75)
    assert "3 attempts in a row saved nothing after step 12" in reason
    assert calls == [f"update JobId=7 Comment={reason}", "requeuehold 7"]
    assert end_of_a_job(PREEMPTED, stop=stop, idle=2)[0] == "requeue"


def test_a_job_that_may_not_be_requeued_is_left_at_once(end_of_a_job):
    decision, _, calls, code = end_of_a_job(RUNNING, stop="SIGUSR2", refuses=REFUSED)
    assert (decision, calls, code) == ("quit", ["requeue 7"], 75)


@pytest.mark.parametrize(
    ("says", "stop", "decision"),
    [
        ((SIGNALING, PREEMPTED), "SIGTERM", "requeue"),
        ((SIGNALING, "JobState=CANCELLED Restarts=2 PreemptTime=None"), "SIGUSR2", "quit"),
        (("SILENT", PREEMPTED), "SIGTERM", "requeue"),
        ((SIGNALING,), "SIGTERM", "stay"),
        ((SIGNALING,), "SIGUSR2", "requeue"),
        (("SILENT",), "SIGUSR2", "stay"),
    ],
)
def test_slurm_is_asked_until_its_answer_is_clear(end_of_a_job, says, stop, decision):
    assert end_of_a_job(*says, stop=stop)[0] == decision
