"""A disk that is full, read-only or damaged costs a run steps at most, never its checkpoints."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from make_data import packed_arrays
from rank_jobs import small_run, train_small
from ranks import results_of, run_ranks, start_ranks
from slurm.runs import differing

from simclr.checkpoint.manager import newest_valid

pytestmark = pytest.mark.slow

LAST = "step-000000016"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("shards"), 64)


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert run_ranks(train_small, 2, folder, small_run(shards, folder / "run")) == [LAST] * 2
    return folder / "run"


@pytest.fixture
def disk(tmp_path):
    """Mount a small disk in memory; the function that is given changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def change(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, capture_output=True, check=True)

    try:
        change("size=1m")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no disk can be mounted here: {error.stderr.decode().strip()}")
    yield folder, change
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def state_of(run_dir):
    return torch.load(newest_valid(run_dir) / "state.pt", weights_only=True)


def size_of(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def test_a_full_disk_ends_all_ranks_and_with_room_they_go_on(shards, unbroken, disk, tmp_path):
    folder, change = disk
    size = size_of(newest_valid(unbroken))
    change(f"remount,size={int(2.5 * size)}")  # two checkpoints, and half of the third
    config = small_run(shards, folder / "run")
    with pytest.raises(
        AssertionError, match=r"step 9 could not be saved in .*No space left"
    ) as end:
        run_ranks(train_small, 2, tmp_path, config)
    assert "older checkpoints are untouched, the same command continues" in str(end.value)
    names = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert names == ["latest", "step-000000003", "step-000000006"]  # and nothing half-written
    change(f"remount,size={4 * size}")
    assert run_ranks(train_small, 2, tmp_path, config) == [LAST] * 2
    assert differing(state_of(folder / "run"), state_of(unbroken)) == []


@pytest.mark.exhaustive
def test_a_disk_that_turns_read_only_ends_the_run_and_loses_no_checkpoint(
    shards, unbroken, disk, tmp_path
):
    folder, change = disk
    change(f"remount,size={4 * size_of(newest_valid(unbroken))}")
    config = small_run(shards, folder / "run")
    started = start_ranks(train_small, 2, tmp_path, config)
    end = time.monotonic() + 600
    while not (folder / "run" / "checkpoints" / "latest").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    while not is_changed(change, "remount,ro"):  # busy as long as a file is being written
        time.sleep(0.005)
    with pytest.raises(AssertionError, match=r"Read-only file system|another rank is gone"):
        results_of(started)
    kept = newest_valid(folder / "run")
    assert kept.name != LAST
    assert is_changed(change, "remount,rw")
    assert run_ranks(train_small, 2, tmp_path, config) == [LAST] * 2
    assert differing(state_of(folder / "run"), state_of(unbroken)) == []


def is_changed(change, options: str) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        change(options)
        return True
    return False


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


RARER = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("manifest.json",)]


@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink])
@pytest.mark.parametrize("name", ["state.pt", *RARER])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    shards, unbroken, tmp_path, damage, name
):
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    damage(run_dir / "checkpoints" / LAST / name)
    before = newest_valid(run_dir)
    assert before.name == "step-000000015"
    assert run_ranks(train_small, 2, tmp_path, small_run(shards, run_dir)) == [LAST] * 2
    assert (run_dir / "checkpoints" / f"bad-{LAST}").is_dir()
    assert differing(state_of(run_dir), state_of(unbroken)) == []


@pytest.mark.exhaustive
def test_a_kill_while_a_checkpoint_is_written_leaves_nothing_that_is_taken_for_one(
    shards, unbroken, tmp_path
):
    config = small_run(shards, tmp_path / "run")
    started = start_ranks(train_small, 2, tmp_path, config)
    checkpoints = tmp_path / "run" / "checkpoints"
    end = time.monotonic() + 600
    while not list(checkpoints.glob(".saving-step-000000006*/*.pt")):
        assert time.monotonic() < end
    for process, _ in started:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert list(checkpoints.glob(".saving-*"))
    assert newest_valid(tmp_path / "run").name == "step-000000003"
    assert run_ranks(train_small, 2, tmp_path, config) == [LAST] * 2
    assert not list(checkpoints.glob(".*"))
    assert differing(state_of(tmp_path / "run"), state_of(unbroken)) == []
