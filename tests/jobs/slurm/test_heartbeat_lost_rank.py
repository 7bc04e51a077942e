"""Of the ranks that are left when one is lost, one speaks for all; the job comes back, or not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from conftest import REPOSITORY

from jobs.run_dir import RunAttempt, read_attempts
from jobs.slurm import heartbeat
from jobs.slurm.environment import Launcher, RankEnvironment, remove_stale_results
from jobs.slurm.heartbeat import (
    clear_heartbeats,
    elect_reporter,
    lost_rank_cause,
    peer_reported_failure,
    record_failure,
)
from simclr.preemption import DeviceFaultError, LostPeerError, Preempted, StopReason

SPEAKING = """
import sys
from pathlib import Path
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.heartbeat import elect_reporter
env = RankEnvironment(Launcher.slurm, "7", rank=int(sys.argv[2]), num_ranks=6)
print(elect_reporter(Path(sys.argv[1]), env))
"""

ABANDONING = """
import sys
from pathlib import Path
from jobs.run_dir import RunAttempt
from jobs.slurm.environment import RankEnvironment
from jobs.slurm.heartbeat import exit_lost_rank
env = RankEnvironment(num_ranks=2)
RunAttempt(Path(sys.argv[1]), env.describe())
exit_lost_rank(Path(sys.argv[1]), env, "rank 1 is silent")
"""

HANGING = """
import sys, time
from jobs.slurm.environment import RankEnvironment
from jobs.slurm import heartbeat
heartbeat.FOLDER_HANGS_S = 0.2
heartbeat.elect_reporter = lambda *_: time.sleep(60)
heartbeat.exit_lost_rank(None, RankEnvironment(), 'silent', 76)
"""


def env_of(rank: int = 0) -> RankEnvironment:
    return RankEnvironment(Launcher.slurm, "7", rank=rank, num_ranks=6, node="n")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
        check=False,
    )


def test_one_of_many_processes_speaks(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SPEAKING, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for rank in range(6)
    ]
    said = Counter(process.communicate(timeout=60)[0].strip() for process in started)
    assert said == {"True": 1, "False": 5}


def test_each_start_of_a_job_has_a_speaker_of_its_own(tmp_path):
    assert elect_reporter(tmp_path, env_of())
    assert not elect_reporter(tmp_path, env_of(1))
    again = RankEnvironment(Launcher.slurm, "7", restarts=1, num_ranks=6)
    clear_heartbeats(tmp_path, again)
    assert elect_reporter(tmp_path, again)
    assert [folder.name for folder in (tmp_path / "heartbeats").iterdir()] == ["7-1"]


def test_where_nothing_can_be_written_the_main_rank_speaks(tmp_path, caplog):
    (tmp_path / "heartbeats").write_text("no folder")
    assert elect_reporter(tmp_path, env_of(0))
    assert not elect_reporter(tmp_path, env_of(1))
    assert "nothing can be written" in caplog.text


def test_the_loss_of_a_peer_is_seen_behind_what_interrupted_it(tmp_path, monkeypatch):
    def interrupted() -> None:
        try:
            raise LostPeerError("closed by peer")
        finally:
            raise Preempted(None, StopReason.SIGTERM)  # srun ends the ranks that are left

    monkeypatch.setattr(heartbeat.time, "sleep", lambda seconds: None)
    with pytest.raises(Preempted) as event:
        interrupted()
    cause = lost_rank_cause(tmp_path, env_of(), event.value)
    assert cause == "a collective failed, but no rank is silent or behind (closed by peer)"
    assert lost_rank_cause(tmp_path, env_of(), ValueError("its own")) == ""


def test_a_fault_of_a_gpu_names_the_node_to_leave_out(tmp_path):
    cause = lost_rank_cause(tmp_path, env_of(2), DeviceFaultError("uncorrectable ECC error"))
    assert cause.startswith("the GPU of rank 2 on n has failed: uncorrectable ECC error; ")
    assert cause.endswith("cluster.exclude=n")


def test_the_first_rank_to_fail_is_the_one_that_is_noted(tmp_path):
    RunAttempt(tmp_path, env_of().describe())
    assert not peer_reported_failure(tmp_path, env_of())
    record_failure(tmp_path, env_of(3), ValueError("a bad shard"))
    record_failure(tmp_path, env_of(0), RuntimeError("closed by peer"))
    failed = [event["error"] for event in read_attempts(tmp_path) if event["event"] == "failed"]
    assert failed == ["rank 3 on n: ValueError: a bad shard"]
    assert peer_reported_failure(tmp_path, env_of())


def test_outside_slurm_the_cause_is_noted_and_the_process_fails(tmp_path):
    done = run(ABANDONING, str(tmp_path))
    assert done.returncode == 1
    assert "rank 1 is silent" in done.stderr
    assert read_attempts(tmp_path)[-1]["error"] == "rank 1 is silent"


def test_a_process_ends_even_if_the_run_folder_hangs():
    assert run(HANGING).returncode == 76


def test_results_of_an_earlier_start_are_forgotten_whole_or_half(tmp_path):
    env = RankEnvironment(Launcher.slurm, "70_6", rank=1, log=str(tmp_path / "70_6_0_log.err"))
    gone = ("70_6_1_result.pkl", "70_6_1_result.pkl.save_tmp")
    kept = ("70_6_0_result.pkl", "70_1_result.pkl", "70_6_submitted.pkl")
    for name in (*gone, *kept):
        (tmp_path / name).write_text("")
    remove_stale_results(env)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
