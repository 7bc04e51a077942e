"""Process of one tracker: sends ``metrics.jsonl`` as it grows, until stdin is closed.

Started by ``jobs.tracking.sink`` as ``python -m jobs.tracking.follower NAME RUN``. Its stdout is
for problems, which the training logs; library output goes to stderr, the tracker's log.

A tracker has one run per run folder, with every step once. The id of that run is in
``RUN/tracking/NAME.json``, written before the run is created, so that an attempt killed in
between does not lead to a second one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from jobs.run_dir import CONFIG_NAME, FENCE_NAME, PROVENANCE_NAME, read_attempts, read_yaml
from jobs.tracking.sink import ARTIFACTS_NAME, FINISH_S, FOLDER
from preprocess.shards.atomic_io import write_json
from simclr.monitoring.metrics import METRICS_NAME

PROJECT = "simclr-s2"
POLL_S = 1.0
_LONGEST_PAUSE_S = 60.0  # between attempts to reach an unreachable server
# Position in the run, not logged as a metric.
_POSITION = ("step", "num_steps", "epoch", "time")


class Tracker(ABC):
    """One run in one tracker; methods may raise any exception of the tracker's library."""

    name: str

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / FOLDER
        self._path = self.folder / f"{self.name}.json"
        self.state: dict[str, str] = {"id": uuid4().hex[:12], "link": ""}
        if self._path.exists():
            self.state |= json.loads(self._path.read_text(encoding="utf-8"))

    @abstractmethod
    def open(self) -> int:
        """Open or create the run; return the last step that it has, 0 for none."""

    @abstractmethod
    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Add metric records, oldest first, of steps that the run does not have."""

    def add_artifact(self, name: str, path: Path) -> None:  # noqa: B027 - not every tracker has them
        """Add a file to the run, or a new version of it."""

    @abstractmethod
    def close(self, ending: str) -> None:
        """Send pending data; ``ending`` is the last event of the run, such as ``finished``."""

    def remember(self, **facts: str) -> None:
        """Save facts for later attempts and for simclr-status."""
        self.state |= facts
        write_json(self._path, self.state)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run, as in its ``config.yaml``."""
        return read_yaml((self.run_dir / CONFIG_NAME).read_text(encoding="utf-8"))

    def origin(self) -> dict[str, str]:
        """Return the commit, and the jobs and nodes of all attempts."""
        path = self.run_dir / PROVENANCE_NAME
        code = json.loads(path.read_text(encoding="utf-8"))["code"] if path.exists() else {}
        starts = [event for event in read_attempts(self.run_dir) if event["event"] == "start"]
        jobs = dict.fromkeys(str(event.get("job_id", "")) for event in starts)
        nodes = dict.fromkeys(str(event.get("nodes") or event.get("host", "")) for event in starts)
        return {
            "run_dir": str(self.run_dir.resolve()),
            "commit": (code.get("commit") or "unknown") + " + changes" * bool(code.get("changed")),
            "attempts": str(len(starts)),
            "job_id": " ".join(filter(None, jobs)),
            "nodes": " ".join(filter(None, nodes)),
        }


