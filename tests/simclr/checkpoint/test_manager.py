"""A checkpoint is whole or absent: every fault is passed over, none is loaded."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil

import pytest
import torch
from rank_jobs import failing_once
from ranks import CPU

from simclr.checkpoint import manager
from simclr.checkpoint.manager import (
    CheckpointError,
    Saver,
    agreed_checkpoint,
    newest_valid,
)
from simclr.checkpoint.manifest import (
    CheckpointManifest,
    config_hash,
    folder_name,
    newest_checkpoint,
    step_of,
    verify,
)
from simclr.config import CheckpointConfig, TrainConfig, to_plain
from simclr.distributed import distributed_context
from simclr.preemption import TrainerHooks


@pytest.fixture
def context():
    with distributed_context(CPU) as alone:
        yield alone


def about(step: int) -> CheckpointManifest:
    config = TrainConfig()
    return CheckpointManifest(
        step=step, num_steps=100, world_size=1, config=to_plain(config),
        config_hash=config_hash(config), dataset={}, torch=torch.__version__, files={},
    )  # fmt: skip


def save(run_dir, context, step: int, keep: int = 3, hooks: TrainerHooks | None = None):
    state = {"encoder": {"weight": torch.full((100, 100), float(step))}, "step": step}
    saver = Saver(run_dir, context, CheckpointConfig(keep=keep), hooks or TrainerHooks())
    return saver.save(state, about(step))


@pytest.fixture
def run_dir(tmp_path, context):
    for step in (10, 20, 30):
        save(tmp_path, context, step)
    return tmp_path


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_newest_is_found_and_latest_points_to_it(run_dir):
    assert newest_valid(run_dir).name == folder_name(30)
    assert (run_dir / "checkpoints" / "latest").read_text() == "step-000000030\n"


def test_old_ones_are_pruned_and_two_always_stay(run_dir, context):
    save(run_dir, context, 40, keep=2)
    assert names(run_dir) == ["latest", "step-000000030", "step-000000040"]
    save(run_dir, context, 50, keep=2)
    assert names(run_dir) == ["latest", "step-000000040", "step-000000050"]


def flip(path):
    data = bytearray(path.read_bytes())
    position = random.Random(0).randrange(len(data))
    data[position] ^= 1 << 3
    path.write_bytes(data)


FAULTS = {
    "truncated": lambda folder: os.truncate(folder / "state.pt", 1000),
    "flipped bit": lambda folder: flip(folder / "state.pt"),
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
    assert "skipped a checkpoint" in caplog.text


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
    ["torch.save", "simclr.checkpoint.manager.fsync", "simclr.checkpoint.manager.write_manifest",
     "simclr.checkpoint.manager.publish", "simclr.checkpoint.manager.write_text",
     "simclr.checkpoint.manager.prune"],
)  # fmt: skip
def test_a_kill_at_any_point_of_a_save_leaves_a_valid_checkpoint(
    run_dir, context, point, monkeypatch
):
    def die(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(point, die)
    with pytest.raises(Killed):
        save(run_dir, context, 40)
    monkeypatch.undo()
    published = point.rsplit(".", 1)[1] in ("write_text", "prune")
    assert newest_valid(run_dir).name == folder_name(40 if published else 30)
    agreed_checkpoint(run_dir, context)  # as the next attempt does
    save(run_dir, context, 50)
    assert newest_valid(run_dir).name == folder_name(50)
    assert not [name for name in names(run_dir) if name.startswith(".")]


class TakenOver(TrainerHooks):
    """A launcher that has started the run again elsewhere."""

    def before_publish(self) -> None:
        raise RuntimeError("attempt 2 has taken over")


def test_a_former_attempt_that_still_lives_publishes_nothing(run_dir, context):
    with pytest.raises(CheckpointError, match=r"step 40 could not be saved .* has taken over"):
        save(run_dir, context, 40, hooks=TakenOver())
    assert newest_valid(run_dir).name == folder_name(30)
    assert not [name for name in names(run_dir) if name.startswith(".") or "40" in name]


class SweptWhileAsking(TrainerHooks):
    """A former attempt is let through just before its successor picks a checkpoint."""

    def __init__(self, run_dir, context) -> None:
        self.run_dir, self.context = run_dir, context

    def before_publish(self) -> None:
        self.picked = agreed_checkpoint(self.run_dir, self.context)


def test_no_order_of_two_attempts_lets_the_former_publish_behind_the_choice(run_dir, context):
    successor = SweptWhileAsking(run_dir, context)
    with pytest.raises(CheckpointError, match="No such file"):
        save(run_dir, context, 40, hooks=successor)
    assert successor.picked.name == folder_name(30) == newest_valid(run_dir).name


def test_a_pinned_checkpoint_outlives_newer_ones(run_dir, context):
    manager.Best(10, 0.8, "k-NN").pin(run_dir)
    for step in (40, 50):
        save(run_dir, context, step, keep=2)
    folders = [name for name in names(run_dir) if name.startswith("step")]
    assert folders == [folder_name(step) for step in (10, 40, 50)]
    assert manager.best(run_dir) == manager.Best(10, 0.8, "k-NN")


def test_a_best_checkpoint_is_pinned_once_it_is_complete(run_dir, context):
    class Failing(TrainerHooks):
        def before_publish(self):
            raise OSError(5, "Input/output error")

    former = manager.Best(10, 0.7, "k-NN")
    former.pin(run_dir)
    config = CheckpointConfig(asynchronous=True)
    failing = Saver(run_dir, context, config, Failing())
    failing.save({}, about(40), manager.Best(40, 0.8, "k-NN"))
    with pytest.raises(CheckpointError, match="step 40 could not be saved"):
        failing.wait()
    assert manager.best(run_dir) == former
    saver = Saver(run_dir, context, config, TrainerHooks())
    saver.save({}, about(50), manager.Best(50, 0.9, "k-NN"))
    saver.wait()
    assert manager.best(run_dir) == manager.Best(50, 0.9, "k-NN")


def test_an_asynchronous_save_keeps_the_state_of_its_step(tmp_path, context):
    saver = Saver(tmp_path, context, CheckpointConfig(asynchronous=True), TrainerHooks())
    weight = torch.full((500, 500), 1.0)
    folder = saver.save({"weight": weight}, about(1))
    weight.fill_(2.0)  # the next step
    saver.wait()
    assert torch.load(folder / "state.pt", weights_only=True)["weight"].unique() == 1.0


def test_a_failure_of_an_asynchronous_save_is_raised_by_the_next_wait(tmp_path, context):
    (tmp_path / "checkpoints").write_text("no folder")
    saver = Saver(tmp_path, context, CheckpointConfig(asynchronous=True), TrainerHooks())
    saver.save({}, about(1))
    with pytest.raises(CheckpointError, match="step 1 could not be saved"):
        saver.wait()


def test_every_flipped_bit_is_noticed_or_changes_nothing(run_dir):
    folder = run_dir / "checkpoints" / folder_name(30)
    files = sorted(folder.iterdir())
    draw = random.Random(7)
    sound = verify(folder)
    for _ in range(200):
        path = draw.choice(files)
        data = path.read_bytes()
        position = draw.randrange(len(data))
        path.write_bytes(flipped(data, position, draw.randrange(8)))
        try:
            assert verify(folder) == sound  # a blank between two words of the manifest
            assert path.name == "manifest.json"
        except ValueError:
            assert newest_valid(run_dir).name == folder_name(20)
        path.write_bytes(data)
    assert newest_valid(run_dir) == folder


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_a_file_that_cannot_grow_leaves_the_older_checkpoint_and_the_reason(run_dir, context):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # half of the shared state
    try:
        with pytest.raises(CheckpointError, match=r"File too large; older .* are untouched"):
            save(run_dir, context, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_valid(run_dir).name == folder_name(30)


# state, manifest and its folder; from then on renamed
@pytest.mark.parametrize("call", range(5))
def test_a_disk_that_fails_at_any_flush_leaves_a_valid_checkpoint(
    run_dir, context, call, monkeypatch
):
    calls, flush = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise OSError(5, "Input/output error")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(run_dir, context, 40)
    monkeypatch.undo()
    assert newest_valid(run_dir).name == folder_name(40 if call >= 4 else 30)
    save(run_dir, context, 50)
    assert newest_valid(run_dir).name == folder_name(50)


def test_a_pointer_that_cannot_be_written_fails_no_save(run_dir, context, caplog):
    latest = run_dir / "checkpoints" / "latest"
    latest.unlink()
    latest.mkdir()
    save(run_dir, context, 40)
    assert newest_valid(run_dir).name == folder_name(40)
    assert "step-000000040 is saved, but latest could not be written" in caplog.text


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(
    run_dir, context, caplog, monkeypatch
):
    remove = os.rmdir

    def busy(path, *args, **kwargs):  # as NFS answers while somebody reads a file in there
        if ".removing-" in os.fspath(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        return remove(path, *args, **kwargs)

    monkeypatch.setattr(os, "rmdir", busy)
    save(run_dir, context, 40)
    assert newest_valid(run_dir).name == folder_name(40)
    assert "step-000000010 could not be removed" in caplog.text
    monkeypatch.undo()
    agreed_checkpoint(run_dir, context)  # as the next attempt does
    assert not [name for name in names(run_dir) if name.startswith(".")]


def test_a_checkpoint_of_another_format_version_is_refused_and_left_alone(run_dir):
    folder = run_dir / "checkpoints" / folder_name(30)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    manifest["format_version"] = 1
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": digest}))
    with pytest.raises(ValueError, match=r"of format version 1, .* reads version 2; .* run_dir"):
        newest_valid(run_dir, set_aside=True)
    assert folder.is_dir()


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_types(run_dir):
    folder = newest_valid(run_dir)
    verify(folder)
    for path in folder.glob("*.pt"):
        torch.load(path, weights_only=True)


def test_copies_beside_the_checkpoints_are_neither_counted_nor_removed(run_dir, context):
    checkpoints = run_dir / "checkpoints"
    for name in ("step-000000030-good", "step-000000030.bak", "step-best"):
        shutil.copytree(checkpoints / folder_name(30), checkpoints / name)
    save(run_dir, context, 40, keep=2)
    folders = [folder_name(30), "step-000000030-good", "step-000000030.bak"]
    assert names(run_dir) == ["latest", *folders, folder_name(40), "step-best"]
    assert newest_valid(run_dir, set_aside=True).name == folder_name(newest_step(run_dir))
    assert newest_step(run_dir) == 40


def newest_step(run_dir) -> int:
    return step_of(newest_checkpoint(run_dir))


def test_a_pin_that_fails_keeps_no_old_checkpoint_on_a_full_disk(run_dir, context, monkeypatch):
    failing_once(monkeypatch)
    saver = Saver(run_dir, context, CheckpointConfig(keep=2), TrainerHooks())
    top = manager.Best(40, 0.8, "k-NN")
    with pytest.raises(CheckpointError, match="No space left"):
        saver.save({}, about(40), top)
    assert names(run_dir) == ["latest", folder_name(30), folder_name(40)]
    saver.save({}, about(40), top)
    assert manager.best(run_dir) == top


def test_a_best_that_an_asynchronous_save_could_not_pin_is_pinned_by_the_next(
    run_dir, context, monkeypatch
):
    failing_once(monkeypatch)
    config = CheckpointConfig(keep=2, asynchronous=True)
    saver, top = Saver(run_dir, context, config, TrainerHooks()), manager.Best(40, 0.8, "k-NN")
    saver.save({}, about(40), top)
    with pytest.raises(CheckpointError, match="No space left"):
        saver.wait()
    for step in (50, 60, 70):
        saver.save({}, about(step))
        saver.wait()
    assert manager.best(run_dir) == top
