"""How ranks find each other: by torchrun's variables, or at a port that may be another's."""

import socket
from dataclasses import replace

import pytest
import torch
from rank_jobs import agreed_value, joined_twice
from ranks import CPU, results_of, run_ranks, start_ranks

from simclr import rendezvous
from simclr.distributed import distributed_context
from simclr.preemption import LostPeerError
from simclr.rendezvous import Rendezvous, rendezvous_from_environment

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture
def bare_environment(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_the_world_is_this_process(bare_environment):
    assert rendezvous_from_environment() == Rendezvous()


def test_torchruns_variables_are_understood(bare_environment):
    for name, value in TORCHRUN.items():
        bare_environment.setenv(name, value)
    assert rendezvous_from_environment() == Rendezvous(3, 1, 8, 2, "env://")


def test_half_a_launch_is_refused_instead_of_training_alone(bare_environment):
    bare_environment.setenv("RANK", "0")
    with pytest.raises(ValueError, match="RANK set but WORLD_SIZE, LOCAL_RANK"):
        rendezvous_from_environment()


def meeting(port, world_size=2):
    return [
        Rendezvous(rank, rank, world_size, world_size, f"tcp://127.0.0.1:{port}", token="7-0")
        for rank in range(world_size)
    ]


@pytest.fixture
def port():
    """Return the first of some free ports in a row."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met(tmp_path, rendezvous):
    started = start_ranks(agreed_value, 2, tmp_path, among=rendezvous)
    return results_of(started)


def test_a_port_that_another_program_listens_at_is_passed_over(tmp_path, port):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        assert met(tmp_path, meeting(port)) == [1, 1]


def test_a_port_of_another_run_is_passed_over(tmp_path, port):
    other = torch.distributed.TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False)
    other.set("run", "6-0")
    assert met(tmp_path, meeting(port)) == [1, 1]


def test_a_second_process_group_does_not_read_what_the_first_left_with_torchrun(tmp_path, port):
    agent = torch.distributed.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    assert run_ranks(joined_twice, 2, tmp_path, agent.port) == [[1, 1], [1, 1]]


def test_ranks_that_were_never_started_are_waited_for_aloud(port, monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "PATIENCE_S", 0.5)
    with (
        pytest.raises(LostPeerError, match="timed out: 1 of 2 ranks have started"),
        distributed_context(replace(CPU, timeout_s=2), meeting(port)[0]),
    ):
        pass
    assert "waiting for ranks: 1 of 2 have started" in caplog.text
