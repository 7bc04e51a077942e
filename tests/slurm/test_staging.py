"""Training from the nodes' own disks on a real Slurm: a copy a node, equal bits, nothing left."""

from __future__ import annotations

import json

import pytest
from slurm.runs import assert_finished_like, submit, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_each_node_reads_its_own_copy_and_the_weights_are_the_same(
    cluster, shards, unbroken, tmp_path
):
    scratch = tmp_path / "own disks"
    run = submit(cluster, shards, tmp_path / "run", f"cluster.scratch='{scratch}/$SLURMD_NODENAME'")
    wait_for_step(cluster, run, 1)
    copies = sorted(scratch.glob("*/simclr-shards-*/manifest.json"))
    assert len({copy.parents[1] for copy in copies}) == len(copies) == 2
    assert {copy.read_bytes() for copy in copies} == {(shards / "manifest.json").read_bytes()}
    assert_finished_like(cluster, run, unbroken, restarts=0)
    # what a checkpoint says of its shards stays true when the copies are gone
    assert not list(scratch.glob("*/simclr-shards-*/"))
    (manifest,) = (run.folder / "checkpoints").glob("step-*/manifest.json")
    told = json.loads(manifest.read_text())
    assert told["config"]["shards"] == [str(shards)]
    (before,) = (unbroken.folder / "checkpoints").glob("step-*/manifest.json")
    assert told["dataset"] == json.loads(before.read_text())["dataset"]