class TensorBoard(Tracker):
    """Event files in ``RUN/tensorboard``, which each attempt rewrites from all records."""

    name = "tensorboard"

    def open(self) -> int:
        """Remove the event files of earlier attempts; all remaining records are written again."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        logs = self.run_dir / "tensorboard"
        for old in logs.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventFileWriter(str(logs))
        self._is_empty = True
        self.remember(link=f"tensorboard --logdir {shlex.quote(str(self.run_dir.resolve()))}")
        return 0

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Write every number as a scalar, with the time at which it was measured."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        for record in records:
            if self._is_empty:
                # makes an open TensorBoard discard what it has read from earlier files
                self._add(record, session_log=SessionLog(status=SessionLog.START))
                self._add(record, summary=self._described())
                self._is_empty = False
            values = [Summary.Value(tag=key, simple_value=n) for key, n in _numbers(record)]
            self._add(record, summary=Summary(value=values))
        self._writer.flush()

    def close(self, ending: str) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, record: dict[str, Any], **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=record["step"], wall_time=record["time"], **content))

    def _described(self) -> Any:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        text = json.dumps({"origin": self.origin(), "settings": self.settings()}, indent=1)
        tensor = TensorProto(dtype="DT_STRING", string_val=[f"```\n{text}\n```".encode()])
        tensor.tensor_shape.CopyFrom(TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]))
        about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        return Summary(value=[Summary.Value(tag="run", metadata=about, tensor=tensor)])


class Wandb(Tracker):
    """A run in Weights & Biases: on its server, or offline in ``RUN/tracking/wandb``.

    The server keeps its steps and receives only later ones. Without a server, each attempt writes
    one offline run with the records of all attempts, which replaces the previous one.
    """

    name = "wandb"

    def open(self) -> int:
        """Connect to the server unless WANDB_MODE says otherwise; if that fails, run offline."""
        for key in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(key, str(self.folder))  # not in a home folder with a quota
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ["WANDB_SILENT"] = "true"
        import wandb

        self.remember()  # the id, before the run exists
        for old in (self.folder / "wandb").glob(f"*run-*-{self.state['id']}"):
            shutil.rmtree(old)
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online":
            try:
                self._run = self._init("online")
            except wandb.Error as error:
                sys.stderr.write(f"offline, since {error}\n")
                wandb.teardown()  # otherwise the id would be in use
                mode = "offline"
        if mode != "online":
            self._run = self._init(mode)
        upload = f"wandb sync {shlex.quote(str(Path(self._run.dir).parent.resolve()))}"
        self.remember(link=self._run.url or f"offline; upload it when the run has ended: {upload}")
        return max(0, int(self._run.step) - 1)

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Log one record per step; W&B sends them in the background, even after a long outage."""
        for record in records:
            values = {**dict(_numbers(record)), "_timestamp": record["time"]}
            self._run.log(values, step=record["step"], commit=True)

    def add_artifact(self, name: str, path: Path) -> None:
        """Add a version of an artifact."""
        import wandb

        artifact = wandb.Artifact(f"{name}-{self.state['id']}", type=name)
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, ending: str) -> None:
        """Send the rest; a stopped run is shown as preempted until its next attempt."""
        if ending == "stop":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if ending == "finished" else 1)

    def _init(self, mode: str) -> Any:
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.state["id"],
            name=os.environ.get("WANDB_NAME", self.run_dir.resolve().name),
            dir=str(self.folder),
            mode=mode,
            # a resumed offline run would be appended to the server's data
            resume="allow" if mode == "online" else None,
            config={**self.settings(), "origin": self.origin()},
            allow_val_change=True,  # jobs and nodes change between attempts
            settings=wandb.Settings(
                console="off",
                disable_git=True,  # a remote URL may contain a token; ``origin`` has the commit
                init_timeout=FINISH_S / 3,
                x_stats_pid=os.getppid(),  # the training, not this process
            ),
        )


