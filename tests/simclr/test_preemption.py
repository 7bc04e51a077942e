"""A signal becomes a reason, in the process that asked for it and nowhere else."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY

from simclr.preemption import Preempted, StopReason, StopSignal


@pytest.mark.parametrize("reason", [StopReason.SIGUSR2, StopReason.SIGTERM])
def test_in_training_a_signal_is_noted_and_survived(reason):
    with StopSignal().deferred() as stop:
        assert not stop.reason
        os.kill(os.getpid(), signal.Signals[reason.name])
        assert stop.reason is reason


def test_a_warning_outranks_a_termination_in_any_order():
    for order in [(signal.SIGUSR2, signal.SIGTERM), (signal.SIGTERM, signal.SIGUSR2)]:
        with StopSignal().deferred() as stop:
            for number in order:
                os.kill(os.getpid(), number)
            assert stop.reason is StopReason.SIGUSR2


def test_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_training_the_first_signal_raises_and_the_second_does_not():
    seen = []
    with StopSignal() as stop:
        try:
            stop.listen()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 0.1)
        except Preempted as event:
            seen.append((event.step, event.reason))
            os.kill(os.getpid(), signal.SIGUSR2)
            signal.sigtimedwait([], 0.1)
        assert stop.reason is StopReason.SIGUSR2
    assert seen == [(None, StopReason.SIGTERM)]


def test_a_signal_before_anybody_listens_raises_where_somebody_does():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        signal.sigtimedwait([], 0.1)
        with pytest.raises(Preempted) as event:
            stop.listen()
    assert event.value.reason is StopReason.SIGUSR2


def test_after_training_signals_raise_again_unless_one_has_come():
    with StopSignal() as stop:
        stop.listen()
        with stop.deferred():
            pass
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
    with StopSignal() as stop:
        stop.listen()
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 0.1)


def test_ctrl_c_means_sigterm_once():
    with StopSignal(ctrl_c=True).deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason is StopReason.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_no_handler_of_exceptions_swallows_the_event():
    assert not issubclass(Preempted, Exception)


def alone(script: str, *wrapper: str) -> str:
    """Run a script in a process without threads, as a rank is when it begins."""
    command = [*wrapper, sys.executable, "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=True, cwd=REPOSITORY
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_that_came_before_the_handler_is_not_lost(name):
    script = f"""
import os, signal
os.kill(os.getpid(), signal.{name})
from simclr.preemption import StopSignal
with StopSignal().deferred() as stop: print(stop.reason.name)
"""
    assert alone(script, "env", "--block-signal=USR2,TERM") == name


def test_a_child_survives_the_signal_and_does_not_ask_for_a_stop():
    script = """
import os, signal
from simclr.preemption import StopSignal
with StopSignal().deferred() as stop:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR2)
        os._exit(int(stop.reason))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.reason.name)
"""
    assert alone(script) == "0 NONE"


def test_the_handlers_are_there_before_torch_is_imported():
    assert alone("import sys, simclr.preemption; print('torch' in sys.modules)") == "False"


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def enter():
        with StopSignal().deferred() as stop:
            seen.append(stop.reason)

    before = signal.getsignal(signal.SIGUSR2)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [StopReason.NONE]
    assert signal.getsignal(signal.SIGUSR2) == before


def test_the_event_tells_step_and_reason():
    assert str(Preempted(12, StopReason.SIGUSR2)) == "asked to stop (SIGUSR2); saved at step 12"
    assert str(Preempted(None, StopReason.SIGTERM)) == "asked to stop (SIGTERM)"


class _StopsWhileAClassIsMade:
    def __set_name__(self, owner: type, name: str) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)


def _make_a_class() -> None:
    class Interrupted:
        field = _StopsWhileAClassIsMade()


def _import_what_swallows_it() -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGUSR2)
    raise ImportError("cannot import name 'nms'")


@pytest.mark.parametrize("work", [_make_a_class, _import_what_swallows_it])
def test_a_stop_that_comes_out_of_an_import_as_another_error_is_known_again(work):
    with StopSignal() as signals:
        signals.listen()
        with pytest.raises(BaseException) as event:  # noqa: PT011 - its kind is Python's
            work()
        stop = signals.stop_behind(event.value)
    assert stop is not None
    assert (stop.step, stop.reason) == (None, StopReason.SIGUSR2)


def test_an_error_without_a_stop_is_the_process_own():
    with StopSignal() as signals:
        signals.listen()
        assert signals.stop_behind(RuntimeError("a damaged shard")) is None
