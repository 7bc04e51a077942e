"""The folder of a run: its frozen settings, its attempts, and the job that was submitted for it."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.place import Place
from jobs.provenance import provenance
from jobs.requeue import Decision
from jobs.schema import read_yaml, to_yaml
from jobs.snapshot import running_snapshot
from preprocess.shards.atomic import write_json, write_text
from simclr.config import TrainConfig
from simclr.settings import binding_settings, differing_settings, from_plain, to_plain

CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
ATTEMPTS_NAME = "attempts.jsonl"
FENCE_NAME = "attempt.json"
CHECKPOINTS = "checkpoints/step-*"
SUBMISSION_NAME = "submission-{verb}.json"  # verbs on one run share the folder of their jobs
JOB_FOLDER = "slurm"  # records and logs of submitit, for either executor


class SupersededError(RuntimeError):
    """A later attempt has taken the run over; this one must not publish anything."""


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
        ValueError: the folder holds a run of other settings; the message lists them.
    """
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


class Attempt:
    """One start of a run, on its main process: notes what happens, and fences off older ones.

    It supervises the run: ranks of a node that Slurm has lost may train on beside their
    successors, and must not publish. As a metrics sink it ends them within an interval.
    """

    def __init__(self, run_dir: Path, place: Place) -> None:
        self.run_dir = run_dir
        earlier = read_attempts(run_dir)
        self.number = 1 + max((event["attempt"] for event in earlier), default=0)
        self._first: dict[str, int] = {}
        self._mark = {"attempt": self.number, "host": socket.gethostname(), "time": time.time()}
        write_json(run_dir / FENCE_NAME, self._mark)
        self.note("start", **_described(place))

    def write(self, record: dict[str, Any]) -> None:
        """Take a metric record; it is only an occasion to look at the fence.

        Raises:
            SupersededError: a later attempt has begun.
        """
        self.may_publish()

    def started(self, step: int) -> None:
        """Remember where training begins, for the note of how it ends."""
        self._first = {"first_step": step}

    def may_publish(self) -> None:
        """Look at the fence, before each publication of a checkpoint.

        Raises:
            SupersededError: a later attempt has begun.
        """
        mark = json.loads((self.run_dir / FENCE_NAME).read_text(encoding="utf-8"))
        if mark != self._mark:
            raise SupersededError(
                f"attempt {mark['attempt']} on {mark['host']} has taken over {self.run_dir}; "
                f"this is attempt {self.number} and ends here"
            )

    def note(self, event: str, **facts: object) -> None:
        """Append a line to the attempts of the run."""
        line = {"attempt": self.number, "event": event, "time": time.time(), **self._first, **facts}
        with (self.run_dir / ATTEMPTS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(frozen=True, slots=True)
class Stopping:
    """One stop of a run, on each of its ranks; see ``jobs.requeue.StopRecord``.

    Attributes:
        run_dir: run folder.
        place: of this rank.
        attempt: on the main rank.
        step: optimizer steps done and saved.
        signal: what the ranks were told.
    """

    run_dir: Path
    place: Place
    attempt: Attempt | None
    step: int
    signal: str

    def idle_stops(self) -> int:
        """Count the latest stops in a row at the same step, this one included."""
        steps = [event["step"] for event in self._stops()]
        same = itertools.takewhile(lambda step: step == self.step, reversed(steps))
        return 1 + len(list(same))

    def decided(self, decision: Decision) -> None:
        """Note the stop with what was decided; on the main rank only."""
        if self.attempt:
            facts = {"step": self.step, "signal": self.signal, "decision": decision.value}
            self.attempt.note("stop", **facts, **self._origin())

    def decision(self) -> Decision | None:
        """Return what the main rank decided for this start of the job, once it has."""
        for event in reversed(self._stops()):
            if self._origin().items() <= event.items():
                return Decision(event["decision"])
        return None

    def _stops(self) -> list[dict[str, Any]]:
        return [event for event in read_attempts(self.run_dir) if event["event"] == "stop"]

    def _origin(self) -> dict[str, object]:
        return {"job_id": self.place.job_id, "restarts": self.place.restarts}


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Return all events of a run in order; a line cut short by a crash is left out."""
    path = run_dir / ATTEMPTS_NAME
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                events.append(json.loads(line))
    return events


def write_submission(folder: Path, submission: Submission) -> None:
    """Remember which job was submitted for a folder, apart for each verb."""
    write_json(folder / SUBMISSION_NAME.format(verb=submission.verb), asdict(submission))


def read_submission(folder: Path, verb: str) -> Submission | None:
    """Return the latest job of a verb that was submitted for a folder, if there is one."""
    path = folder / SUBMISSION_NAME.format(verb=verb)
    if not path.exists():
        return None
    return Submission(**json.loads(path.read_text(encoding="utf-8")))


def _described(place: Place) -> dict[str, object]:
    return {
        "place": place.kind.value,
        "job_id": place.job_id,
        "restarts": place.restarts,
        "num_ranks": place.num_ranks,
        "nodes": place.node_list or socket.gethostname(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "log": place.log,
        "code": running_snapshot(),
    }
