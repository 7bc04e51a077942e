"""The state of all ranks becomes a checkpoint folder that is never seen half-written."""

from __future__ import annotations

import logging
import secrets
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from preprocess.shards.atomic import fsync, publish, write_text
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    SAVING_PREFIX,
    STATE_NAME,
    CheckpointManifest,
    describe_files,
    folder_name,
    verify,
    write_manifest,
)
from simclr.checkpoint.retention import best, prune
from simclr.checkpoint.snapshot import Snapshot, take
from simclr.checkpoint.together import CheckpointError, Together
from simclr.config import CheckpointConfig
from simclr.supervisor import Supervisor
from simclr.world import World

LATEST = "latest"

_log = logging.getLogger("simclr")


class Saver:
    """Saves the checkpoints of a run one after the other, in the training loop or beside it.

    Every rank must call its methods at the same steps.
    """

    def __init__(
        self, run_dir: Path, world: World, config: CheckpointConfig, supervisor: Supervisor
    ) -> None:
        self._run_dir, self._keep, self._supervisor = run_dir, config.keep, supervisor
        self._together = Together(world)
        self._beside = ThreadPoolExecutor(1, "save") if config.asynchronous else None
        self._under_way: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """True when the save beside the loop has ended, and not well."""
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def save(self, state: dict[str, Any], own: dict[str, Any], about: CheckpointManifest) -> Path:
        """Save this step, after the one before; return the folder it will have.

        Each rank writes its ``own`` state with its generators, rank 0 the shared ``state``. An
        asynchronous save takes copies and returns; ``wait`` tells that it is done.

        Raises:
            CheckpointError: this save failed, or the one before it, on any rank.
        """
        self.wait()
        snapshot = take(state, own, about, copy=self._beside is not None)
        if self._beside is None:
            self._write(snapshot)
        else:
            self._under_way = self._beside.submit(self._write, snapshot)
        return self._run_dir / CHECKPOINTS / folder_name(about.step)

    def wait(self) -> None:
        """Wait for the save under way.

        Raises:
            CheckpointError: it failed.
        """
        save, self._under_way = self._under_way, None
        if save is not None:
            save.result()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self._run_dir, snapshot, self._together, self._supervisor)
        except CheckpointError as error:
            raise CheckpointError(
                f"step {snapshot.about.step} could not be saved in {self._run_dir / CHECKPOINTS}: "
                f"{error}; older checkpoints are untouched, the same command goes on from them"
            ) from error.__cause__
        pinned = best(self._run_dir)
        step = pinned.step if pinned else None
        self._together.do_on_main(lambda: prune(self._run_dir, self._keep, step))


def write_checkpoint(
    run_dir: Path, snapshot: Snapshot, ranks: Together, supervisor: Supervisor
) -> None:
    """Write, then publish; every rank calls it at the same step.

    Only when all files are on the device does rank 0 write the manifest, ask the supervisor,
    rename the folder to its name and move ``latest``. A kill at any moment leaves older ones alone.

    Raises:
        CheckpointError: a rank could not write, or the supervisor refused.
    """
    final = run_dir / CHECKPOINTS / folder_name(snapshot.about.step)
    # A name of its own: a former attempt that still lives may be saving the same step.
    name = ranks.told_by_main(f"{SAVING_PREFIX}{final.name}-{secrets.token_hex(4)}")
    folder = final.with_name(name)
    try:
        # One action after the other, each awaited by all: whoever fails, nobody is left waiting in
        # a collective, and all raise the same words.
        ranks.do_on_main(lambda: folder.mkdir(parents=True))
        ranks.do(lambda: _write_state(folder / f"rank-{ranks.world.rank:04d}.pt", snapshot.own))
        ranks.do_on_main(lambda: _write_state(folder / STATE_NAME, snapshot.shared))
        ranks.do_on_main(lambda: _publish(folder, final, snapshot.about, supervisor))
    except CheckpointError:
        if ranks.world.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # make room again
        raise


def _publish(folder: Path, final: Path, about: CheckpointManifest, supervisor: Supervisor) -> None:
    write_manifest(folder, replace(about, files=describe_files(folder)))
    # After the folder was made, not before: see retention.sweep.
    supervisor.may_publish()
    if _is_whole(final):
        shutil.rmtree(folder)  # a restart may meet a step that is saved already
    else:
        publish(folder, final)
    # for people and scripts; loading looks for the newest whole one itself
    write_text(final.parent / LATEST, final.name + "\n")


def _is_whole(final: Path) -> bool:
    """Say whether a checkpoint stands under its name already; set a damaged one aside."""
    if not final.exists():
        return False
    try:
        verify(final)
    except ValueError as error:
        _log.warning("checkpoint replaced: %s", error)
        set_aside(final)
        return False
    return True


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint out of the readers' sight; a person may want to look at it."""
    name = f"bad-{folder.name}"
    taken = len(list(folder.parent.glob(f"{name}*")))
    folder.rename(folder.with_name(f"{name}-{taken}" if taken else name))


def _write_state(path: Path, state: dict[str, Any]) -> None:
    try:
        # Through a file of Python's: torch's own says of a full disk that a position is unexpected.
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    # Before the manifest vouches for it: after a crash a file may have its name and no content.
    fsync(path)
