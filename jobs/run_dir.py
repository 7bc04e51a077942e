"""The folder of a run: its frozen settings, and the jobs that were submitted for it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

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
SUBMISSION_NAME = "submission-{command}.json"  # commands on one run share its job folder
JOB_FOLDER = "slurm"  # records and logs of submitit, for either executor


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that was submitted for a folder.

    Attributes:
        job_id: Slurm's number.
        command: name of what it runs.
        arguments: what submitted it, as in ``sys.argv``.
        time: when, seconds since 1970.
        log: where its main process writes.
    """

    job_id: str
    command: str
    arguments: list[str]
    time: float
    log: str


def check_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Refuse settings for a folder that holds something else.

    Until the first checkpoint there is nothing to protect, and settings may be corrected.

    Raises:
        ValueError: the folder holds a run of other settings, which the message lists, or shards.
    """
    # a typing error would mix checkpoints into a packed source
    if (run_dir / MANIFEST_NAME).exists():
        raise ValueError(f"run_dir is {run_dir}, which holds packed shards; give another run_dir")
    if not _has_begun(run_dir):
        return
    frozen = binding_settings(frozen_config(run_dir))
    differing = differing_settings(frozen, binding_settings(config))
    if differing:
        raise ValueError(
            f"run_dir {run_dir} holds a run with other settings ({'; '.join(differing)}); "
            "give another run_dir, or the settings it was started with"
        )


def freeze(run_dir: Path, config: TrainConfig) -> None:
    """Write settings and provenance of a new run; those of a run that continues stay."""
    if not _has_begun(run_dir):
        write_json(run_dir / PROVENANCE_NAME, provenance())
        write_text(run_dir / CONFIG_NAME, to_yaml(to_plain(config)))


def _has_begun(run_dir: Path) -> bool:
    return (run_dir / CONFIG_NAME).exists() and any(run_dir.glob(CHECKPOINT_GLOB))


def frozen_config(run_dir: Path) -> TrainConfig:
    """Read the settings of a run.

    Raises:
        ValueError: there are none, or they are not readable.
    """
    path = run_dir / CONFIG_NAME
    try:
        return from_plain(TrainConfig, read_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{run_dir} is not a run folder: it has no {CONFIG_NAME}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_submission(folder: Path, submission: Submission) -> None:
    """Remember which job was submitted for a folder, apart for each command."""
    write_json(folder / SUBMISSION_NAME.format(command=submission.command), asdict(submission))


def read_submission(folder: Path, command: str) -> Submission | None:
    """Return the latest job of a command that was submitted for a folder, if there is one."""
    path = folder / SUBMISSION_NAME.format(command=command)
    if not path.exists():
        return None
    return Submission(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class CompletionMarker:
    """A file that says that a command has succeeded with certain settings.

    Attributes:
        job_dir: of the command.
        name: of the command.
        config: its settings, a dataclass.
    """

    job_dir: Path
    name: str
    config: Any

    @property
    def path(self) -> Path:
        """Where the file lies; other settings have another one."""
        settings = json.dumps(to_plain(self.config), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return self.job_dir / "done" / f"{self.name}-{digest}.json"

    def exists(self) -> bool:
        """Return whether the command has succeeded before."""
        return self.path.exists()

    def write(self, result: str) -> None:
        """Mark success, with what the command returned."""
        write_json(self.path, {"command": self.name, "time": time.time(), "result": result})


def to_yaml(plain: dict[str, Any]) -> str:
    """Return plain settings as YAML, in their order."""
    return str(OmegaConf.to_yaml(OmegaConf.create(plain)))


def read_yaml(text: str) -> dict[str, Any]:
    """Return plain settings from ``to_yaml``.

    Raises:
        ValueError: it is not YAML, or not a mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"not readable as YAML ({error})") from error
    if not isinstance(plain, dict):
        raise ValueError("not a mapping")
    return cast(dict[str, Any], plain)
