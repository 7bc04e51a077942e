"""A cluster file that is written from Slurm's own words can be used as it is."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module

from jobs import commands
from jobs.cli.schema import register, to_settings
from jobs.slurm.cluster_file import Site, cluster_yaml, write_cluster_file
from jobs.slurm.submit import _check_partition, parse_nodes

NODES = """\
cpu*|16|64|257000|(null)|1-00:00:00
gpu|4|48|515000|gpu:a100:4(S:0-1)|12:00:00
gpu|2|96|1030000|gpu:h100:8(S:0-1),nvme:1|12:00:00
debug|1|4|8000|gpu:t4:1|00:03:00
closed|90|96|1030000|gpu:h100:8|infinite
"""
LIMITS = {
    "gpu": {"State": "UP", "PreemptMode": "REQUEUE", "GraceTime": "60"},
    "closed": {"State": "DOWN"},
}
SITE = Site(parse_nodes(NODES), LIMITS, ["lab"])


@pytest.fixture
def composed(tmp_path):
    """Return a function that composes a training on the cluster of a file."""
    register(commands.load("pretrain"))

    def settings(path):
        words = [f"cluster={path.stem}", f"hydra.searchpath=['file://{path.parent.parent}']"]
        with initialize_config_module("jobs.conf", version_base="1.3"):
            return to_settings(compose("pretrain", words)).cluster

    return settings


@pytest.mark.parametrize("partition", ["", "cpu", "gpu", "debug"])
def test_the_file_composes_and_asks_for_what_there_is(tmp_path, composed, partition):
    path = write_cluster_file(tmp_path / "mine.yaml", SITE, partition)
    assert path == tmp_path / "cluster" / "mine.yaml"
    cluster = composed(path)
    for one in (cluster, cluster.for_cpu()):
        _check_partition(one, SITE.kinds)  # raises where the nodes have less
    assert cluster.partition == (partition or "gpu")
    assert cluster.account == "lab"
    assert cluster.cpu.partition == "cpu"


def test_a_rank_is_asked_for_each_gpu_of_the_most_common_node():
    lines = [line.strip() for line in cluster_yaml(SITE).splitlines()]
    assert "gpus_per_node: 4" in lines
    assert "cpus_per_task: 12" in lines
    assert "# PreemptMode=REQUEUE, GraceTime=60 s" in lines
    assert "memory_gb: 452 # of each node" in lines


def test_several_accounts_are_named_and_none_is_chosen():
    text = cluster_yaml(Site(SITE.kinds, LIMITS, ["a", "b"]))
    assert "  account: null # a, b\n" in text


def test_a_file_is_never_written_over(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.yaml is there already"):
        write_cluster_file(tmp_path / "cluster" / "mine.yaml", SITE)
    with pytest.raises(ValueError, match="partition is 'none'; choose one of cpu, gpu"):
        write_cluster_file(tmp_path / "other.yaml", SITE, "none")
    with pytest.raises(ValueError, match=r"give NAME\.yaml"):
        write_cluster_file(tmp_path / "other", SITE)


def test_all_that_a_partition_lacks_is_named_at_once(tmp_path, composed):
    cluster = composed(write_cluster_file(tmp_path / "mine.yaml", SITE))
    cluster.gpus_per_node, cluster.memory_gb, cluster.time_min = 16, 2000, 5000
    with pytest.raises(ValueError, match=r"gpus_per_node is 16.*memory_gb is 2000.*time_min is 50"):
        _check_partition(cluster, SITE.kinds)
