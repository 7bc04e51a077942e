"""The folder of a run: its frozen settings, and the jobs that were submitted for it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.cli.schema import read_yaml, to_yaml
from jobs.command import Task, again
from preprocess.shards.atomic_io import write_json, write_text
from preprocess.shards.manifest import MANIFEST_NAME
from simclr.config import TrainConfig
from simclr.config_io import binding_settings, differing_settings, from_plain, to_plain

PACKAGES = ("simclr-s2", "torch", "torchvision", "numpy", "h5py", "rasterio", "submitit")


def provenance() -> dict[str, Any]:
    """Return the record; the environment is left out, as it may hold secrets."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "code": code_version(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
    }


def code_version(folder: Path) -> dict[str, Any]:
    """Return commit and whether files differ from it; both None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "changed": None}
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "-uno"))}


def changes(folder: Path) -> str:
    """Return what differs from the commit in the files that git knows; nothing outside git."""
    return _git(folder, "diff", "HEAD", "--binary") or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # installed from a package: there is no checkout, and that is no fault
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
CHECKPOINT_GLOB = "checkpoints/step-*"
SUBMISSION_NAME = "submission-{verb}.json"  # verbs on one run share the folder of their jobs
JOB_FOLDER = "slurm"  # records and logs of submitit, for either executor


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that was submitted for a folder.

    Attributes:
        job_id: Slurm's number.
        verb: what it does.
        command: arguments that submitted it.
        time: when, seconds since 1970.
        log: where its main process writes.
    """

    job_id: str
    verb: str
    command: list[str]
    time: float
    log: str


def freeze(run_dir: Path, config: TrainConfig) -> None:
    """Write the settings and the provenance of a new run; refuse others for one that goes on.

    Until the first checkpoint there is nothing to protect, and settings may be mended.

    Raises:
        ValueError: the folder holds a run of other settings, which the message lists, or shards.
    """
    # a slip of the hand would mix checkpoints into a packed source
    if (run_dir / MANIFEST_NAME).exists():
        raise ValueError(f"run_dir is {run_dir}, which holds packed shards; give another run_dir")
    path = run_dir / CONFIG_NAME
    if not path.exists() or not any(run_dir.glob(CHECKPOINT_GLOB)):
        write_json(run_dir / PROVENANCE_NAME, provenance())
        write_text(path, to_yaml(to_plain(config)))
        return
    frozen = binding_settings(frozen_config(run_dir))
    differing = differing_settings(frozen, binding_settings(config))
    if differing:
        raise ValueError(
            f"run_dir {run_dir} holds a run of other settings ({'; '.join(differing)}); "
            "give another run_dir, or the settings it was started with"
        )


def frozen_config(run_dir: Path) -> TrainConfig:
    """Read the settings of a run.

    Raises:
        ValueError: there are none, or they are not readable.
    """
    path = run_dir / CONFIG_NAME
    try:
        return from_plain(TrainConfig, read_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{run_dir} is no run folder: it has no {CONFIG_NAME}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_submission(folder: Path, submission: Submission) -> None:
    """Remember which job was submitted for a folder, apart for each verb."""
    write_json(folder / SUBMISSION_NAME.format(verb=submission.verb), asdict(submission))


def read_submission(folder: Path, verb: str) -> Submission | None:
    """Return the latest job of a verb that was submitted for a folder, if there is one."""
    path = folder / SUBMISSION_NAME.format(verb=verb)
    if not path.exists():
        return None
    return Submission(**json.loads(path.read_text(encoding="utf-8")))


FOLDER_NAME = "done"


@dataclass(frozen=True)
class Marking:
    """A task as ``dispatch`` runs it: the same work, and a mark when it has succeeded."""

    task: Any

    checkpoint = __submitit_checkpoint__ = again

    @property
    def verb(self) -> str:
        """The task's."""
        return str(self.task.verb)

    @property
    def folder(self) -> Path:
        """The task's."""
        return Path(self.task.folder)

    @property
    def folders(self) -> Sequence[Path]:
        """Of the runs that the task makes, where it makes several."""
        return getattr(self.task, "folders", ())

    def __call__(self) -> str:
        """Do the work; of several processes the one that speaks for all leaves the mark."""
        result = str(self.task())
        if result:
            record = {"verb": self.verb, "time": time.time(), "result": result}
            write_json(_mark(self.task), record)
        return result


def is_done(task: Task) -> bool:
    """Say whether the task has succeeded before, with the same settings."""
    return _mark(task).exists()


def _mark(task: Task) -> Path:
    settings = json.dumps(to_plain(task.config), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return task.folder / FOLDER_NAME / f"{task.verb}-{digest}.json"
