"""Copies on the node's own disk: one for all who read it, whole or not seen, gone at the end."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.staging import SCRATCH, copy_path, scratch_folder, staged
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.manifest import read_manifest
from preprocess.sources.simulated import SimulatedConfig

REPOSITORY = Path(__file__).parents[2]
# Stages, says so, and stays until its standard input ends.
READER = """
import sys, jobs.staging
copy, copied = jobs.staging._copy_shard, []
jobs.staging._copy_shard = lambda *args: (copied.append(1), copy(*args))[1]
with jobs.staging.staged([sys.argv[1]], sys.argv[2], progress=False) as (folder,):
    print(len(copied), flush=True)
    sys.stdin.read()
    from simclr.data.dataset import open_dataset
    open_dataset([folder], ["B02"])
"""


def packed(folder, num_patches=6, name="simulated"):
    source = SimulatedConfig(root="", num_patches=num_patches, bands=["B02"], name=name)
    source.root = str(folder / "root")
    config = PackConfig(source=source, output=str(folder / "shards"), shard_size_mib=0.06)
    pack(config, progress=False)
    return folder / "shards"


def reader(shards, scratch):
    return subprocess.Popen(
        [sys.executable, "-c", READER, str(shards), str(scratch)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_in(scratch):
    return [path.name for path in scratch.iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_processes_of_a_node_make_one_copy_and_the_last_removes_it(tmp_path):
    shards, scratch = packed(tmp_path), tmp_path / "own disk"
    readers = [reader(shards, scratch) for _ in range(4)]
    copied = [int(child.stdout.readline()) for child in readers]
    assert sorted(copied) == [0, 0, 0, 3]
    for number, child in enumerate(readers):
        assert len(left_in(scratch)) == 1, f"gone while {4 - number} read it"
        _, errors = child.communicate()  # ends its standard input
        assert child.returncode == 0, errors
    assert left_in(scratch) == []


@pytest.mark.slow
def test_the_copy_of_a_killed_job_serves_the_next_one(tmp_path):
    shards, scratch = packed(tmp_path), tmp_path / "scratch"
    first = reader(shards, scratch)
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = time.time_ns()
    with staged([str(shards)], str(scratch)) as (folder,):
        assert all(path.stat().st_mtime_ns < before for path in Path(folder).iterdir())
    assert left_in(scratch) == []


def test_a_copy_is_the_folder_to_the_byte(tmp_path):
    shards = packed(tmp_path)
    with staged([str(shards)], str(tmp_path / "scratch"), progress=False) as (folder,):
        assert Path(folder).is_relative_to(tmp_path / "scratch")
        for path in Path(folder).iterdir():
            assert path.read_bytes() == (shards / path.name).read_bytes()
        assert len(list(Path(folder).iterdir())) == 4


def test_without_scratch_shards_are_read_in_place(tmp_path):
    with staged(["a", "b"], "") as folders:
        assert folders == ["a", "b"]


def test_an_interrupted_copy_is_gone_on_with(tmp_path):
    shards, scratch = packed(tmp_path), tmp_path / "scratch"
    copy = copy_path(read_manifest(shards), scratch)
    copy.mkdir(parents=True)
    shutil.copy(shards / "shard-00001.h5", copy)
    (copy / ".shard-00000.h5.node-1.tmp").write_bytes(b"half")
    before = (copy / "shard-00001.h5").stat().st_mtime_ns
    with staged([str(shards)], str(scratch), progress=False):
        assert (copy / "shard-00001.h5").stat().st_mtime_ns == before
        assert not list(copy.glob(".*"))


def test_what_a_node_removed_from_a_copy_is_copied_again(tmp_path):
    shards, scratch = packed(tmp_path), tmp_path / "scratch"
    copy = shutil.copytree(shards, copy_path(read_manifest(shards), scratch))
    (copy / "shard-00001.h5").unlink()
    os.truncate(copy / "shard-00002.h5", 100)
    before = (copy / "shard-00000.h5").stat().st_mtime_ns
    with staged([str(shards)], str(scratch), progress=False):
        for name in ("shard-00001.h5", "shard-00002.h5"):
            assert (copy / name).read_bytes() == (shards / name).read_bytes()
        assert (copy / "shard-00000.h5").stat().st_mtime_ns == before


def test_packs_that_differ_in_their_manifest_alone_share_no_copy(tmp_path):
    shards = packed(tmp_path)
    other = shutil.copytree(shards, tmp_path / "other")
    replace(read_manifest(shards), processing_level="L1C").write(other)
    folders = [str(shards), str(other)]
    with staged(folders, str(tmp_path / "scratch"), progress=False) as copies:
        assert list(map(read_manifest, map(Path, copies))) == [
            read_manifest(shards), read_manifest(other),
        ]  # fmt: skip


def test_a_shard_that_does_not_match_its_manifest_is_never_read(tmp_path):
    shards, scratch = packed(tmp_path), tmp_path / "scratch"
    content = bytearray((shards / "shard-00001.h5").read_bytes())
    content[9000] ^= 1
    (shards / "shard-00001.h5").write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"shard-00001\.h5 does not match its checksum"),
        staged([str(shards)], str(scratch), progress=False),
    ):
        pytest.fail("a wrong copy was handed out")
    copy = copy_path(read_manifest(shards), scratch)
    assert not (copy / "manifest.json").exists()
    assert not (copy / "shard-00001.h5").exists()


def test_too_little_space_is_told_after_unused_copies_were_removed(tmp_path, monkeypatch):
    shards, scratch = packed(tmp_path), tmp_path / "scratch"
    unused, used = (
        scratch / f"simclr-shards-{uid}" for uid in (f"{os.getuid()}-0", f"{os.getuid()}-1")
    )
    for copy in (unused, used):
        copy.mkdir(parents=True)
        copy.with_suffix(".lock").touch()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with used.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with (
            pytest.raises(ValueError, match=r"0\.00 GiB free.*cluster\.scratch=null"),
            staged([str(shards)], str(scratch), progress=False),
        ):
            pytest.fail("there is no space")
    assert (unused.exists(), used.exists()) == (False, True)


def test_the_name_of_the_scratch_folder_is_understood_on_each_node(monkeypatch):
    assert scratch_folder() == ""
    monkeypatch.setenv(SCRATCH, "/local/it's/$SLURMD_NODENAME/${SLURM_JOB_ID}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert scratch_folder() == "/local/it's/n2/7"
    monkeypatch.delenv("SLURMD_NODENAME")
    with pytest.raises(ValueError, match=r"which becomes /local/it's/\$SLURMD_NODENAME/7 on node"):
        scratch_folder()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_with_the_fix(tmp_path, monkeypatch, code):
    shards = packed(tmp_path)

    def without_locks(_lock, _operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with (
        pytest.raises(ValueError, match=r"cluster\.scratch is .*scratch.*no file locks.*=null"),
        staged([str(shards)], str(tmp_path / "scratch"), progress=False),
    ):
        pass
