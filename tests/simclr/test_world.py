"""Who is in the world, and what they agree on."""

import os
from dataclasses import replace

import pytest
import torch
from rank_jobs import agreed_value
from ranks import CPU, run_ranks

from simclr.distributed import Rendezvous, distributed_context, rendezvous_from_environment
from simclr.preemption import DeviceFaultError, LostPeerError

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
    with distributed_context(CPU) as context:
        assert (context.rank, context.size, context.is_main) == (0, 1, True)
        assert context.all_reduce_max(5) == 5


@pytest.mark.parametrize(
    ("openmp", "cores", "wanted", "threads"),
    [
        ("", 0, 0, "all"),  # of those that this process may use
        ("", 1, 0, 1),  # a scheduler that does not bind processes only says what they were given
        ("1", 2, 0, 1),
        ("nonsense", 1, 0, 1),
        ("1", 1, 3, 3),  # world.threads_per_rank is the last word
    ],
)
def test_threads_follow_what_a_process_was_given(bare_environment, openmp, cores, wanted, threads):
    bare_environment.setenv("OMP_NUM_THREADS", openmp)
    before = torch.get_num_threads()
    try:
        with distributed_context(replace(CPU, threads_per_rank=wanted), Rendezvous(cores=cores)):
            every = len(os.sched_getaffinity(0))
            assert torch.get_num_threads() == (every if threads == "all" else threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[gloo] Connection closed by peer [127.0.0.1]:1", LostPeerError),
        (
            "NCCL error: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1",
            ValueError,
        ),
        ("NCCL error: invalid usage (run with NCCL_DEBUG=WARN), by peer", RuntimeError),
        ("CUDA error: the launch timed out and was terminated", DeviceFaultError),
        ("CUDA error: uncorrectable ECC error encountered", DeviceFaultError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ],
)
def test_errors_are_a_lost_peer_a_device_fault_or_misuse(tmp_path, monkeypatch, text, kind):
    rendezvous = Rendezvous(world_size=2, init_method=f"file://{tmp_path}/meeting")
    monkeypatch.setattr("simclr.distributed._join", lambda *_: None)
    monkeypatch.setattr("simclr.distributed._abort", lambda: None)
    with pytest.raises((RuntimeError, ValueError)) as event, distributed_context(CPU, rendezvous):
        raise RuntimeError(text)
    assert type(event.value) is kind


def test_torchruns_variables_are_understood(bare_environment):
    for name, value in TORCHRUN.items():
        bare_environment.setenv(name, value)
    assert rendezvous_from_environment() == Rendezvous(3, 1, 8, 2, "env://")


def test_half_a_launch_is_refused_instead_of_training_alone(bare_environment):
    bare_environment.setenv("RANK", "0")
    with pytest.raises(ValueError, match="RANK set but WORLD_SIZE, LOCAL_RANK"):
        rendezvous_from_environment()


def test_all_ranks_agree_on_the_largest_value(tmp_path):
    assert run_ranks(agreed_value, 3, tmp_path) == [2, 2, 2]
