"""Packing under attack: full disks, random kills of all parts at once, a part that never comes."""

import itertools
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from killed_parts import digests, kill_parts

from preprocess.config import PackConfig, VerifyConfig
from preprocess.pack import PackError, finish, pack, read_patch
from preprocess.sources import open_source
from preprocess.sources.simulated import SimulatedConfig
from preprocess.verify import verify

REPOSITORY = Path(__file__).resolve().parents[2]
_log = logging.getLogger(__name__)
CHILD = """
import re, sys
from pathlib import Path
from preprocess.config import PackConfig
from preprocess.sources.simulated import SimulatedConfig
from preprocess.pack import pack
root, output, part, parts, patches, shard_mib = sys.argv[1:]
source = SimulatedConfig(root=root, num_patches=int(patches))
config = PackConfig(source=source, output=output, shard_size_mib=float(shard_mib))
pack(config, int(part), int(parts), progress=False)
# not ru_maxrss, which a child inherits from the larger process that started it
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024)
"""


def start(root, output, part=0, parts=1, patches=60, shard_mib=0.8):
    words = [str(word) for word in (root, output, part, parts, patches, shard_mib)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(child):
    """Wait for a child that nobody kills; return what it printed."""
    output, errors = child.communicate()
    assert child.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return rasters and what one process packs of them when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended(start(folder / "root", folder / "shards"))
    return folder / "root", folder / "shards"


FULL_DISK = """
set -e
mount -t tmpfs -o size=6m tmpfs "$1"
if "$2" -c "$3" "$4" "$1/out" 0 1 60 0.8; then echo "the disk was not full"; exit 3; fi
ls -A "$1/out" > "$5"
mount -o remount,size=64m "$1"
"$2" -c "$3" "$4" "$1/out" 0 1 60 0.8
cp -r "$1/out" "$6"
"""


@pytest.mark.slow
def test_a_full_disk_leaves_whole_shards_only_and_room_is_all_that_a_second_run_needs(
    undisturbed, tmp_path
):
    root, shards = undisturbed
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    disk, listing, copy = tmp_path / "disk", tmp_path / "listing", tmp_path / "copy"
    disk.mkdir()
    words = [str(disk), sys.executable, CHILD, str(root), str(listing), str(copy)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL_DISK, "full-disk", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left" in done.stderr
    left = listing.read_text().split()
    assert "manifest.json" not in left
    assert not [name for name in left if name.startswith(".")]
    assert 1 <= len([name for name in left if name.endswith(".h5")]) < 12
    assert digests(copy) == digests(shards)


@pytest.mark.slow
def test_fifty_random_kills_of_an_array_cost_no_byte(undisturbed, tmp_path):
    hits = kill_parts(undisturbed[0], tmp_path, num_kills=50, seed=0)
    _log.info("seed 0: %s", hits)
    assert hits["in a shard"] >= 10
    assert digests(tmp_path / "undisturbed") == digests(undisturbed[1])


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_size_of_a_shard(tmp_path):
    peaks = []
    for patches, shard_mib in ((500, 10), (3000, 1024)):
        folders = (tmp_path / f"root-{patches}", tmp_path / f"out-{patches}")
        peaks.append(int(ended(start(*folders, patches=patches, shard_mib=shard_mib))))
    assert peaks[1] < min(1024, peaks[0] + 50), f"peaks of {peaks} MiB"


def test_a_part_that_is_started_twice_gives_way_in_one_line(tmp_path, monkeypatch):
    root, output = tmp_path / "root", tmp_path / "out"
    source = SimulatedConfig(root=str(root), num_patches=4)
    config = PackConfig(source=source, output=str(output), shard_size_mib=0.35)
    numbers = itertools.count()

    def while_another_starts(*args):
        if next(numbers) == 1:  # the first patch is read before there is a file
            assert list(output.glob(".shard-00000.h5.*.tmp"))
            ended(start(root, output, patches=4, shard_mib=0.35))
        return read_patch(*args)

    monkeypatch.setattr("preprocess.pack.read_patch", while_another_starts)
    with pytest.raises(PackError, match=r"shard-00000\.h5 was taken over by another process"):
        pack(config, progress=False)
    assert verify(VerifyConfig(shards=str(output))).ok


def test_a_part_that_never_comes_is_told_with_its_shards(tmp_path):
    source = SimulatedConfig(root=str(tmp_path / "root"), num_patches=6, bands=["B02"])
    config = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=0.06)
    assert pack(config, 0, 3, progress=False) is None
    assert pack(config, 2, 3, progress=False) is None
    with pytest.raises(PackError, match=r"1 of 3 shards are not packed \(shard-00001\.h5\)"):
        finish(config)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = pack(config, 1, 3, progress=False)
    assert finish(config) == manifest
    (tmp_path / "out" / "manifest.json").unlink()
    assert finish(config) == manifest
    assert verify(VerifyConfig(shards=str(tmp_path / "out"))).ok


def test_while_another_part_mends_a_shard_no_manifest_names_it(tmp_path):
    source = SimulatedConfig(root=str(tmp_path / "root"), num_patches=4, bands=["B02"])
    config = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=0.06)
    whole = pack(config, progress=False)
    (tmp_path / "out" / "shard-00000.h5").unlink()
    (tmp_path / "out" / "shard-00001.h5").unlink()
    assert pack(config, 0, 2, progress=False) is None
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert pack(config, 1, 2, progress=False) == whole


def test_discovery_is_done_once_for_all_parts(tmp_path, monkeypatch):
    source = SimulatedConfig(root=str(tmp_path / "root"), num_patches=4, bands=["B02"])
    config = PackConfig(source=source, output=str(tmp_path / "out"))
    pack(config, 0, 2, progress=False)

    def discover(self):
        raise AssertionError("discovered again")

    monkeypatch.setattr(type(open_source(source)), "discover", discover)
    pack(config, 1, 2, progress=False)
