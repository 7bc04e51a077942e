"""The folder of a run: frozen settings, submitted jobs, attempts and heartbeats."""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from preprocess.shards.atomic_io import append_json_line, read_json_lines, write_json, write_text
from preprocess.shards.manifest import MANIFEST_NAME
from simclr.checkpoint.manifest import (
    binding_settings,
    differing_settings,
    newest_checkpoint,
    step_of,
)
from simclr.config import TrainConfig, from_plain, to_plain
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

PACKAGES = ("simclr-s2", "torch", "torchvision", "numpy", "h5py", "rasterio", "submitit")
CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
SUBMISSION_NAME = "submission-{command}.json"  # commands on one run share its job folder
JOB_FOLDER = "slurm"  # records and logs of submitit, for either executor
ATTEMPTS_NAME = "attempts.jsonl"
FENCE_NAME = "attempt.json"
HEARTBEATS = "heartbeats"  # one folder per start of a job, one file per rank
_log = logging.getLogger("simclr")


def provenance() -> dict[str, Any]:
    """Return the provenance of this process; omits the environment, which may hold secrets."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "code": code_version(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "host": {"name": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def code_version(folder: Path) -> dict[str, Any]:
    """Return commit and whether files differ from it; both None outside a git checkout."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = None if commit is None else bool(_git(folder, "status", "--porcelain", "-uno"))
    return {"commit": commit, "changed": changed}


def changes(folder: Path) -> str:
    """Return the diff of tracked files against the commit; empty outside git."""
    return _git(folder, "diff", "HEAD", "--binary") or ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # installed from a package: there is no checkout, and that is fine
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that was submitted for a folder."""

    job_id: str  # of Slurm
    command: str  # name of the command
    arguments: list[str]  # of the submitting process, as in sys.argv
    time: float  # of submission, seconds since 1970
    log: str  # file of its main process
    settings: str = ""  # of the command; empty in records of earlier versions


def check_run_dir(run_dir: Path, config: TrainConfig) -> None:
    """Refuse a run folder that contains a run with other settings, or shards.

    Until the first checkpoint there is nothing to protect, and settings may be corrected.
    """
    # a typing error would mix checkpoints into a packed source
    if (run_dir / MANIFEST_NAME).exists():
        raise ValueError(f"run_dir is {run_dir}, which holds packed shards; give another run_dir")
    if not _has_begun(run_dir):
        return
    frozen = binding_settings(frozen_config(run_dir))
    if differing := differing_settings(frozen, binding_settings(config)):
        raise ValueError(
            f"run_dir {run_dir} holds a run with other settings ({'; '.join(differing)}); "
            "give another run_dir, or the settings it was started with"
        )


def freeze(run_dir: Path, config: TrainConfig) -> None:
    """Write settings and provenance of a new run; keep those of a run that continues."""
    if not _has_begun(run_dir):
        write_json(run_dir / PROVENANCE_NAME, provenance())
        write_text(run_dir / CONFIG_NAME, to_yaml(to_plain(config)))


def _has_begun(run_dir: Path) -> bool:
    return (run_dir / CONFIG_NAME).exists() and newest_checkpoint(run_dir) is not None


def frozen_config(run_dir: Path) -> TrainConfig:
    """Read the settings of a run; ValueError: they are missing or unreadable."""
    path = run_dir / CONFIG_NAME
    try:
        return from_plain(TrainConfig, read_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{run_dir} is not a run folder: it has no {CONFIG_NAME}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_submission(folder: Path, submission: Submission) -> None:
    """Record the job that was submitted for a folder, in one file per command."""
    write_json(folder / SUBMISSION_NAME.format(command=submission.command), asdict(submission))


def read_submission(folder: Path, command: str) -> Submission | None:
    """Return the latest job that was submitted for a folder by a command, if there is one."""
    path = folder / SUBMISSION_NAME.format(command=command)
    return Submission(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def to_yaml(plain: dict[str, Any]) -> str:
    """Return plain settings as YAML, in their order."""
    return str(OmegaConf.to_yaml(OmegaConf.create(plain)))


def read_yaml(text: str) -> dict[str, Any]:
    """Return plain settings from ``to_yaml``; ValueError: it is not YAML, or not a mapping."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"not readable as YAML ({error})") from error
    if not isinstance(plain, dict):
        raise ValueError("not a mapping")
    return cast(dict[str, Any], plain)


class SupersededError(RuntimeError):
    """A later attempt has taken the run over; this one must not publish anything."""


