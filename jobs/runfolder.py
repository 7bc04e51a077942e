"""The folder of a run: its frozen settings, and the jobs that were submitted for it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.provenance import provenance
from jobs.schema import read_yaml, to_yaml
from preprocess.shards.atomic import write_json, write_text
from preprocess.shards.manifest import MANIFEST_NAME
from simclr.config import TrainConfig
from simclr.settings import binding_settings, differing_settings, from_plain, to_plain

CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
CHECKPOINTS = "checkpoints/step-*"
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
    if not path.exists() or not any(run_dir.glob(CHECKPOINTS)):
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
