"""Save, find, load and prune the checkpoints of a run.

The trainer saves with ``Saver``; a checkpoint folder is complete and checksummed, or absent.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from preprocess.shards.atomic_io import fsync, publish, write_json, write_text
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    SAVING_PREFIX,
    STATE_NAME,
    CheckpointManifest,
    CheckpointVersionError,
    describe_files,
    folder_name,
    verify,
    write_manifest,
)
from simclr.config import CheckpointConfig
from simclr.distributed import DistributedContext, from_main_rank
from simclr.preemption import TrainerHooks

BEST_NAME = "best.json"
LATEST = "latest"  # for people and scripts; loading finds the newest valid checkpoint itself

_REMOVING_PREFIX = ".removing-"

_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint with the best probe score."""

    step: int
    score: float  # larger is better
    probe: str  # name of the score

    def pin(self, run_dir: Path) -> None:
        """Keep the complete checkpoint until a better one is pinned; main rank only.

        Never pin by contrastive loss: it can fall while representations get worse.
        """
        write_json(run_dir / CHECKPOINTS / BEST_NAME, asdict(self))


def best(run_dir: Path) -> Best | None:
    """Return the pinned checkpoint, None if it is missing or the file naming it is damaged."""
    try:
        text = (run_dir / CHECKPOINTS / BEST_NAME).read_text(encoding="utf-8")
        found = Best(**json.loads(text))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if (run_dir / CHECKPOINTS / folder_name(found.step)).is_dir() else None


def prune(run_dir: Path, keep: int) -> None:
    """Remove all checkpoints except the newest ``keep``, at least 1, and the pinned one."""
    pinned = best(run_dir)
    folders = sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN))
    for folder in folders[:-keep]:
        if pinned is not None and folder.name == folder_name(pinned.step):
            continue
        # Rename first, to hide it from readers: a kill in between leaves no partial checkpoint. On
        # NFS a folder cannot be removed while a file in it is open; the next attempt sweeps it.
        doomed = folder.with_name(f"{_REMOVING_PREFIX}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)  # left by a killed attempt
        try:
            folder.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            _log.warning("old checkpoint %s could not be removed: %s", folder.name, error)


def sweep(run_dir: Path) -> None:
    """Remove leftovers of killed attempts, before an attempt chooses its checkpoint.

    An earlier attempt may still be running, on a node that the scheduler has lost. Without its
    folder it cannot publish a checkpoint; ``before_publish`` stops any folder it creates later.
    """
    for prefix in (_REMOVING_PREFIX, SAVING_PREFIX):
        for left in (run_dir / CHECKPOINTS).glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)  # its owner may be removing it too


