"""Everything that Slurm and machines do to a training: it ends as if nothing had happened.

What is announced costs no step; what is not costs the steps since the last checkpoint, which are
taken again. Preemption with and without grace, and scancel, are in ``test_pretraining``.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path

import pytest
from slurm.cluster import NODES, running_cluster, wait_until
from slurm.runs import (
    STEPS,
    Run,
    assert_finished_like,
    preempt,
    submit,
    verb,
    wait_for_step,
)

EVERY = 4  # steps between checkpoints
KEEPING = f"checkpoint.every_steps={EVERY}"

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def lost_steps(run) -> int:
    """Return how many steps the run had to take again, as it says itself."""
    return sum(event["lost_steps"] for event in run.events("training"))


def test_a_killed_and_a_stopped_rank_are_named_and_the_run_comes_back(
    cluster, shards, unbroken, tmp_path
):
    timeout_s = 60  # of a collective; a rank is taken for hung after half of it
    run = submit(cluster, shards, tmp_path / "run", KEEPING, f"world.timeout_s={timeout_s}")
    wait_for_step(cluster, run, EVERY + 1)
    os.kill(run.pid(2), signal.SIGKILL)
    wait_until(lambda: len(run.events("training")) == 2, "the next attempt", 120, run.log)
    killed_at = run.events("stop")[0]["step"]
    wait_for_step(cluster, run, killed_at + EVERY + 1)
    os.kill(run.pid(3), signal.SIGSTOP)
    wait_until(lambda: len(run.events("stop")) == 2, "the stopped rank to be found", 60, run.log)
    assert_finished_like(cluster, run, unbroken, restarts=2)
    killed, stopped = run.events("stop")
    assert {(s["signal"], s["decision"]) for s in (killed, stopped)} == {("lost", "requeue")}
    assert killed["cause"].startswith("lost rank 2 on 127.0.0.")
    assert stopped["cause"].startswith("rank 3 on 127.0.0.2, ")
    assert all(event["lost_steps"] <= EVERY for event in run.events("training"))
    status = verb("status", str(run.folder), cluster=cluster)
    assert "lost rank 2 on 127.0.0." in status.stdout


@pytest.mark.exhaustive
def test_a_killed_main_rank_is_spoken_for_by_another(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run", KEEPING)
    wait_for_step(cluster, run, EVERY + 1)
    os.kill(run.pid(0), signal.SIGKILL)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    (stop,) = run.events("stop")
    assert stop["cause"].startswith("lost rank 0 on 127.0.0.")


@pytest.mark.exhaustive
def test_a_rank_that_fails_by_itself_fails_the_job_with_its_words(cluster, shards, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 2)
    os.kill(run.pid(1), signal.SIGINT)  # raises in this rank, and in no other
    fields = cluster.wait_for(run.job_id, "FAILED", "COMPLETED", timeout_s=60)
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0"), run.log()
    (failed,) = run.events("failed")
    assert failed["error"].startswith("rank 1 on 127.0.0.1: KeyboardInterrupt")


@pytest.mark.exhaustive
def test_a_requeue_by_hand_is_followed_and_not_doubled(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 3)
    results = [run.folder / "slurm" / f"{run.job_id}_{rank}_result.pkl" for rank in range(4)]
    results[1].write_bytes(pickle.dumps(("error", "of an earlier attempt")))
    results[2].with_suffix(".pkl.save_tmp").write_bytes(b"half")  # submitit would stumble over it
    cluster.run("scontrol", "requeue", run.job_id)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert [pickle.loads(path.read_bytes())[0] for path in results] == ["success"] * 4
    assert [stop["decision"] for stop in run.events("stop")] == ["quit"]
    assert lost_steps(run) == 0


@pytest.mark.exhaustive
def test_a_job_whose_attempts_came_to_nothing_is_held_until_a_person_releases_it(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", "+cluster.extra.begin=now+1hour")
    with (run.folder / "attempts.jsonl").open("a") as file:
        for number in (1, 2):  # each lost a rank before it came to train
            event = {"attempt": number, "time": 0.0, "job_id": run.job_id, "restarts": number - 1}
            file.write(json.dumps(event | {"event": "start", "host": "", "pid": 0}) + "\n")
            lost = {"event": "stop", "signal": "lost", "decision": "requeue", "step": 0}
            file.write(json.dumps(event | lost) + "\n")
    cluster.run("scontrol", "update", f"JobId={run.job_id}", "StartTime=now")
    wait_for_step(cluster, run, 1)
    os.kill(run.pid(2), signal.SIGKILL)
    wait_until(lambda: len(run.events("stop")) == 3, "the third attempt to hold", 60, run.log)
    wait_until(lambda: cluster.state(run.job_id)["JobState"] == "PENDING", "the hold", 60)
    fields = cluster.run("scontrol", "show", "job", run.job_id)
    assert "Reason=job_requeued_in_held_state" in fields, fields
    assert "Comment=3 attempts in a row saved nothing after step 0: held; read the log" in fields
    status = verb("status", str(run.folder), cluster=cluster)
    assert status.returncode == 1
    assert "held" in status.stdout
    cluster.run("scontrol", "release", run.job_id)
    assert_finished_like(cluster, run, unbroken, restarts=1)


@pytest.mark.exhaustive
def test_a_node_that_goes_down_gives_the_run_back(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run")
    wait_for_step(cluster, run, 3)
    cluster.run("scontrol", "update", f"NodeName={NODES[0]}", "State=DOWN", "Reason=test")
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert lost_steps(run) == 0
    cluster.wait_for_idle_nodes()  # its daemon lives and has reported it back


@pytest.mark.exhaustive
def test_ranks_on_a_lost_node_cannot_publish_beside_their_successors(
    cluster, shards, unbroken, tmp_path
):
    run = submit(cluster, shards, tmp_path / "run", KEEPING)
    wait_for_step(cluster, run, 2)
    left_behind = [run.pid(rank) for rank in range(4)]
    for pid in left_behind:  # so that they are still there when their successors begin
        os.kill(pid, signal.SIGSTOP)
    for node in NODES[:2]:
        cluster.lose_node(node)
    wait_until(lambda: len(run.events("training")) == 2, "the next attempt", 150, run.log)
    for pid in left_behind:
        os.kill(pid, signal.SIGCONT)
    assert_finished_like(cluster, run, unbroken, restarts=1)
    assert [event["attempt"] for event in run.events("finished")] == [2]
    wait_until(lambda: not any(map(is_alive, left_behind)), "the former ranks to end", 90)
    for node in NODES[:2]:
        cluster.start_node(node)
    cluster.wait_for_idle_nodes()


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.exhaustive
def test_after_a_cancelled_step_the_same_command_goes_on(cluster, shards, unbroken, tmp_path):
    run = submit(cluster, shards, tmp_path / "run", KEEPING)
    wait_for_step(cluster, run, EVERY + 1)
    cluster.run("scancel", f"{run.job_id}.0")  # Slurm kills steps without a word
    fields = cluster.wait_for(run.job_id, "FAILED", "CANCELLED", "COMPLETED", timeout_s=60)
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0")
    again = submit(cluster, shards, run.folder, KEEPING)
    assert_finished_like(cluster, again, unbroken, restarts=0)
    assert lost_steps(run) <= EVERY


@pytest.mark.exhaustive
def test_a_time_limit_costs_no_step(cluster, shards, tmp_path):
    # as long as the reference shares the cores, this is more than fits into two minutes
    longer = ("max_steps=400", "log_every_steps=10")
    reference = submit(cluster, shards, tmp_path / "reference", *longer)
    limits = ("cluster.time_min=2", "cluster.signal_delay_s=50")
    run = submit(cluster, shards, tmp_path / "run", *longer, *limits)
    wait_until(lambda: bool(run.events("stop")), "the limit", 150, run.log)
    cluster.run("scontrol", "update", f"JobId={run.job_id}", "TimeLimit=30")
    cluster.wait_for(reference.job_id, "COMPLETED", "FAILED", timeout_s=400)
    assert_finished_like(cluster, run, reference, restarts=1)
    (stop,) = run.events("stop")
    assert (stop["signal"], stop["decision"]) == ("SIGUSR2", "requeue")
    assert lost_steps(run) == 0


@pytest.fixture(scope="module")
def plain_cluster(slurm_is_here):
    """Start a cluster that neither warns of preemption nor requeues what does not ask for it."""
    with running_cluster(requeue=False, user_signal=False) as cluster:
        yield cluster


@pytest.mark.exhaustive
def test_preemption_without_a_warning_is_understood_from_slurms_word(
    plain_cluster, shards, unbroken, tmp_path
):
    run = submit(plain_cluster, shards, tmp_path / "run")
    wait_for_step(plain_cluster, run, 3)
    preempt(plain_cluster)
    assert_finished_like(plain_cluster, run, unbroken, restarts=1)
    (stop,) = run.events("stop")
    assert (stop["signal"], stop["decision"]) == ("SIGTERM", "requeue")
    assert lost_steps(run) == 0


@pytest.mark.exhaustive
def test_a_job_that_may_not_be_requeued_saves_and_leaves_at_once(
    plain_cluster, shards, unbroken, tmp_path
):
    run = submit(plain_cluster, shards, tmp_path / "run", "cluster.requeue=false")
    wait_for_step(plain_cluster, run, 3)
    high = preempt(plain_cluster)
    start = time.monotonic()
    plain_cluster.wait_for(high, "COMPLETED", timeout_s=30)
    assert time.monotonic() - start < 20  # the grace
    (stop,) = run.events("stop")
    again = submit(plain_cluster, shards, run.folder)
    assert_finished_like(plain_cluster, again, unbroken, restarts=0)
    assert Run(run.folder, again.job_id).events("training")[-1]["first_step"] == stop["step"]
    assert run.step() == STEPS
