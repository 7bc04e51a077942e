"""A checkpoint is whole or absent: every fault is passed over, none is loaded."""

import os
import random

import numpy as np
import pytest
import torch
from ranks import CPU

from simclr.checkpoint.load import agreed_checkpoint, newest_valid, restore_rank
from simclr.checkpoint.manifest import CheckpointManifest, folder_name, verify
from simclr.checkpoint.save import Saver
from simclr.checkpoint.together import CheckpointError
from simclr.config import CheckpointConfig, TrainConfig
from simclr.settings import config_hash, to_plain
from simclr.world import open_world


@pytest.fixture
def world():
    with open_world(CPU) as alone:
        yield alone


def save(run_dir, world, step: int, keep: int = 3):
    config = TrainConfig()
    about = CheckpointManifest(
        step=step, num_steps=100, world_size=1, config=to_plain(config),
        config_hash=config_hash(config), corpus={}, torch=torch.__version__, files={},
    )  # fmt: skip
    state = {"encoder": {"weight": torch.full((100, 100), float(step))}, "step": step}
    saver = Saver(run_dir, world, CheckpointConfig(keep=keep))
    return saver.save(state, {"steps": step}, about)


@pytest.fixture
def run_dir(tmp_path, world):
    for step in (10, 20, 30):
        save(tmp_path, world, step)
    return tmp_path


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_newest_is_found_and_latest_points_to_it(run_dir):
    assert newest_valid(run_dir).name == folder_name(30)
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-000000030\n"


def test_old_ones_are_pruned_and_two_always_stay(run_dir, world):
    save(run_dir, world, 40, keep=2)
    assert names(run_dir) == ["latest", "step-000000030", "step-000000040"]
    save(run_dir, world, 50, keep=2)
    assert names(run_dir) == ["latest", "step-000000040", "step-000000050"]


def flip(path):
    data = bytearray(path.read_bytes())
    position = random.Random(0).randrange(len(data))
    data[position] ^= 1 << 3
    path.write_bytes(data)


FAULTS = {
    "truncated": lambda folder: os.truncate(folder / "state.pt", 1000),
    "flipped bit": lambda folder: flip(folder / "state.pt"),
    "flipped bit in a rank's file": lambda folder: flip(folder / "rank-0000.pt"),
    "missing file": lambda folder: (folder / "state.pt").unlink(),
    "missing manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest of a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(run_dir, fault, caplog):
    FAULTS[fault](run_dir / "checkpoints" / folder_name(30))
    assert newest_valid(run_dir, set_aside=True).name == folder_name(20)
    assert "bad-step-000000030" in names(run_dir)
    assert "passed over" in caplog.text


def test_looking_does_not_touch_a_damaged_checkpoint(run_dir):
    FAULTS["truncated"](run_dir / "checkpoints" / folder_name(30))
    assert newest_valid(run_dir).name == folder_name(20)
    assert folder_name(30) in names(run_dir)


def test_damage_to_all_is_an_error_and_not_a_fresh_start(run_dir):
    for step in (10, 20, 30):
        FAULTS["truncated"](run_dir / "checkpoints" / folder_name(step))
    with pytest.raises(ValueError, match="none of the 3 checkpoints"):
        newest_valid(run_dir)


def test_no_checkpoint_is_none(tmp_path):
    assert newest_valid(tmp_path) is None


class Killed(BaseException):
    """Stands for a SIGKILL at a chosen point of a save."""


@pytest.mark.parametrize(
    "point",
    ["torch.save", "simclr.checkpoint.save.fsync", "simclr.checkpoint.save.write_manifest",
     "simclr.checkpoint.save.publish", "simclr.checkpoint.save.write_text",
     "simclr.checkpoint.save.prune"],
)  # fmt: skip
def test_a_kill_at_any_point_of_a_save_leaves_a_valid_checkpoint(
    run_dir, world, point, monkeypatch
):
    def die(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(point, die)
    with pytest.raises(Killed):
        save(run_dir, world, 40)
    monkeypatch.undo()
    published = point.rsplit(".", 1)[1] in ("write_text", "prune")
    assert newest_valid(run_dir).name == folder_name(40 if published else 30)
    agreed_checkpoint(run_dir, world)  # as the next attempt does
    save(run_dir, world, 50)
    assert newest_valid(run_dir).name == folder_name(50)
    assert not [name for name in names(run_dir) if name.startswith(".")]


def test_a_full_disk_leaves_the_older_checkpoint(run_dir, world, monkeypatch):
    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(run_dir, world, 40)
    assert newest_valid(run_dir).name == folder_name(30)


def test_random_state_and_a_ranks_own_state_come_back(run_dir, world):
    folder = save(run_dir, world, 60)
    expected = (random.random(), np.random.rand(), torch.rand(3))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert restore_rank(folder, world) == {"steps": 60}
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert again[:2] == expected[:2]
    assert torch.equal(again[2], expected[2])


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_types(run_dir):
    folder = newest_valid(run_dir)
    verify(folder)
    for path in folder.glob("*.pt"):
        torch.load(path, weights_only=True)
