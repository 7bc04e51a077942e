"""Packing on a real Slurm: an array of parts leaves what one process leaves."""

from __future__ import annotations

import pytest
from slurm.cluster import wait_until
from slurm.runs import verb

from preprocess.config import PackConfig, SimulatedConfig
from preprocess.pack import pack
from preprocess.shards.manifest import read_manifest

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
    wait_until(lambda: (tmp_path / "by array" / "manifest.json").exists(), "the manifest", 90)
    assert read_manifest(tmp_path / "by array").fingerprint == alone.fingerprint
    states = cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i", "-j", done.stdout.strip())
    assert len(states.split()) == 3


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