def _host_copy(tree: Any) -> Any:
    # Copies of all tensors of a nested state; the caller must synchronise with a GPU.
    if isinstance(tree, torch.Tensor):
        # Copy on the CPU too, where .cpu() would return the tensor that the next step changes.
        tensor = tree.detach()
        host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return host.copy_(tensor, non_blocking=True)
    if isinstance(tree, dict):
        return {key: _host_copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_host_copy, tree))
    return tree


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved, on any rank; older ones are untouched."""


class Saver:
    """Saves the checkpoints of a run one after another, synchronously or asynchronously.

    Every rank must call its methods at the same steps. It has its own process group: an
    asynchronous save must not share one with the training loop, since the order of their
    collectives would differ between ranks.
    """

    def __init__(
        self,
        run_dir: Path,
        context: DistributedContext,
        config: CheckpointConfig,
        hooks: TrainerHooks,
    ) -> None:
        self._run_dir, self._keep, self._hooks = run_dir, config.keep, hooks
        self._context = context
        # torch's stubs include a second type, for ranks outside the group; there are none here
        self._group: Any = None
        if context.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=context.timeout)
        self._executor = ThreadPoolExecutor(1, "save") if config.asynchronous else None
        self._under_way: Future[None] | None = None
        self._best: Best | None = None  # not pinned yet

    @property
    def has_failed(self) -> bool:
        """Whether the asynchronous save has ended with an error."""
        save = self._under_way
        return save is not None and save.done() and save.exception() is not None

    def save(
        self, state: dict[str, Any], about: CheckpointManifest, best: Best | None = None
    ) -> Path:
        """Save this step after the previous save has ended; return its final folder.

        Rank 0 writes; all ranks wait for it. An asynchronous save copies the state and returns;
        ``wait`` waits for its end. ``state`` contains tensors and plain types, nested in
        dictionaries and lists, equal on all ranks; ``about`` has no files yet; ``best`` pins the
        checkpoint once it is complete.

        Raises:
            CheckpointError: this save or the previous one failed, on any rank.
        """
        self.wait()
        self._best = best or self._best
        context = self._context
        if context.is_main and (self._executor or context.device.type == "cuda"):
            state = _host_copy(state)
            if context.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        if self._executor is None:
            self._write(state, about)
        else:
            self._under_way = self._executor.submit(self._write, state, about)
        return self._run_dir / CHECKPOINTS / folder_name(about.step)

    def wait(self) -> None:
        """Wait for the save in progress; raise its CheckpointError if it failed."""
        save, self._under_way = self._under_way, None
        if save is not None:
            save.result()

    def _write(self, state: dict[str, Any], about: CheckpointManifest) -> None:
        final = self._run_dir / CHECKPOINTS / folder_name(about.step)
        # A unique name: an earlier attempt that is still running may be saving the same step.
        name = f"{SAVING_PREFIX}{final.name}-{secrets.token_hex(4)}"
        try:
            self._run_on_main(lambda: self._publish(final.with_name(name), state, about))
        except CheckpointError as error:
            raise CheckpointError(
                f"step {about.step} could not be saved in {final.parent}: "
                f"{error}; older checkpoints are untouched, the same command continues from them"
            ) from error.__cause__

        def tidy() -> None:
            """Pin before pruning: the previous best may go only once its successor is complete."""
            try:
                # asynchronously, an earlier one may be complete but not pinned, or have failed
                if self._best and (final.parent / folder_name(self._best.step)).is_dir():
                    self._best.pin(self._run_dir)
                self._best = None
            finally:  # a full disk needs the room in any case
                prune(self._run_dir, self._keep)

        self._run_on_main(tidy)

    def _run_on_main(self, action: Callable[[], object]) -> None:
        """Run an action on the main rank, wait on all ranks, and raise its failure on all."""
        failure, box = None, [""]
        if self._context.is_main:
            try:
                action()
            except Exception as error:  # raised below, else the other ranks would hang
                failure, box = error, [f"rank 0 on {socket.gethostname()}: {error}"]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        if box[0]:
            raise CheckpointError(box[0]) from failure

    def _publish(self, folder: Path, state: dict[str, Any], about: CheckpointManifest) -> None:
        """Write, then rename to the final name; a kill at any time leaves older ones untouched."""
        final = folder.with_name(folder_name(about.step))
        if _is_whole(final):  # saved already: what failed came later, such as the pin
            self._hooks.before_publish()
            fsync(final.parent)
            return
        folder.mkdir(parents=True)
        try:
            _write_state(folder / STATE_NAME, state)
            write_manifest(folder, replace(about, files=describe_files(folder)))
            # After creating the folder, not before: see ``sweep``.
            self._hooks.before_publish()
            publish(folder, final)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)  # free the space
            raise
        try:
            write_text(final.parent / LATEST, final.name + "\n")
        except OSError as error:
            _log.warning("%s is saved, but %s could not be written: %s", final.name, LATEST, error)


def _is_whole(final: Path) -> bool:
    # sets a damaged checkpoint aside
    if not final.exists():
        return False
    try:
        verify(final)
    except ValueError as error:
        _log.warning("checkpoint replaced: %s", error)
        _rename_bad(final)
        return False
    return True


def _rename_bad(folder: Path) -> None:
    # hides it from readers, but keeps it for inspection
    name = f"bad-{folder.name}"
    taken = len(list(folder.parent.glob(f"{name}*")))
    folder.rename(folder.with_name(f"{name}-{taken}" if taken else name))


def _write_state(path: Path, state: dict[str, Any]) -> None:
    try:
        # Via a Python file: on a full disk, torch's own reports only an unexpected position.
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    # Before the manifest is written: after a crash, an unsynced file may exist without content.
    fsync(path)


def newest_valid(run_dir: Path, *, set_aside: bool = False) -> Path | None:
    """Return the newest checkpoint whose files all match its manifest, or None.

    With ``set_aside``, damaged ones are renamed to ``bad-...``; only the run itself may do so.

    Raises:
        ValueError: there are checkpoints, but none is valid, or one has another format version.
            Starting over would hide the loss.
    """
    # By name, which sorts by step; `latest` is for people, and may be outdated after a kill.
    folders = sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN), reverse=True)
    for folder in folders:
        try:
            verify(folder)
        except CheckpointVersionError:
            raise  # intact, and readable by the release that wrote it
        except ValueError as error:
            _log.warning("skipped a checkpoint: %s", error)
            if set_aside:
                _rename_bad(folder)
        else:
            return folder
    if folders:
        raise ValueError(
            f"none of the {len(folders)} checkpoints in {run_dir / CHECKPOINTS} is valid; "
            "remove the folder to start over, or restore one"
        )
    return None


def agreed_checkpoint(run_dir: Path, context: DistributedContext) -> Path | None:
    """Return the checkpoint found by rank 0, on every rank.

    Only rank 0 looks: on a network file system ranks may temporarily see different folders, and
    would resume from different steps. ValueError if none is valid, or the folder is not writable.
    """
    choice = ""
    if context.is_main:
        try:
            sweep(run_dir)
            found = newest_valid(run_dir, set_aside=True)
            choice = str(found) if found else ""
        except (OSError, ValueError) as error:
            choice = f"!{error}"  # the other ranks wait for an answer in any case
    choice = from_main_rank(choice)
    if choice.startswith("!"):
        raise ValueError(choice[1:])
    return Path(choice) if choice else None


def load_state(folder: Path, device: torch.device) -> dict[str, Any]:
    """Load the state shared by all ranks; only tensors and plain types are unpickled."""
    state: dict[str, Any] = torch.load(folder / STATE_NAME, map_location=device, weights_only=True)
    return state
