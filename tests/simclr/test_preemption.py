"""A signal becomes a flag, in the process that asked for it and nowhere else."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY

from simclr.preemption import Preempted, PreemptionGuard, StopReason


@pytest.mark.parametrize(
    ("number", "stop"), [(signal.SIGUSR2, StopReason.SIGUSR2), (signal.SIGTERM, StopReason.SIGTERM)]
)
def test_a_signal_is_noted_and_survived(number, stop):
    with PreemptionGuard() as guard:
        assert not guard.requested
        os.kill(os.getpid(), number)
        assert guard.requested is stop


def test_a_warning_outranks_a_termination_in_any_order():
    for order in [(signal.SIGUSR2, signal.SIGTERM), (signal.SIGTERM, signal.SIGUSR2)]:
        with PreemptionGuard() as guard:
            for number in order:
                os.kill(os.getpid(), number)
            assert guard.requested is StopReason.SIGUSR2


def test_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionGuard():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def alone(script: str, *wrapper: str) -> str:
    """Run a script in a process without threads, as a rank is when its guard begins."""
    command = [*wrapper, sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("name", "told"), [("SIGUSR2", "SIGUSR2"), ("SIGTERM", "SIGTERM")])
def test_a_signal_that_came_before_the_handler_is_not_lost(name, told):
    script = f"""
import os, signal
os.kill(os.getpid(), signal.{name})
from simclr.preemption import PreemptionGuard
with PreemptionGuard() as guard: print(guard.requested.name)
"""
    assert alone(script, "env", "--block-signal=USR2,TERM") == told


def test_a_child_survives_the_signal_and_does_not_ask_for_a_stop():
    script = """
import os, signal
from simclr.preemption import PreemptionGuard
with PreemptionGuard() as guard:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(int(guard.requested))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), guard.requested.name)
"""
    assert alone(script) == "0 NONE"


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def enter():
        with PreemptionGuard() as guard:
            seen.append(guard.requested)

    before = signal.getsignal(signal.SIGUSR2)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [StopReason.NONE]
    assert signal.getsignal(signal.SIGUSR2) == before


def test_the_event_tells_step_and_reason():
    assert str(Preempted(12, StopReason.SIGUSR2)) == "asked to stop (SIGUSR2); saved at step 12"
