"""The attempts of a run: who may publish, where each began, how it ended; one line an event.

Any process of a run may ask and note here; all that they share is the run folder.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.code_snapshot import running_snapshot
from jobs.slurm.environment import RankEnvironment
from jobs.slurm.preemption import Decision
from jobs.status.progress import read_progress
from preprocess.shards.atomic_io import write_json
from simclr.checkpoint.manifest import CHECKPOINTS, FOLDER_PATTERN, step_of

ATTEMPTS_NAME = "attempts.jsonl"
FENCE_NAME = "attempt.json"
_log = logging.getLogger("simclr")


class SupersededError(RuntimeError):
    """A later attempt has taken the run over; this one must not publish anything."""


class RunAttempt:
    """One start of a run, on its main process: notes what happens, and fences off older ones.

    Ranks of a node that Slurm has lost may train on beside their successors, and must not publish.
    As a metrics sink it ends them within an interval.

    Attributes:
        number: from 1.
    """

    def __init__(self, run_dir: Path, env: RankEnvironment) -> None:
        self.run_dir = run_dir
        earlier = read_attempts(run_dir)
        self.number = 1 + max((event["attempt"] for event in earlier), default=0)
        # now, before records of steps that are not saved are dropped
        self._reached = _reached(run_dir, earlier)
        self._mark = {"attempt": self.number, "host": socket.gethostname(), "time": time.time()}
        write_json(run_dir / FENCE_NAME, self._mark)
        self.note("start", **_described(env))

    def write(self, record: dict[str, Any]) -> None:
        """Take a metric record; it is only an occasion to look at the fence.

        Raises:
            SupersededError: a later attempt has begun.
        """
        self.may_publish()

    def started(self, step: int) -> None:
        """Note where training begins, and what of the attempt before was not saved."""
        self.note("training", first_step=step, lost_steps=max(0, self._reached - step))

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
        note(self.run_dir, self.number, event, **facts)


@dataclass(frozen=True, slots=True)
class Stopping:
    """One stop of a run, on each of its ranks; see ``jobs.slurm.preemption.StopRecord``.

    Attributes:
        run_dir: run folder.
        env: of this rank.
        attempt: its number, on the rank that writes the stop down; none elsewhere.
        step: optimizer steps done and saved.
        signal: what the ranks were told; ``lost`` when one of them is gone.
        cause: in words; empty leaves it to the signal and the decision.
    """

    run_dir: Path
    env: RankEnvironment
    attempt: int | None
    step: int
    signal: str
    cause: str = ""

    def idle_attempts(self) -> int:
        """Count the latest attempts of the job in a row that saved nothing, this one included."""
        return idle_attempts(read_attempts(self.run_dir), self.env.job_id, self.step)

    def decided(self, decision: Decision, reason: str = "") -> None:
        """Note the stop with what was decided; on the rank that speaks for all only."""
        if self.attempt is None:
            return
        facts: dict[str, object] = {"step": self.step, "signal": self.signal}
        cause = "; ".join(filter(None, (self.cause, reason)))
        facts |= {"decision": decision.value} | ({"cause": cause} if cause else {})
        note(self.run_dir, self.attempt, "stop", **facts, **_origin(self.env))

    def decision(self) -> Decision | None:
        """Return what was decided for this start of the job, once it is."""
        for event in reversed(read_attempts(self.run_dir)):
            if event["event"] == "stop" and _origin(self.env).items() <= event.items():
                return Decision(event["decision"])
        return None


def note(run_dir: Path, number: int, event: str, **facts: object) -> None:
    """Append a line to the attempts of a run: when, after how long, from which step on.

    A full disk does not keep it from ending as it should: then only the log has the line.
    """
    now = time.time()
    line: dict[str, object] = {"attempt": number, "event": event, "time": now}
    own = [entry for entry in read_attempts(run_dir) if entry["attempt"] == number]
    if own:
        line["duration_s"] = round(now - own[0]["time"], 1)
    line |= next(({"first_step": e["first_step"]} for e in own if "first_step" in e), {})
    text = json.dumps(line | facts)
    try:
        with (run_dir / ATTEMPTS_NAME).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        _log.warning("not in %s (%s): %s", ATTEMPTS_NAME, error, text)


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Return all events of a run in order; a line cut short by a crash is left out."""
    path = run_dir / ATTEMPTS_NAME
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                events.append(json.loads(line))
    return events


def number_of(events: Sequence[Mapping[str, Any]], env: RankEnvironment) -> int | None:
    """Return the number of this process' attempt; none if a later one has begun, or none yet."""
    starts = [event for event in events if event["event"] == "start"]
    if starts and _origin(env).items() <= starts[-1].items():
        return int(starts[-1]["attempt"])
    return None


def idle_attempts(events: Sequence[Mapping[str, Any]], job_id: str, step: int) -> int:
    """Count the latest attempts of a job, one after the other, that got nothing saved.

    Those of another job do not count, nor those before the job was held: a person has started or
    released it since, and may have mended what was wrong.

    Args:
        events: of the run, in order.
        job_id: Slurm's.
        step: of the newest checkpoint, 0 if there is none.
    """
    attempts = [list(group) for _, group in itertools.groupby(events, lambda e: e["attempt"])]
    idle = itertools.takewhile(lambda own: _is_idle(own, job_id, step), reversed(attempts))
    return len(list(idle))


def saved_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, valid or not; 0 if there is none."""
    folders = sorted((run_dir / CHECKPOINTS).glob(FOLDER_PATTERN))
    return step_of(folders[-1]) if folders else 0


def _is_idle(own: Sequence[Mapping[str, Any]], job_id: str, step: int) -> bool:
    if own[0].get("job_id") != job_id:
        return False
    if any(event.get("decision") == Decision.hold.value for event in own):
        return False
    first = [event["first_step"] for event in own if "first_step" in event]
    return not first or bool(first[0] >= step)  # without a first step it never came to train


def _reached(run_dir: Path, earlier: Sequence[Mapping[str, Any]]) -> int:
    """Return the last step that the attempt before is known to have done."""
    starts = [event["time"] for event in earlier if event["event"] == "start"]
    return read_progress(run_dir, starts[-1]).step if starts else 0


def _origin(env: RankEnvironment) -> dict[str, object]:
    return {"job_id": env.job_id, "restarts": env.restarts}


def _described(env: RankEnvironment) -> dict[str, object]:
    return {
        "launcher": env.launcher.value,
        **_origin(env),
        "num_ranks": env.num_ranks,
        "nodes": env.node_list or socket.gethostname(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "log": env.log,
        "code": running_snapshot(),
    }
