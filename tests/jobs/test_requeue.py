"""How an attempt ends follows from Slurm's word, never from the signal alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import product

import pytest

from jobs.slurm import client as slurm
from jobs.slurm import preemption as requeue
from jobs.slurm.client import JobState
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.preemption import Decision, Interrupted, decide, interruptible, settle
from simclr.preemption import StopReason

ENDING = ("COMPLETING", "PENDING", "CANCELLED", "FAILED", "NODE_FAIL", "A_STATE_TO_COME")


@pytest.mark.parametrize("state", ENDING)
def test_a_job_that_slurm_is_ending_is_never_requeued(state):
    for preempted, warned in product((True, False), repeat=2):
        assert decide(state, preempted=preempted, warned=warned) is Decision.quit


@pytest.mark.parametrize("warned", [True, False])
def test_a_running_job_that_is_preempted_asks_to_come_back(warned):
    assert decide("RUNNING", preempted=True, warned=warned) is Decision.requeue


def test_a_warning_without_preemption_is_the_time_limit():
    assert decide("RUNNING", preempted=False, warned=True) is Decision.requeue


def test_a_sigterm_that_nobody_explains_is_sat_out():
    assert decide("RUNNING", preempted=False, warned=False) is Decision.stay


@pytest.fixture
def answers(monkeypatch):
    """Let scontrol give these answers, one after the other; the last one for ever."""

    def give(*states: JobState | slurm.SlurmError) -> list[str]:
        asked: list[str] = []

        def show_job(job_id: str) -> JobState:
            answer = states[min(len(asked), len(states) - 1)]
            asked.append(job_id)
            if isinstance(answer, slurm.SlurmError):
                raise answer
            return answer

        monkeypatch.setattr(slurm, "show_job", show_job)
        return asked

    return give


def test_signaling_is_asked_again(answers):
    asked = answers(JobState("1", "SIGNALING"), JobState("1", "RUNNING", preempted=True))
    assert (
        settle(RankEnvironment(Launcher.slurm, "1"), StopReason.SIGTERM, sleep=lambda seconds: None)
        is Decision.requeue
    )
    assert len(asked) == 2


def test_a_job_that_stays_signaling_counts_as_running(answers):
    answers(JobState("1", "SIGNALING"))
    waited: list[float] = []
    assert (
        settle(RankEnvironment(Launcher.slurm, "1"), StopReason.SIGUSR2, sleep=waited.append)
        is Decision.requeue
    )
    assert 2.9 <= sum(waited) <= 3.3


def test_one_silence_of_the_controller_is_overheard(answers):
    answers(slurm.SlurmError("no answer"), JobState("1", "COMPLETING"))
    assert (
        settle(RankEnvironment(Launcher.slurm, "1"), StopReason.SIGUSR2, sleep=lambda seconds: None)
        is Decision.quit
    )


def test_without_any_answer_the_rank_stays(answers):
    asked = answers(slurm.SlurmError("no answer"))
    assert (
        settle(RankEnvironment(Launcher.slurm, "1"), StopReason.SIGUSR2, sleep=lambda seconds: None)
        is Decision.stay
    )
    assert len(asked) == requeue.RETRIES


class Record:
    """A stop record in memory."""

    def __init__(self, idle: int = 1, decision: Decision | None = None) -> None:
        self.idle, self.told = idle, decision

    step = 12

    def idle_attempts(self) -> int:
        return self.idle

    def decided(self, decision: Decision, reason: str = "") -> None:
        self.told, self.reason = decision, reason

    def decision(self) -> Decision | None:
        return self.told


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def leaving(monkeypatch):
    """Return a function that leaves, without ending this process; it returns the exit code."""

    def ended(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(requeue.logging, "shutdown", lambda: None)
    monkeypatch.setattr(requeue, "STAY_S", 0.0)
    monkeypatch.setattr(requeue, "WAIT_S", 0.3)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}

    def leave(rank: int, stop: StopReason, record: Record) -> int:
        with pytest.raises(Left) as left:
            requeue.leave(
                RankEnvironment(Launcher.slurm, "1", rank=rank, num_ranks=2), stop, record
            )
        return left.value.args[0]

    yield leave
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_main_rank_requeues_and_tells_the_others(leaving, answers, monkeypatch):
    answers(JobState("1", "RUNNING"))
    requeued: list[str] = []
    monkeypatch.setattr(slurm, "requeue", lambda job_id: requeued.append(job_id) or True)
    record = Record()
    assert leaving(0, StopReason.SIGUSR2, record) == 75
    assert requeued == ["1"]
    assert record.told is Decision.requeue


def test_a_cancelled_job_is_left_without_a_requeue(leaving, answers, monkeypatch):
    answers(JobState("1", "COMPLETING"))
    monkeypatch.setattr(slurm, "requeue", lambda job_id: pytest.fail("it would come back to life"))
    record = Record()
    assert leaving(0, StopReason.SIGTERM, record) == 75
    assert record.told is Decision.quit


def test_three_attempts_without_progress_hold_the_job_with_a_reason(leaving, answers, monkeypatch):
    answers(JobState("1", "RUNNING", preempted=True))
    monkeypatch.setattr(slurm, "requeue", lambda job_id: pytest.fail("it would end there again"))
    held: list[tuple[str, str]] = []
    monkeypatch.setattr(slurm, "hold", lambda job_id, reason: held.append((job_id, reason)))
    record = Record(idle=3)
    leaving(0, StopReason.SIGUSR2, record)
    assert record.told is Decision.hold
    assert held == [("1", record.reason)]
    assert "3 attempts in a row saved nothing after step 12" in record.reason


def test_a_rank_that_was_left_behind_does_not_end_its_successor(leaving, answers, monkeypatch):
    answers(JobState("1", "RUNNING", restarts=1))
    monkeypatch.setattr(slurm, "requeue", lambda job_id: pytest.fail("the successor runs"))
    record = Record()
    leaving(0, StopReason.SIGUSR2, record)
    assert record.told is Decision.quit


def test_a_job_that_may_not_be_requeued_is_left_at_once(leaving, answers, monkeypatch):
    def refuse(job_id: str) -> bool:
        raise slurm.RefusedError("Requested operation is presently disabled")

    answers(JobState("1", "RUNNING", preempted=True))
    monkeypatch.setattr(slurm, "requeue", refuse)
    record = Record()
    leaving(0, StopReason.SIGUSR2, record)
    assert record.told is Decision.quit


def test_a_refused_requeue_lets_the_rank_stay(leaving, answers, monkeypatch):
    def refuse(job_id: str) -> bool:
        raise slurm.SlurmError("refused")

    answers(JobState("1", "RUNNING", preempted=True))
    monkeypatch.setattr(slurm, "requeue", refuse)
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: None)
    record = Record()
    leaving(0, StopReason.SIGUSR2, record)
    assert record.told is Decision.stay


def test_another_rank_leaves_once_the_main_one_has_decided(leaving, monkeypatch):
    monkeypatch.setattr(requeue, "WAIT_S", 60.0)
    assert leaving(1, StopReason.SIGUSR2, Record(decision=Decision.requeue)) == 75


def test_another_rank_waits_bounded_for_a_main_one_that_never_decides(leaving):
    assert leaving(1, StopReason.SIGUSR2, Record()) == 75


def test_the_first_signal_interrupts_and_the_second_does_not():
    seen = []
    with interruptible() as listen:
        try:
            listen()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 0.1)
        except Interrupted as event:
            seen.append(event.stop)
            os.kill(os.getpid(), signal.SIGUSR2)
            signal.sigtimedwait([], 0.1)
    assert seen == [StopReason.SIGTERM]


def test_a_signal_before_anybody_listens_is_raised_where_somebody_does():
    with interruptible() as listen:
        os.kill(os.getpid(), signal.SIGUSR2)
        signal.sigtimedwait([], 0.1)
        with pytest.raises(Interrupted) as event:
            listen()
    assert event.value.stop is StopReason.SIGUSR2


@pytest.mark.parametrize(("name", "told"), [("SIGUSR2", "SIGUSR2"), ("SIGTERM", "SIGTERM")])
def test_a_signal_that_was_blocked_from_the_start_lets_the_job_come_back(name, told):
    script = (
        "import os, signal, sys\n"
        f"os.kill(os.getpid(), signal.{name})\n"
        "from jobs.slurm import preemption as requeue\n"
        "from jobs.slurm.environment import Launcher, RankEnvironment\n"
        "requeue.current_rank = lambda: RankEnvironment(Launcher.slurm, '1')\n"
        "requeue.leave = lambda env, stop: sys.exit(stop.name)\n"
        "with requeue.requeued_if_stopped(): print('began')\n"
    )
    command = ["env", "--block-signal=USR2,TERM", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", f"{told}\n")
