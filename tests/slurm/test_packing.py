"""Packing on a real Slurm: an array of parts leaves what one process leaves."""

from __future__ import annotations

import os
import signal

import pytest
from slurm.cluster import wait_until
from slurm.runs import verb

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.manifest import read_manifest
from preprocess.sources.simulated import SimulatedConfig

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def alone(tmp_path):
    """Write the rasters, and pack them in one process; the manifest is what an array must leave."""
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=12)
    config = PackConfig(source=source, output=str(tmp_path / "alone"), shard_size_mib=0.5)
    return pack(config, progress=False)


def settings(tmp_path):
    return (
        "source=simulated",
        f"source.root='{tmp_path / 'rasters'}'",
        "source.num_patches=12",
        f"output='{tmp_path / 'by array'}'",
        "shard_size_mib=0.5",
    )


def test_an_array_of_parts_packs_the_same_shards_as_one_process(cluster, alone, tmp_path):
    place = ("cluster=slurm_cpu_example", "cluster.parts=3", "cluster.cpus_per_task=1")
    done = verb("pack", *settings(tmp_path), *place, cluster=cluster)
    assert done.returncode == 0, done.stderr
    array = array_of(cluster, done.stdout.strip())
    wait_until(lambda: (tmp_path / "by array" / "manifest.json").exists(), "the manifest", 90)
    # stdout names the job that comes after the array; what waits for it finds a manifest
    last = cluster.wait_for(done.stdout.strip(), "COMPLETED", "FAILED")
    assert last["JobState"] == "COMPLETED", packing_log(tmp_path)
    assert read_manifest(tmp_path / "by array").fingerprint == alone.fingerprint
    assert len(elements(cluster, array)) == 3


def array_of(cluster, last):
    """Return the job array that the finishing job waits for; members may have taken numbers."""
    return cluster.state(last)["Dependency"].partition(":")[2].partition("_")[0]


def elements(cluster, array):
    """Return the members of a job array, as Slurm numbers them."""
    return cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i", "-j", array).split()


def packing_log(tmp_path):
    logs = sorted((tmp_path / "by array" / "packing" / "slurm").glob("*_log.err"))
    return "\n".join(f"== {path.name}\n{path.read_text()}" for path in logs)


def packing_process(output):
    """Return the process that is writing a shard, found by the name of its unfinished file."""
    for path in output.glob(".shard-*.tmp"):
        return int(path.name.removesuffix(".tmp").rpartition("-")[2])
    return None


@pytest.mark.parametrize("cause", ["killed", "requeued", "killed for ever"])
def test_a_member_that_dies_in_a_shard_costs_no_byte(cluster, tmp_path, cause):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=900)
    config = PackConfig(source=source, output=str(tmp_path / "alone"), shard_size_mib=24.0)
    expected = pack(config, progress=False)
    output = tmp_path / "by array"
    words = [
        "source=simulated",
        f"source.root='{tmp_path / 'rasters'}'",
        "source.num_patches=900",
        f"output='{output}'",
        "shard_size_mib=24",
    ]
    place = ("cluster=slurm_cpu_example", "cluster.parts=3", "cluster.cpus_per_task=1")
    done = verb("pack", *words, *place, cluster=cluster)
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip()
    array = array_of(cluster, last)
    wait_until(
        lambda: packing_process(output) is not None, "a shard", 90, lambda: packing_log(tmp_path)
    )
    if cause == "requeued":
        cluster.run("scontrol", "requeue", f"{array}_0")
    else:
        os.kill(packing_process(output), signal.SIGKILL)
    if cause == "killed":
        wait_until(lambda: failed(cluster, array), "a failed member", 90)
        cluster.run("scontrol", "requeue", failed(cluster, array)[0])
    state = cluster.wait_for(last, "COMPLETED", "FAILED", timeout_s=180)["JobState"]
    if cause == "killed for ever":
        assert state == "FAILED"
        assert "shards are not packed" in packing_log(tmp_path)
        assert not (output / "manifest.json").exists()
        # the same command, and only what is missing is packed
        assert verb("pack", *words, "cluster=here", cluster=cluster).returncode == 0
    else:
        assert state == "COMPLETED", packing_log(tmp_path)
    assert read_manifest(output).fingerprint == expected.fingerprint
    assert (output / "manifest.json").read_bytes() == (
        tmp_path / "alone" / "manifest.json"
    ).read_bytes()
    assert not list(output.glob(".*"))


def failed(cluster, array):
    return cluster.run("squeue", "-h", "-r", "-t", "F", "-o", "%i", "-j", array).split()


def test_an_array_by_plain_sbatch_packs_the_same_shards(cluster, alone, repository, tmp_path):
    script = repository / "jobs" / "sbatch" / "pack.sbatch"
    log = tmp_path / "pack-%a.log"
    submitted = cluster.run(
        "sbatch", "--array=0-2", "--mem=100M", f"--output={log}", str(script), *settings(tmp_path)
    )
    assert "Submitted batch job" in submitted
    wait_until(
        lambda: (tmp_path / "by array" / "manifest.json").exists(),
        "the manifest",
        90,
        lambda: "\n".join(path.read_text() for path in tmp_path.glob("pack-*.log")),
    )
    assert read_manifest(tmp_path / "by array").fingerprint == alone.fingerprint