class RunAttempt:
    """One start of a run, on its main process: records events, and fences off older attempts.

    Ranks on a node that Slurm has lost may keep training beside their successors, and must not
    publish. As a metrics sink, it ends them within one logging interval. ``origin`` goes into the
    record, with at least ``job_id`` and ``restarts``; ``number`` counts from 1.
    """

    def __init__(self, run_dir: Path, origin: Mapping[str, object]) -> None:
        self.run_dir = run_dir
        earlier = read_attempts(run_dir)
        self.number = 1 + max((event["attempt"] for event in earlier), default=0)
        # now, before records of unsaved steps are dropped
        self._reached = _last_step_done(run_dir, earlier)
        self._fence = {"attempt": self.number, "host": platform.node(), "time": time.time()}
        write_json(run_dir / FENCE_NAME, self._fence)
        self.record("start", **origin)

    def write(self, record: dict[str, Any]) -> None:
        """Accept a metric record, only to check the fence."""
        self.check_fence()

    def training_begins(self, step: int) -> None:
        """Record the first step, and how many steps of the previous attempt were not saved."""
        self.record("training", first_step=step, lost_steps=max(0, self._reached - step))

    def check_fence(self) -> None:
        """Check the fence, before publishing; SupersededError: a later attempt has begun."""
        fence = json.loads((self.run_dir / FENCE_NAME).read_text(encoding="utf-8"))
        if fence != self._fence:
            raise SupersededError(
                f"attempt {fence['attempt']} on {fence['host']} has taken over {self.run_dir}; "
                f"this is attempt {self.number} and ends here"
            )

    def record(self, event: str, **facts: object) -> None:
        """Append an event of this attempt."""
        record_event(self.run_dir, self.number, event, **facts)


def record_event(run_dir: Path, number: int, event: str, **facts: object) -> None:
    """Append an event to the attempts of a run, with its time, duration and first step.

    If the disk is full, only the log has the line, and the run still ends as it should.
    """
    now = time.time()
    line: dict[str, object] = {"attempt": number, "event": event, "time": now}
    try:
        own = [entry for entry in read_attempts(run_dir) if entry["attempt"] == number]
        if own:
            line["duration_s"] = round(now - own[0]["time"], 1)
        line |= next(({"first_step": e["first_step"]} for e in own if "first_step" in e), {})
        append_json_line(run_dir / ATTEMPTS_NAME, line | facts)
    except OSError as error:
        _log.warning("not in %s (%s): %s", ATTEMPTS_NAME, error, json.dumps(line | facts))


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Return all events of a run, except lines cut short by a full disk or a crash.

    In order, attempt by attempt: one that was cut off may record its stop after the next start.
    """
    events = read_json_lines(run_dir / ATTEMPTS_NAME)
    whole = [event for event in events if {"attempt", "event", "time"} <= event.keys()]
    return sorted(whole, key=lambda event: int(event["attempt"]))


def attempt_number(events: Sequence[Mapping[str, Any]], start: Mapping[str, object]) -> int | None:
    """Return the attempt number of a job's start; None unless it is the last recorded start."""
    starts = [event for event in events if event["event"] == "start"]
    if starts and start.items() <= starts[-1].items():
        return int(starts[-1]["attempt"])
    return None


def is_superseded(events: Sequence[Mapping[str, Any]], start: Mapping[str, object]) -> bool:
    """Return whether the run has been started again since this start of a job."""
    own = [start.items() <= event.items() for event in events if event["event"] == "start"]
    return any(own) and not own[-1]


def idle_attempts(events: Sequence[Mapping[str, Any]], job_id: str, step: int) -> int:
    """Count the latest consecutive attempts of a job that saved nothing.

    Those of another job do not count, nor those before the job was held: a person has since started
    or released it, and may have fixed the problem. Those that Slurm ended (preemption, time limit,
    a lost node) are not the run's fault and are skipped. ``events`` are in order and include the
    latest attempt's stop; ``step`` is that of the newest checkpoint, 0 for none.
    """
    count = 0
    attempts = [list(group) for _, group in itertools.groupby(events, lambda e: e["attempt"])]
    for own in reversed(attempts):
        begun = [event["first_step"] for event in own if "first_step" in event]
        is_held = own is not attempts[-1] and any(e.get("decision") == "hold" for e in own)
        if own[0].get("job_id") != job_id or is_held or (begun and begun[0] < step):
            break
        # ended by a lost rank or a failed save; Slurm leaves no such record
        stops = [event for event in own if event["event"] == "stop"]
        count += any(stop.get("signal") == "lost" or "save_error" in stop for stop in stops)
    return count


def saved_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, valid or not; 0 if there is none."""
    folder = newest_checkpoint(run_dir)
    return step_of(folder) if folder else 0


def _last_step_done(run_dir: Path, earlier: Sequence[Mapping[str, Any]]) -> int:
    """Return the last step that the previous attempt is known to have done."""
    starts = [event["time"] for event in earlier if event["event"] == "start"]
    if not starts:
        return 0
    path = run_dir / METRICS_NAME
    records = read_metrics(path)[-1:] if path.exists() else []
    beats = read_heartbeats(run_dir, starts[-1])
    return max((record["step"] or 0 for record in (*records, *beats)), default=0)


def read_heartbeats(run_dir: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """Return each rank's latest heartbeat, except those of earlier starts, before ``since``."""
    beats = []
    for path in sorted(run_dir.glob(f"{HEARTBEATS}/*/rank-*.json")):
        try:
            beat = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # removed meanwhile, or written when the disk was full
        if beat["time"] >= since:
            beats.append(beat)
    return beats
