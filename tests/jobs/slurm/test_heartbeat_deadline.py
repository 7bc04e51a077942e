"""A process that does not stop in time is ended, whatever its main thread hangs in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from jobs.slurm.heartbeat import DEADLINE_EXCEEDED, save_deadline

# A main thread in a system call that the kernel starts again after a signal, as a write to a hung
# disk is: Python's own handler does not run before it returns.
HANGING = """
import ctypes, os, signal, sys
from jobs.slurm.heartbeat import DEADLINE_EXCEEDED, save_deadline
def late(words):
    print(words, flush=True)
    os._exit(DEADLINE_EXCEEDED)
signal.signal(signal.SIGUSR2, lambda *_: print("handled", flush=True))
signal.siginterrupt(signal.SIGUSR2, False)
with save_deadline(0.5, late):
    print("hanging", flush=True)
    reader, writer = os.pipe()
    ctypes.CDLL(None).read(reader, ctypes.create_string_buffer(1), 1)
"""


def test_a_save_that_hangs_is_ended_and_the_line_is_named():
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout.readline() == "hanging\n"
    time.sleep(0.3)
    start = time.monotonic()
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == DEADLINE_EXCEEDED
    assert 0.4 < time.monotonic() - start < 10
    assert said.startswith("not stopped 0 s after the signal: at ")
    assert "handled" not in said


@pytest.fixture
def told():
    """Let both stop signals through to a handler that does nothing."""
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
    former = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def test_a_stop_in_time_is_left_alone(told):
    late: list[str] = []
    with save_deadline(0.3, late.append):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    assert late == []


def test_without_a_stop_no_clock_runs(told):
    late: list[str] = []
    with save_deadline(0.1, late.append):
        os.kill(os.getpid(), signal.SIGCONT)
        time.sleep(0.5)
    assert late == []


def test_the_first_of_two_signals_counts(told):
    late: list[float] = []
    start = time.monotonic()
    with save_deadline(0.6, lambda words: late.append(time.monotonic() - start)):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
    assert 0.5 < late[0] < 0.9


def test_what_listened_before_listens_again():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer)
    with save_deadline(1, print):
        pass
    assert signal.set_wakeup_fd(former) == writer
    os.close(reader)
    os.close(writer)
