"""Resources that cannot be are refused before anything is submitted."""

from __future__ import annotations

import pytest

from jobs.config import ClusterConfig, Executor


def slurm(**settings: object) -> ClusterConfig:
    return ClusterConfig(executor=Executor.slurm, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"nodes": 0}, "cluster.nodes is 0; give 1 or more"),
        ({"time_min": 3, "signal_delay_s": 120}, "cluster.signal_delay_s is 120 .* 180 s; .*=5"),
        ({"tasks_per_node": 8, "gpus_per_node": 4}, "8 but a node has 4 GPUs"),
        ({"extra": {"cpus-per-task": "16"}}, "given twice; set cluster.cpus_per_task instead"),
        ({"extra": {"ntasks_per_node": "2"}}, "given twice; set cluster.tasks_per_node instead"),
        ({"extra": {"gpus-per-node": "2"}, "gpus_per_node": 4}, "set cluster.gpus_per_node"),
        ({"extra": {"no-requeue": "true"}}, "given twice; set cluster.requeue instead"),
    ],
)
def test_impossible_resources_are_refused_with_the_cure(settings, told):
    with pytest.raises(ValueError, match=told):
        slurm(**settings)


def test_a_warning_a_minute_and_more_before_the_limit_is_fine():
    assert slurm(time_min=4, signal_delay_s=120).num_ranks == 1


def test_gpus_of_a_kind_may_be_asked_for_in_sbatchs_words():
    assert slurm(extra={"gpus-per-node": "a100:4"}).flags == {"gpus-per-node": "a100:4"}


@pytest.mark.parametrize("executor", [Executor.here, Executor.local])
def test_only_slurm_reaches_other_machines(executor):
    with pytest.raises(ValueError, match="only slurm reaches other machines"):
        ClusterConfig(executor=executor, nodes=2)


def test_this_process_is_one():
    with pytest.raises(ValueError, match="use cluster=laptop"):
        ClusterConfig(tasks_per_node=2)
