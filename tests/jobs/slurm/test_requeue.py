"""How a job ends, row by row of docs/preemption.md: Slurm's answer decides, never the signal alone.

The scontrol that is asked is a script that gives the answers of a test; tests/slurm has a real one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path

import pytest
from conftest import REPOSITORY

from jobs.run_dir import RunAttempt, read_attempts
from jobs.slurm import requeue
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.requeue import Decision, RunStop, exit_for_requeue, requeue_decision
from simclr.preemption import Preempted, StopReason

RUNNING = "JobState=RUNNING Restarts=2 PreemptTime=None"
PREEMPTED = "JobState=RUNNING Restarts=2 PreemptTime=2026-11-28T12:00:00"
SIGNALING = "JobState=SIGNALING Restarts=2 PreemptTime=None"
DENIED = "Access/permission denied for job 7"
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
ENV = RankEnvironment(Launcher.slurm, "7", restarts=2, num_ranks=2)


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def scontrol(monkeypatch, tmp_path):
    """Return a function that sets the answers, one line each, the last one for ever."""
    commands = tmp_path / "commands"
    commands.mkdir()
    asked, answers = commands / "asked", commands / "answers"
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def give(*says: str, refuses: str = "") -> Path:
        answers.write_text("".join(f"JobId=7 {line}\n" for line in says))
        (commands / "scontrol").write_text(
            f"""#!/bin/sh
echo "$*" >> '{asked}'
case "$*" in
  *show*) line=$(head -n 1 '{answers}'); [ $(wc -l < '{answers}') -eq 1 ] || sed -i 1d '{answers}'
    [ "$line" != "JobId=7 SILENT" ] && printf '%b\\n' "$line";;
  requeue*) [ -z '{refuses}' ] || {{ echo '{refuses}' >&2; exit 1; }};;
