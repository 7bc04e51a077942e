"""A rank that falls silent is named in time; one that is slow, or leaves, is not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY

from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.heartbeat import (
    OBSERVED_PERIODS,
    TERM_S,
    HeartbeatMonitor,
    describe_rank,
    find_silent_ranks,
    heartbeat_folder,
    line_of_thread,
    period_s,
)

SILENCE_S = 4.0  # more than the three beats within which an ear counts anew

RANK = """
import sys, time
from pathlib import Path
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.heartbeat import HeartbeatMonitor
env = RankEnvironment(Launcher.slurm, "7", rank=int(sys.argv[2]), num_ranks=2, node="node-b")
with HeartbeatMonitor(Path(sys.argv[1]), env, None, 600, print) as monitor:
    monitor.on_step(17)
    print("beating", flush=True)
    sys.stdin.read()
"""


def env_of(rank: int) -> RankEnvironment:
    return RankEnvironment(Launcher.slurm, "7", rank=rank, num_ranks=2, node="node-a")


@pytest.fixture
def peer(tmp_path):
    """Start rank 1 in a process of its own; it beats until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(tmp_path), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"beating\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.fixture
def heard(tmp_path):
    """Watch rank 1 as rank 0, and collect what is said of it."""
    said: list[str] = []
    event = threading.Event()

    def say(words: str) -> None:
        said.append(words)
        event.set()

    with HeartbeatMonitor(tmp_path, env_of(0), None, SILENCE_S, say) as monitor:
        monitor.on_step(17)
        yield said, event


@pytest.mark.slow
def test_a_stopped_rank_is_named_with_node_step_and_env(peer, heard):
    said, event = heard
    time.sleep(2.5)
    assert said == []
    os.kill(peer.pid, signal.SIGSTOP)
    assert event.wait(SILENCE_S + 4)
    # its main thread is in the few lines of this test, which are not project code
    words = (
        r"rank 1 on node-b, 17 steps done, last at a line outside project code, "
        r"has had no heartbeat for [45] s"
    )
    assert re.fullmatch(words, said[0])


@pytest.mark.slow
def test_a_silent_rank_is_not_lost_while_steps_are_made(peer, tmp_path):
    said: list[str] = []
    with HeartbeatMonitor(tmp_path, env_of(0), None, SILENCE_S, said.append) as monitor:
        monitor.on_step(17)
        time.sleep(1.5)
        os.kill(peer.pid, signal.SIGSTOP)  # its file stays as it is, as on a full disk
        for step in range(18, 18 + 2 * int(SILENCE_S)):
            monitor.on_step(step)
            time.sleep(1)
        assert said == []
        time.sleep(SILENCE_S + 3)
    assert len(said) == 1


@pytest.mark.slow
def test_a_rank_that_leaves_in_order_is_not_missed(peer, heard):
    said, event = heard
    time.sleep(1.5)
    peer.stdin.close()
    peer.wait(20)
    assert not event.wait(SILENCE_S + 2)
    assert said == []


def test_nobody_is_missed_before_all_have_met(tmp_path):
    said: list[str] = []
    with HeartbeatMonitor(tmp_path, env_of(0), None, 0.5, said.append):
        time.sleep(2.5)  # it has not reached its first step: others may still be importing
    assert said == []


@pytest.mark.slow
def test_a_rank_that_was_away_itself_begins_to_count_anew(tmp_path, peer):
    watcher = subprocess.Popen(
        [sys.executable, "-c", RANK.replace("600, print", "4, print"), str(tmp_path), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    watcher.stdout.readline()
    time.sleep(2.5)
    for process in (watcher, peer):  # as a suspended job: everybody is away at the same time
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(SILENCE_S + 1)
    for process in (watcher, peer):
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(2.5)
    said, _ = watcher.communicate(timeout=20)
    assert said == b""


@pytest.mark.slow
def test_a_rank_that_is_gone_is_told_from_one_that_is_behind(tmp_path, peer):
    time.sleep(1.5)
    assert find_silent_ranks(tmp_path, env_of(0), 2.5) == ""
    peer.kill()
    peer.wait()
    assert find_silent_ranks(tmp_path, env_of(0), 0.5).startswith("rank 1 on node-b, 17 steps done")


def test_the_rank_that_is_behind_the_others_is_named(tmp_path):
    # of a fourth other rank there is no heartbeat: it may not have begun, and hides nobody
    env = RankEnvironment(Launcher.slurm, "7", rank=0, num_ranks=5)
    folder = heartbeat_folder(tmp_path, env)
    folder.mkdir(parents=True)

    def beat(rank: int, step: int) -> None:
        monitor = {"rank": rank, "node": "n", "step": step, "at": "loader.py:9 (read)"}
        (folder / f"rank-{rank:04d}.json").write_text(json.dumps(monitor | {"beat": time.time()}))

    def live() -> None:
        while not over.wait(0.05):
            for rank, step in ((1, 8), (2, 7), (3, 8)):
                beat(rank, step)

    over = threading.Event()
    ranks = threading.Thread(target=live)
    ranks.start()
    try:
        time.sleep(0.2)
        found = find_silent_ranks(tmp_path, env, 0.5)
    finally:
        over.set()
        ranks.join()
    assert found == "rank 2 on n, 7 steps done, last at loader.py:9 (read)"


@pytest.mark.parametrize("num_ranks", [1, 64, 65, 512, 4096])
def test_two_beats_fit_into_the_observation_and_it_into_the_time_until_a_kill(num_ranks):
    assert period_s(num_ranks) >= 1
    assert OBSERVED_PERIODS >= 2
    assert TERM_S + OBSERVED_PERIODS * period_s(num_ranks) < 30  # KillWait, as Slurm sets it


def test_the_place_of_a_thread_is_a_line_of_our_own_code():
    assert line_of_thread(threading.get_ident()).startswith("heartbeat.py:")
    assert line_of_thread(0) == "a line outside project code"


def test_a_rank_before_its_first_step_is_described_as_such():
    assert describe_rank({"rank": 3, "node": "n", "step": None, "at": "x"}) == (
        "rank 3 on n, before its first step, last at x"
    )
