"""Who is in the world, and what they agree on."""

import pytest
from rank_jobs import agreed_value
from ranks import CPU, run_ranks

from simclr.distributed import Rendezvous, distributed_context, rendezvous_from_environment

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