esac
"""
        )
        (commands / "scontrol").chmod(0o755)
        return asked

    return give


@pytest.fixture
def end_of_a_job(monkeypatch, tmp_path, scontrol):
    """Return a function that ends rank 0 of a job: decision, cause, calls of scontrol, code."""

    def ended(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr(requeue, "STAY_S", 0.0)
    monkeypatch.setattr(requeue, "UNTIL_KILLED_S", 0.0)
    monkeypatch.setattr(requeue, "LONGEST_PAUSE_S", 0.01)

    def give(
        *says: str, stop: str, fault: str = "", idle: int = 1, refuses: str = ""
    ) -> tuple[str, str, list[str], int]:
        run_dir = tmp_path / f"run-{time.monotonic_ns()}"
        run_dir.mkdir()
        asked = scontrol(*says, refuses=refuses)
        for _ in range(idle):
            attempt = RunAttempt(run_dir, ENV.describe())
            attempt.training_begins(12)
            record = RunStop(ENV, StopReason[stop], run_dir, attempt.number, 12, save_error=fault)
            if attempt.number < idle:
                record.record(Decision.requeue)
        with pytest.raises(Left) as left:
            exit_for_requeue(record)
        calls = [line for line in asked.read_text().splitlines() if "show" not in line]
        asked.unlink()
        event = read_attempts(run_dir)[-1]
        return event["decision"], event.get("cause", ""), calls, left.value.args[0]

    return give


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


def test_the_tests_that_the_page_names_are_there():
    page = Path(REPOSITORY, "docs", "preemption.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in Path(REPOSITORY, "tests", "slurm", file).read_text()


@pytest.mark.parametrize("state", ENDING)
def test_a_job_that_slurm_is_ending_is_never_requeued(state):
    for preempted, warned in product((True, False), repeat=2):
        assert requeue_decision(state, preempted=preempted, warned=warned) is Decision.quit


@pytest.mark.parametrize("stop", ["SIGUSR2", "SIGTERM"])
def test_preemption_and_time_limits_are_no_fault_of_the_run(end_of_a_job, stop):
    assert end_of_a_job(PREEMPTED, stop=stop, idle=7)[0] == "requeue"


def test_a_job_that_could_not_save_three_times_is_held_with_the_reason(end_of_a_job):
    decision, cause, calls, code = end_of_a_job(PREEMPTED, stop="SIGUSR2", fault="full", idle=3)
    assert (decision, code) == ("hold", 75)
    reason = "3 attempts in a row saved nothing after step 12: held; read the log, then"
    assert cause == f"full; {reason} scontrol release 7"
    assert calls == [f"update JobId=7 Comment={reason} scontrol release 7", "requeuehold 7"]
    assert end_of_a_job(PREEMPTED, stop="SIGUSR2", fault="full", idle=2)[0] == "requeue"


def test_a_job_that_may_not_be_requeued_is_left_at_once_with_the_reason(end_of_a_job):
    decision, cause, calls, code = end_of_a_job(RUNNING, stop="SIGUSR2", refuses=REFUSED)
    assert (decision, calls, code) == ("quit", ["requeue 7"], 75)
    assert "presently disabled" in cause


@pytest.mark.parametrize("stop", ["SIGUSR2", "SIGTERM"])
def test_where_only_operators_may_requeue_a_job_waits_for_slurm_to_do_it(end_of_a_job, stop):
    decision, cause, calls, code = end_of_a_job(PREEMPTED, stop=stop, refuses=DENIED)
    assert (decision, calls, code) == ("stay", ["requeue 7"], 75)
    assert "permission denied for job 7; waited for Slurm to requeue it" in cause
    assert cause.endswith("else the same command continues")


@pytest.mark.parametrize(
    ("says", "stop", "decision"),
    [
        ((SIGNALING, PREEMPTED), "SIGTERM", "requeue"),
        ((SIGNALING, "JobState=CANCELLED Restarts=2 PreemptTime=None"), "SIGUSR2", "quit"),
        ((SIGNALING,), "SIGTERM", "stay"),
        ((SIGNALING,), "SIGUSR2", "requeue"),
        # a controller that is away for more than a minute, however often it is asked
        ((*("SILENT",) * 50, PREEMPTED), "SIGTERM", "requeue"),
        # a WorkDir or Comment that is no UTF-8
        ((RUNNING + r" WorkDir=/home/caf\0351",), "SIGUSR2", "requeue"),
    ],
)
def test_slurm_is_asked_until_its_answer_is_clear(end_of_a_job, says, stop, decision):
    assert end_of_a_job(*says, stop=stop)[0] == decision


def test_without_any_answer_the_rank_stays_and_says_why(end_of_a_job, monkeypatch):
    monkeypatch.setattr(requeue, "ASK_S", 0.3)
    decision, cause, calls, _ = end_of_a_job("SILENT", stop="SIGUSR2")
    assert (decision, calls) == ("stay", [])
    assert cause.startswith("Slurm gave no answer")


def test_other_ranks_leave_once_the_decision_is_recorded_and_not_before(
    scontrol, monkeypatch, tmp_path
):
    monkeypatch.setattr(requeue, "end_process", lambda code: left.append(time.monotonic()))
    left: list[float] = []
    RunAttempt(tmp_path, RankEnvironment(Launcher.slurm, "7").describe())  # the start before
    RunStop(RankEnvironment(Launcher.slurm, "7"), StopReason.SIGTERM, tmp_path, 1).record(
        Decision.quit
    )
    attempt = RunAttempt(tmp_path, ENV.describe())
    other = RankEnvironment(Launcher.slurm, "7", restarts=2, rank=1, num_ranks=2)
    waiting = threading.Thread(
        target=exit_for_requeue, args=(RunStop(other, StopReason.SIGTERM, tmp_path),)
    )
    waiting.start()
    main = RunStop(ENV, StopReason.SIGTERM, tmp_path, attempt.number, 12)
    for decision in (Decision.stay, Decision.hold):  # a hold is recorded before it is asked for
        main.record(decision)
        time.sleep(0.5)
        assert left == []
    main.record(Decision.requeue)
    waiting.join(10)
    assert len(left) == 1


def test_ranks_that_wait_leave_when_the_run_has_been_started_again(monkeypatch, tmp_path):
    left = threading.Event()
    monkeypatch.setattr(requeue, "end_process", lambda code: left.set())
    RunAttempt(tmp_path, ENV.describe())
    other = RankEnvironment(Launcher.slurm, "7", restarts=2, rank=1, num_ranks=2)
    threading.Thread(target=exit_for_requeue, args=(RunStop(other, None, tmp_path),)).start()
    assert not left.wait(0.5)
    RunAttempt(tmp_path, RankEnvironment(Launcher.slurm, "7", restarts=3).describe())
    assert left.wait(10)


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_that_was_blocked_from_the_start_lets_the_job_come_back(name):
    script = (
        "import os, signal, sys\n"
        f"os.kill(os.getpid(), signal.{name})\n"
        "from jobs.slurm import requeue\n"
        "from jobs.slurm.environment import Launcher, RankEnvironment\n"
        "requeue.current_rank = lambda: RankEnvironment(Launcher.slurm, '1')\n"
        "requeue.exit_for_requeue = lambda stop: sys.exit(stop.reason.name)\n"
        "with requeue.requeued_if_stopped(): print('began')\n"
    )
    command = ["env", "--block-signal=USR2,TERM", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.stdout, done.stderr) == ("", f"{name}\n")


def test_work_that_is_no_run_asks_to_come_back(monkeypatch):
    left: list[RunStop] = []
    env = RankEnvironment(Launcher.slurm, "1")
    monkeypatch.setattr(requeue, "current_rank", lambda: env)
    monkeypatch.setattr(requeue, "exit_for_requeue", left.append)
    handler = signal.getsignal(signal.SIGTERM)
    with requeue.requeued_if_stopped():
        raise Preempted(None, StopReason.SIGUSR2)
    assert left == [RunStop(env, StopReason.SIGUSR2)]
    assert signal.getsignal(signal.SIGTERM) == handler