class Mlflow(Tracker):
    """A run in MLflow: on the server of MLFLOW_TRACKING_URI, else in ``RUN/tracking/mlflow.db``.

    The store keeps its steps and receives only later ones.
    """

    name = "mlflow"

    def open(self) -> int:
        """Find the run by its tag, or create it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # the follower itself retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        server = os.environ.get("MLFLOW_TRACKING_URI", "")
        # One store per run, with one writer: SQLite's locks do not work across nodes.
        uri = server or f"sqlite:///{self.folder.resolve()}/mlflow.db"
        self.remember()  # the id, before the run exists
        self._client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if known := self._client.get_experiment_by_name(name):
            experiment = str(known.experiment_id)
        else:
            here = None if server else f"file://{self.folder.resolve()}/mlflow-artifacts"
            experiment = str(self._client.create_experiment(name, artifact_location=here))
        found = self._client.search_runs([experiment], f"tags.simclr_run = '{self.state['id']}'")
        run = found[0] if found else self._create(experiment)
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")
        for key, value in self.origin().items():
            self._client.set_tag(self._run_id, key, value)
        self.remember(
            link=f"{server}/#/experiments/{experiment}/runs/{self._run_id}"
            if server.startswith("http")
            else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        )
        # every record has a learning rate, but not always a loss
        held = self._client.get_metric_history(self._run_id, "learning_rate")
        return max((metric.step for metric in held), default=0)

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Log the numbers in records; a batch that is sent again is not stored twice."""
        from mlflow.entities import Metric

        # the server's limit; whole records, as the next attempt goes on after the last step
        size = 1000 // max(map(len, records))
        for start in range(0, len(records), size):
            metrics = [
                Metric(key, value, round(record["time"] * 1000), record["step"])
                for record in records[start : start + size]
                for key, value in _numbers(record)
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def add_artifact(self, name: str, path: Path) -> None:
        """Copy a file to the run."""
        self._client.log_artifact(self._run_id, str(path), name)

    def close(self, ending: str) -> None:
        """Set the state of the run; a stopped run remains ``running``, as it will continue."""
        if ending in ("finished", "failed"):
            self._client.set_terminated(self._run_id, ending.upper())

    def _create(self, experiment: str) -> Any:
        from mlflow.entities import Param

        name = self.run_dir.resolve().name
        tags = {"simclr_run": self.state["id"]}
        run = self._client.create_run(experiment, run_name=name, tags=tags)
        parameters = [Param(key, str(value)[:500]) for key, value in _flat(self.settings())]
        for start in range(0, len(parameters), 100):  # the server's limit
            self._client.log_batch(run.info.run_id, params=parameters[start : start + 100])
        return run


TRACKERS: dict[str, type[Tracker]] = {one.name: one for one in (TensorBoard, Wandb, Mlflow)}


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if key not in _POSITION and isinstance(value, int | float):
            yield key, value


def _flat(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class MetricsReader:
    """Reads the new complete lines of ``metrics.jsonl``."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_NAME
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the records since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        records = []
        for line in whole.splitlines():
            # cut short by a full disk; ``read_metrics`` warns about it
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records


class Follower:
    """Sends the records of a run to one tracker, which it opens."""

    def __init__(self, tracker: Tracker, run_dir: Path) -> None:
        self._tracker, self._run_dir = tracker, run_dir
        self._reader = MetricsReader(run_dir)
        self._fence = _fence(run_dir)
        self._pending: list[dict[str, Any]] = []
        self._reached: int | None = None

    def follow(self, wait: Callable[[float], bool], complain: Callable[[str], None]) -> bool:
        """Send records until training is over; return whether all were sent.

        Args:
            wait: waits for the given seconds; True once training is over.
            complain: reports an error to the training: the first of a series, and one at the end.
        """
        pause_s, in_trouble = 0.0, False
        while True:
            over = wait(pause_s)
            if _fence(self._run_dir) != self._fence:
                return True  # a later attempt has taken the run over: its tracker sends the rest
            try:
                self._send()
                if over:
                    self._finish()
            except Exception as error:  # a tracker's library may raise anything; training continues
                if over or not in_trouble:
                    first = (str(error).splitlines() or [""])[0]
                    complain(f"{type(error).__name__}: {first}; the records are in {METRICS_NAME}")
                in_trouble, pause_s = True, min(max(2 * pause_s, POLL_S), _LONGEST_PAUSE_S)
            else:
                in_trouble, pause_s = False, POLL_S
            if over:
                return not in_trouble

    def _send(self) -> None:
        """Open the tracker if necessary and send new records; after an error, send them again."""
        self._pending += self._reader.read()
        if self._reached is None:
            self._reached = self._tracker.open()
        if new := [record for record in self._pending if record["step"] > self._reached]:
            self._tracker.write(new)
            self._reached = new[-1]["step"]
        self._pending = []

    def _finish(self) -> None:
        """Add the files listed by later commands, if they still exist, and close the tracker."""
        path = self._run_dir / FOLDER / ARTIFACTS_NAME
        named = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, file in named.items():
            if Path(file).is_file():
                self._tracker.add_artifact(name, Path(file))
        events = read_attempts(self._run_dir)
        self._tracker.close(events[-1]["event"] if events else "")


def _fence(run_dir: Path) -> bytes:
    path = run_dir / FENCE_NAME
    return path.read_bytes() if path.exists() else b""


def _stdin_closes(seconds: float) -> bool:
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return False
    # A hard limit for the tracker: on Slurm the nodes stay allocated until it ends.
    signal.alarm(round(FINISH_S))
    return True


def _is_only_one(run_dir: Path, name: str) -> bool:
    """Lock the tracker of a run for this process; True also if the file system has no locks."""
    number = os.open(run_dir / FOLDER / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return False
    except OSError:
        pass
    return True  # the lock is held until the process ends


def main() -> None:
    """Follow the run named by the arguments."""
    name, run_dir = sys.argv[1], Path(sys.argv[2])
    # the training process handles signals, and closes stdin when it ends
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    complaints = os.dup(1)
    os.dup2(2, 1)

    def complain(text: str) -> None:
        """Write a line to the training process, which may have ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(complaints, f"{text}\n".encode())
        sys.stderr.write(f"{text}\n")

    while not _is_only_one(run_dir, name):
        # Either the previous attempt is sending its last records, or training is running and its
        # tracker will add the files that an evaluation has listed.
        if _stdin_closes(POLL_S):
            raise SystemExit(0)
    sys.stderr.write(time.strftime("%Y-%m-%d %H:%M:%S start\n"))
    sent = Follower(TRACKERS[name](run_dir), run_dir).follow(_stdin_closes, complain)
    signal.alarm(round(FINISH_S))  # libraries may wait for their servers at exit
    raise SystemExit(0 if sent else 1)


if __name__ == "__main__":
    main()
