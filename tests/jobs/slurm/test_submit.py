"""What no node of a partition can give is refused with what there is."""

from __future__ import annotations

import os
import subprocess

import pytest

from jobs.config import ClusterConfig, Executor
from jobs.slurm.submit import SRUN_UNTIL_RANK_0_IS_DONE, check_capacity, largest_array, parse_nodes

# sinfo -h -o "%P|%D|%c|%m|%G|%l"; the forms of %G are those of the gres.conf page
NODES = """\
cpu*|16|64|257000|(null)|1-00:00:00
gpu|4|48|515000|gpu:a100:4(S:0-1)|12:00:00
gpu|2|96|1030000|gpu:h100:8(S:0-1),nvme:1|12:00:00
mig|1|32+|128000+|gpu:1g.5gb:7,gpu:2g.10gb:3|infinite
a line of a plugin
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """Put an sinfo on PATH that says what the nodes are."""
    (tmp_path / "nodes").write_text(NODES)
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
    kinds = parse_nodes(NODES)
    assert [kind.gpus for kind in kinds] == [0, 4, 8, 10]
    assert [kind.limit_min for kind in kinds] == [1440, 720, 720, None]
    assert kinds[3].cores == 32
    assert kinds[0].is_default


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition": "gpuu"}, "no gpuu; choose one of cpu, gpu, mig"),
        ({"gpus_per_node": 1}, "gpus_per_node is 1 but partition cpu has 0 GPUs"),
        ({"partition": "gpu", "gpus_per_node": 9}, "is 9 .* has 8 GPUs a node; give at most 8"),
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


def test_the_batch_script_leaves_with_the_code_of_srun_and_without_the_mark(tmp_path):
    srun, mark = tmp_path / "srun", tmp_path / "7.done"
    srun.write_text('#!/bin/sh\ntouch "$SIMCLR_RANK_0_DONE"\necho "$@"\nexit 3\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{SRUN_UNTIL_RANK_0_IS_DONE}\nsrun --wait=300 'a b'"],
        env={
            **os.environ,
            "PATH": path,
            "SIMCLR_RANK_0_DONE": str(mark),
        },
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "--wait=300 a b\n"), done.stderr
    assert not mark.exists()
