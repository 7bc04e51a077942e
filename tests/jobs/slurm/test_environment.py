"""A process finds its place from the variables of whoever started it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.slurm import client as slurm
from jobs.slurm import environment
from jobs.slurm.environment import (
    RANK_0_DONE,
    Launcher,
    current_rank,
    expand_counts,
    mark_rank_0_done,
    port_of,
    rendezvous_of,
)

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
}


def test_a_process_that_a_person_started_is_here():
    env = current_rank({})
    assert env.launcher is Launcher.here
    assert env.is_main
    assert rendezvous_of(env, "token") is None


def test_a_second_process_of_torchrun_is_not_the_main_one():
    assert not current_rank({"RANK": "1", "WORLD_SIZE": "2"}).is_main


def test_a_batch_script_is_no_rank():
    script = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    assert current_rank(script).launcher is Launcher.here


def test_a_task_of_a_step_knows_its_ranks():
    env = current_rank(STEP)
    assert (env.launcher, env.rank, env.local_rank) == (Launcher.slurm, 3, 1)
    assert (env.num_ranks, env.ranks_on_node, env.restarts) == (4, 2, 0)


def test_a_member_of_an_array_is_named_by_it_and_knows_its_part():
    array = {
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "6",
        "SLURM_ARRAY_TASK_MAX": "6",
        "SLURM_RESTART_COUNT": "2",
    }
    env = current_rank({**STEP, **array})
    assert (env.job_id, env.array_index, env.array_size) == ("70_6", 6, 7)
    assert env.restarts == 2


def test_ranks_of_submitit_meet_in_a_file_of_their_own():
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "5",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_FOLDER": "/runs/a b/slurm",
    }
    env = current_rank(local)
    assert env.log == "/runs/a b/slurm/5_0_log.err"
    launch = rendezvous_of(env, "token")
    assert launch is not None
    assert (launch.rank, launch.world_size) == (1, 2)
    assert launch.init_method.startswith("file:///")
    assert launch.init_method.endswith("simclr-token")


def test_ranks_of_slurm_meet_on_the_first_node_at_the_port_of_the_attempt(monkeypatch):
    monkeypatch.setattr(slurm, "host_names", lambda nodes: ["127.0.0.1", "127.0.0.2"])
    launch = rendezvous_of(current_rank(STEP), "token")
    assert launch is not None
    assert launch.init_method == f"tcp://127.0.0.1:{port_of('77', 0)}"


def test_a_node_without_a_name_is_met_at_the_address_that_slurm_uses(monkeypatch):
    def fails(*_: object) -> None:
        raise environment.socket.gaierror

    monkeypatch.setattr(environment.socket, "getaddrinfo", fails)
    monkeypatch.setattr(slurm, "host_names", lambda nodes: ["node-7"])
    monkeypatch.setattr(slurm, "node_address", lambda name: f"address-of-{name}")
    launch = rendezvous_of(current_rank(STEP), "token")
    assert launch is not None
    assert launch.init_method.startswith("tcp://address-of-node-7:")


@given(st.integers(1, 10**9), st.integers(0, 500))
def test_an_attempt_never_meets_at_the_port_of_the_one_before(job, restarts):
    assert port_of(str(job), restarts) != port_of(str(job), restarts + 1)
    assert 15000 <= port_of(str(job), restarts) < 32768


def test_neighbouring_jobs_do_not_share_ports():
    ports = {port_of(str(job), attempt) for job in range(10) for attempt in range(20)}
    assert len(ports) == 200


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1))
def test_counts_are_expanded(runs):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert expand_counts(text) == [count for count, times in runs for _ in range(times)]


@pytest.mark.parametrize("text", ["x", "2(x"])
def test_counts_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="invalid literal"):
        expand_counts(text + "y")


@pytest.mark.parametrize(
    ("changes", "marks"),
    [
        ({"SLURM_PROCID": "0"}, True),
        ({}, False),  # rank 3
        # a process of this machine, started inside a step
        (
            {
                "SUBMITIT_EXECUTOR": "local",
                "SUBMITIT_LOCAL_JOB_ID": "5",
                "SUBMITIT_LOCAL_GLOBALID": "0",
                "SUBMITIT_LOCAL_NTASKS": "1",
            },
            False,
        ),
    ],
)
def test_only_rank_0_of_a_step_tells_the_batch_script_that_it_is_done(
    monkeypatch, tmp_path, changes, marks
):
    path = tmp_path / "7.done"
    for name, value in {**STEP, **changes, RANK_0_DONE: str(path)}.items():
        monkeypatch.setenv(name, value)
    mark_rank_0_done()
    assert path.exists() is marks


def test_a_mark_that_cannot_be_written_only_warns(monkeypatch, tmp_path, caplog):
    for name, value in {**STEP, "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(RANK_0_DONE, str(tmp_path / "nowhere" / "7.done"))
    mark_rank_0_done()
    assert "7.done cannot be written" in caplog.text
