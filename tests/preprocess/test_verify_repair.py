"""Repair: what was packed comes back to the byte, or nothing is touched."""

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_data import bigearthnet_v1, edit_manifest, write_geotiff

from preprocess.config import PackConfig, VerifyConfig
from preprocess.pack import pack
from preprocess.shards import open_readers, read_manifest
from preprocess.shards.format import CODECS, sha256_of
from preprocess.sources.bigearthnet import BigEarthNetV1Config
from preprocess.verify import RepairError, verify_and_repair

REPOSITORY = Path(__file__).resolve().parents[2]
BANDS = ["B02", "B05", "B09"]


def packed(tmp_path, num_patches=7, codec="none"):
    """Pack a tree of which one patch is bad; two patches a shard."""
    folders = bigearthnet_v1(tmp_path / "tree", num_patches, bands=BANDS)
    (folders[1] / f"{folders[1].name}_B05.tif").unlink()
    source = BigEarthNetV1Config(root=str(tmp_path / "tree"), bands=BANDS)
    config = PackConfig(
        source=source,
        output=str(tmp_path / "out"),
        shard_size_mib=0.08,
        max_rejected=0.5,
        compression=codec,
    )
    pack(config, progress=False)
    return tmp_path / "out"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def repaired(folder, **settings):
    config = VerifyConfig(shards=str(folder), repair=True, **settings)
    return verify_and_repair(config, progress=False)


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("codec", CODECS)
def test_flipped_cut_and_missing_shards_come_back_to_the_byte(tmp_path, codec):
    folder = packed(tmp_path, codec=codec)
    before = contents(folder)
    flip(folder / "shard-00000.h5", 9000)
    (folder / "shard-00002.h5").unlink()
    path = folder / "shard-00003.h5"
    path.write_bytes(path.read_bytes()[:-1])
    report, mended = repaired(folder)
    assert (report.ok, mended) == (True, 3)
    assert contents(folder) == before


def test_sound_shards_are_left_alone(tmp_path):
    folder = packed(tmp_path)
    flip(folder / "shard-00000.h5", 9000)
    before = (folder / "shard-00001.h5").stat().st_mtime_ns
    repaired(folder)
    assert (folder / "shard-00001.h5").stat().st_mtime_ns == before
    assert repaired(folder)[1] == 0


def test_a_manifest_with_wrong_sums_is_summed_up_again(tmp_path):
    folder = packed(tmp_path)
    before = contents(folder)
    edit_manifest(folder, lambda data: data["statistics"]["B02"].update(mean=1.0))
    report, mended = repaired(folder)
    assert (report.ok, mended) == (True, 1)
    assert contents(folder) == before


def test_rasters_that_have_moved_are_found_by_their_new_root(tmp_path):
    folder = packed(tmp_path)
    before = contents(folder)
    shutil.move(tmp_path / "tree", tmp_path / "moved")
    flip(folder / "shard-00000.h5", 9000)
    with pytest.raises(RepairError, match="cannot be read any more"):
        repaired(folder)
    assert repaired(folder, root=str(tmp_path / "moved"))[0].ok
    assert contents(folder) == before


def test_a_source_that_has_changed_cannot_pass_for_what_was_packed(tmp_path):
    folder = packed(tmp_path)
    flip(folder / "shard-00000.h5", 9000)
    damaged = contents(folder)
    name = open_readers(folder, read_manifest(folder))[0].index("id")[0]
    path = tmp_path / "tree" / name / f"{name}_B02.tif"
    write_geotiff(path, np.full((1, 120, 120), 77, np.uint16))
    with pytest.raises(RepairError, match=r"shard-00000\.h5 cannot be brought back"):
        repaired(folder)
    assert contents(folder) == damaged


KILLED = """
import os, signal, sys
import preprocess.verify
from preprocess.config import VerifyConfig
real = preprocess.verify._patches
def then_killed(*args):
    yield next(real(*args))
    os.kill(os.getpid(), signal.SIGKILL)
preprocess.verify._patches = then_killed
preprocess.verify.verify_and_repair(VerifyConfig(shards=sys.argv[1], repair=True), progress=False)
"""


def test_a_killed_repair_hinders_no_other(tmp_path):
    folder = packed(tmp_path)
    before = contents(folder)
    flip(folder / "shard-00002.h5", 9000)
    child = subprocess.run([sys.executable, "-c", KILLED, folder], cwd=REPOSITORY, check=False)
    assert child.returncode == -signal.SIGKILL
    assert list((folder / "packing").rglob(".shard-00002.h5.*.tmp"))
    assert repaired(folder)[0].ok
    assert contents(folder) == before


def test_a_pack_from_before_a_setting_was_there_is_repaired(tmp_path):
    folder = packed(tmp_path)
    plan = folder / "packing" / "plan.jsonl"
    before, text = contents(folder)["shard-00000.h5"], plan.read_text()
    plan.write_text(text.replace('"source.train_list": "", ', "", 1))
    assert plan.read_text() != text
    records = [(path, path.read_text()) for path in plan.parent.glob("shard-*.json")]
    old, new = hashlib.sha256(text.encode()).hexdigest(), sha256_of(plan)
    for path, record in records:
        path.write_text(record.replace(old, new))
    flip(folder / "shard-00000.h5", 9000)
    assert repaired(folder)[0].ok
    assert contents(folder)["shard-00000.h5"] == before
