"""What no node can give is refused; a cluster file from Slurm's own words can be used as it is."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module

from jobs import commands
from jobs.cli.schema import register, to_settings
from jobs.config import ClusterConfig, Executor
from jobs.slurm.partitions import (
    Site,
    check_capacity,
    check_partition,
    cluster_yaml,
    largest_array,
    parse_nodes,
    write_cluster_file,
)

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
        check_partition(one, SITE.kinds)  # raises where the nodes have less
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
    with pytest.raises(ValueError, match=r"mine\.yaml already exists"):
        write_cluster_file(tmp_path / "cluster" / "mine.yaml", SITE)
    with pytest.raises(ValueError, match="partition is 'none'; choose one of cpu, gpu"):
        write_cluster_file(tmp_path / "other.yaml", SITE, "none")
    with pytest.raises(ValueError, match=r"give NAME\.yaml"):
        write_cluster_file(tmp_path / "other", SITE)


def test_all_that_a_partition_lacks_is_named_at_once(tmp_path, composed):
    cluster = composed(write_cluster_file(tmp_path / "mine.yaml", SITE))
    cluster.gpus_per_node, cluster.memory_gb, cluster.time_min = 16, 2000, 5000
    with pytest.raises(ValueError, match=r"gpus_per_node is 16.*memory_gb is 2000.*time_min is 50"):
        check_partition(cluster, SITE.kinds)


# sinfo -h -o "%P|%D|%c|%m|%G|%l"; the forms of %G are those of the gres.conf page
FORMS = """\
cpu*|16|64|257000|(null)|1-00:00:00
gpu|4|48|515000|gpu:a100:4(S:0-1)|12:00:00
gpu|2|96|1030000|gpu:h100:8(S:0-1),nvme:1|12:00:00
mig|1|32+|128000+|gpu:1g.5gb:7,gpu:2g.10gb:3|infinite
a line of a plugin
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """Put an sinfo on PATH that says what the nodes are."""
    (tmp_path / "nodes").write_text(FORMS)
    for name, body in {
        "sinfo": f"cat '{tmp_path}/nodes'",
        "scontrol": "echo 'MaxArraySize            = 1001'",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def cluster(**settings):
    return ClusterConfig(**{"executor": Executor.slurm, "time_min": 60, **settings})


def test_kinds_of_nodes_are_read_with_their_gpus_and_limits():
    kinds = parse_nodes(FORMS)
    assert [kind.gpus for kind in kinds] == [0, 4, 8, 10]
    assert [kind.limit_min for kind in kinds] == [1440, 720, 720, None]
    assert kinds[3].cores == 32
    assert kinds[0].is_default


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition": "gpuu"}, "no gpuu; choose one of cpu, gpu, mig"),
        ({"gpus_per_node": 1}, "gpus_per_node is 1 but partition cpu has 0 GPUs"),
        ({"partition": "gpu", "gpus_per_node": 9}, "is 9 .* has 8 GPUs per node; give at most 8"),
        ({"tasks_per_node": 33, "cpus_per_task": 2}, "is 66 but partition cpu has 64 cores"),
        ({"memory_gb": 300}, "memory_gb is 300 but partition cpu has 250.977 GiB"),
        ({"partition": "gpu", "nodes": 7}, "nodes is 7 but partition gpu has 6 nodes"),
        ({"partition": "gpu", "time_min": 721}, "time_min is 721 .* after 720; .*requeued"),
    ],
)
def test_what_no_node_has_is_refused_before_submission(sinfo, settings, told):
    with pytest.raises(ValueError, match=told):
        check_capacity(cluster(**settings))


@pytest.mark.parametrize(
    "settings", [{}, {"partition": "gpu,cpu", "gpus_per_node": 8}, {"partition": "mig"}]
)
def test_what_some_node_has_is_let_through(sinfo, settings):
    check_capacity(cluster(**settings))


def test_slurm_says_how_large_an_array_may_be(sinfo):
    assert largest_array() == 1001


def test_a_slurm_without_an_answer_refuses_nothing_and_says_why(sinfo):
    (sinfo / "sinfo").write_text("#!/bin/sh\necho 'Unable to contact' >&2; exit 1\n")
    assert "Unable to contact" in check_capacity(cluster(gpus_per_node=99, tasks_per_node=1))
