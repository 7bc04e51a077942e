"""Who is in the world, and what they agree on."""

import os
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from rank_jobs import agreed_reasons, agreed_value
from ranks import CPU, run_ranks

from simclr.checkpoint.manager import CheckpointError
from simclr.distributed import StopAgreement, distributed_context, refuse_shared_gpus
from simclr.preemption import DeviceFaultError, LostPeerError
from simclr.rendezvous import Rendezvous

CPU_SHARED = replace(CPU, threads_per_rank=0)


def test_a_single_rank_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
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
def test_threads_follow_what_a_process_was_given(monkeypatch, openmp, cores, wanted, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
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
    monkeypatch.setattr("simclr.distributed.join_process_group", lambda *_: None)
    monkeypatch.setattr("simclr.distributed._abort", lambda: None)
    with pytest.raises((RuntimeError, ValueError)) as event, distributed_context(CPU, rendezvous):
        raise RuntimeError(text)
    assert type(event.value) is kind


def test_a_save_that_timed_out_is_no_lost_rank(tmp_path, monkeypatch):
    rendezvous = Rendezvous(world_size=2, init_method=f"file://{tmp_path}/meeting")
    monkeypatch.setattr("simclr.distributed.join_process_group", lambda *_: None)
    monkeypatch.setattr("simclr.distributed._abort", lambda: None)
    failure = CheckpointError("step 9 could not be saved in /oxide: Connection timed out")
    with pytest.raises(CheckpointError) as event, distributed_context(CPU, rendezvous):
        raise failure
    assert event.value is failure


def test_a_rank_that_is_bound_to_its_cores_uses_them_all(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 5})
    before = torch.get_num_threads()
    try:
        with distributed_context(CPU_SHARED, Rendezvous(local_world_size=2, cores=2)):
            assert torch.get_num_threads() == 2
        with distributed_context(CPU_SHARED, Rendezvous(local_world_size=2)):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_all_ranks_agree_on_the_largest_value(tmp_path):
    assert run_ranks(agreed_value, 3, tmp_path) == [2, 2, 2]


@pytest.mark.parametrize(("delay", "learnt"), [(0, [0, 3, 1, 0]), (1, [0, 0, 3, 1])])
def test_a_reason_to_stop_reaches_all_ranks_with_a_gather_of_the_same_step(tmp_path, delay, learnt):
    assert run_ranks(agreed_reasons, 3, tmp_path, [0, 3, 1, 0], delay) == [learnt] * 3


def test_one_rank_needs_no_agreement_and_learns_its_reason_at_once():
    rows = torch.arange(3.0)
    agreement = StopAgreement(torch.device("cpu"), lambda: 2, delay=1)
    assert agreement.gather_rows(rows) is rows
    assert agreement.largest() == 2


def test_ranks_that_share_a_gpu_are_refused_with_their_numbers():
    refuse_shared_gpus(["a on n1", "b on n1", "a on n2"])
    with pytest.raises(ValueError, match=r"ranks 1, 2 share one GPU \(b on n1\); start one rank"):
        refuse_shared_gpus(["a on n1", "b on n1", "b on n1"])


def test_deterministic_kernels_are_used_inside_the_context_alone(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with distributed_context(replace(CPU, deterministic=True)):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_group_has_the_timeout_of_the_run():
    with distributed_context(replace(CPU, timeout_s=77)) as context:
        assert context.timeout == timedelta(seconds=77)
