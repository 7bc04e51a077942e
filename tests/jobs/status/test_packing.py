"""How a packing fares: from its folder, and from Slurm's word on the members of its array."""

from __future__ import annotations

import pytest

from jobs.run_dir import Submission, write_submission
from jobs.slurm.client import JobState
from jobs.status.records import SlurmAnswer, describe_packing, is_packing, packing_job
from jobs.status.render import packing_lines
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig


@pytest.fixture
def packed(tmp_path):
    """Pack four patches into four shards, as array 40."""
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=4, bands=["B02"])
    config = PackConfig(source=source, output=str(tmp_path / "shards"), shard_size_mib=0.01)
    pack(config, progress=False)
    folder = tmp_path / "shards"
    write_submission(folder / "packing" / "slurm", Submission("40", "pack", [], 0.0, "/log"))
    return folder


def members(*states: str) -> SlurmAnswer:
    return SlurmAnswer({f"40_{k}": JobState(f"40_{k}", state) for k, state in enumerate(states)})


def test_a_finished_packing_is_packed(packed):
    record = describe_packing(packed, members("COMPLETED", "COMPLETED"))
    assert (record.state, record.needs_person) == ("packed", False)
    assert record.num_done == record.num_shards > 1
    assert packing_job(packed) == ["40"]
    assert is_packing(packed)
    assert not is_packing(packed.parent)


def test_members_are_summed_up_and_those_that_failed_are_named(packed):
    (packed / "manifest.json").unlink()
    (packed / "shard-00000.h5").unlink()
    record = describe_packing(packed, members("RUNNING", "FAILED", "PENDING", "PENDING"))
    assert record.members == {"running": 1, "failed": 1, "pending": 2}
    assert (record.failed, record.needs_person) == (["40_1"], True)
    assert record.num_done == record.num_shards - 1
    text = dict(packing_lines(record))
    assert text["array"] == "job 40: 1 failed, 2 pending, 1 running"
    assert "the same command packs what is missing" in text["next"]


def test_members_that_failed_are_named_also_when_squeue_has_forgotten_them(packed):
    (packed / "manifest.json").unlink()
    ends = {"40_0": ["COMPLETED"], "40_1": ["NODE_FAIL", "TIMEOUT"], "41_0": ["FAILED"]}
    record = describe_packing(packed, SlurmAnswer({}, ends))
    assert (record.failed, record.needs_person) == (["40_1"], True)
    assert record.state == "1 members failed"


def test_a_packing_at_work_needs_nobody(packed):
    (packed / "manifest.json").unlink()
    record = describe_packing(packed, members("RUNNING"))
    assert (record.state, record.needs_person, record.action) == ("packing", False, "")
    assert describe_packing(packed, SlurmAnswer()).state == "not complete"


def test_a_damaged_manifest_is_seen_and_the_cure_that_is_named_cures(packed):
    (packed / "manifest.json").write_text('{"format":')
    record = describe_packing(packed, SlurmAnswer())
    assert record.needs_person
    assert "is not readable JSON" in record.state
    assert record.action == "remove it, and the same simclr-pack makes it again from the shards"
    (packed / "manifest.json").unlink()
    source = SimulatedConfig(root=str(packed.parent / "rasters"), num_patches=4, bands=["B02"])
    pack(PackConfig(source=source, output=str(packed), shard_size_mib=0.01), progress=False)
    assert not describe_packing(packed, SlurmAnswer()).needs_person
