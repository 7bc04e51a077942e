"""Each tracker holds one run for a run folder and every step once, whatever ends its attempts."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from trackers import (
    mlflow_metrics,
    mlflow_rows,
    tensorboard_scalars,
    wandb_history,
    wandb_records,
)

from jobs.run_dir import RunAttempt, freeze
from jobs.tracking.follower import Mlflow
from jobs.tracking.sink import TrackerProcesses, Tracking, log_artifacts, tracker_links
from simclr.config import TrainConfig
from simclr.monitoring.metrics import JsonLines

SECRET = "5ec2e7" * 7
READERS = {
    Tracking.tensorboard: tensorboard_scalars,
    Tracking.wandb: wandb_history,
    Tracking.mlflow: mlflow_metrics,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No server, and keys that must not be written anywhere."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "runs" / "a run"
    freeze(folder, TrainConfig(run_dir=str(folder), epochs=7))
    return folder


def record(step: int, attempt: int) -> dict[str, object]:
    rate = {"num_steps": 9, "epoch": 0, "learning_rate": 0.5, "time": time.time()}
    return {"step": step, **rate, "loss": 10.0 * attempt + step, "probe/f1": 0.5, "norm": None}


class Attempt:
    """One attempt of a run, as ``simclr-pretrain`` makes it."""

    def __init__(self, run_dir: Path, tracking: Tracking, saved: int) -> None:
        origin = {"job_id": "4711", "restarts": 0, "nodes": "node[1-2]"}
        self.record = RunAttempt(run_dir, origin)
        self.processes = TrackerProcesses([tracking], run_dir)
        self.lines = JsonLines(run_dir)
        self.lines.rewind(saved)

    def train(self, *steps: int) -> None:
        for step in steps:
            one = record(step, self.record.number)
            self.processes.write(one)
            self.lines.write(one)

    @property
    def process(self):
        (process,) = self.processes._processes.values()
        return process

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def holds(read, run_dir: Path, last: int) -> bool:
    try:
        return last in [step for step, _ in read(run_dir, "loss")]
    except Exception:
        return False  # not made yet, or half written


def wait_for(run_dir: Path, tracking: Tracking, last: int) -> None:
    end = time.monotonic() + 600
    while not holds(READERS[tracking], run_dir, last):
        assert time.monotonic() < end, (run_dir / "tracking" / f"{tracking.value}.log").read_text()
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("tracking", Tracking)
def test_a_run_that_is_killed_and_trains_steps_again_is_one_run_with_every_step_once(
    run_dir, tracking
):
    first = Attempt(run_dir, tracking, saved=0)
    first.train(1, 2, 3, 4, 5)
    if tracking is Tracking.wandb:  # its offline file is flushed when it likes
        time.sleep(8)
    else:
        wait_for(run_dir, tracking, 5)
    first.kill()
    second = Attempt(run_dir, tracking, saved=3)
    with second.processes:
        second.train(4, 5, 6, 7)
        second.record.record("finished", checkpoint="step-000000007")
    found = READERS[tracking](run_dir, "loss")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    # replaced where the store can forget, kept where it cannot
    lost = 10 if tracking is Tracking.mlflow else 20
    assert [value for _, value in found] == [11, 12, 13, lost + 4, lost + 5, 26, 27]
    assert [value for _, value in READERS[tracking](run_dir, "probe/f1")] == [0.5] * 7
    ((name, link),) = tracker_links(run_dir).items()
    assert name == tracking.value
    assert str(run_dir) in shlex.split(link)[-1]  # as a shell reads it
    everything = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # of sqlalchemy, in mlflow
def test_no_number_of_a_step_is_lost_between_two_batches(run_dir, monkeypatch):
    (run_dir / "tracking").mkdir()
    records = [record(step, 1) for step in range(1, 401)]
    first, second = Mlflow(run_dir), Mlflow(run_dir)
    first.open()
    send, batches = first._client.log_batch, []

    def killed_after_one(run_id, metrics):
        if batches:
            raise KeyboardInterrupt
        batches.append(metrics)
        send(run_id, metrics=metrics)

    monkeypatch.setattr(first._client, "log_batch", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        first.write(records)
    second.state = json.loads((run_dir / "tracking" / "mlflow.json").read_text())
    reached = second.open()
    second.write([one for one in records if one["step"] > reached])
    for name in ("loss", "learning_rate", "probe/f1"):
        assert [step for step, _ in mlflow_metrics(run_dir, name)] == [*range(1, 401)]


@pytest.mark.slow
def test_mlflow_holds_settings_origin_state_and_artifacts(run_dir):
    with Attempt(run_dir, Tracking.mlflow, saved=0).processes as sink:
        sink.write(record(1, 1))
        JsonLines(run_dir).write(record(1, 1))
        RunAttempt.record(_last(run_dir), "finished", checkpoint="step-000000001")
    (run_dir / "evaluation.json").write_text("{}")
    log_artifacts(run_dir, {"evaluation": run_dir / "evaluation.json"})
    assert mlflow_rows(run_dir, "SELECT name, status FROM runs") == [("a run", "FINISHED")]
    settings = dict(mlflow_rows(run_dir, "SELECT key, value FROM params"))
    assert (settings["epochs"], settings["optim.warmup_epochs"]) == ("7", "0.0")
    tags = dict(mlflow_rows(run_dir, "SELECT key, value FROM tags"))
    assert (tags["job_id"], tags["nodes"]) == ("4711", "node[1-2]")
    assert len(tags["commit"]) >= 7
    assert list(run_dir.glob("tracking/mlflow-artifacts/*/artifacts/evaluation/evaluation.json"))


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_settings_origin_and_artifacts(run_dir):
    with Attempt(run_dir, Tracking.wandb, saved=0).processes as sink:
        sink.write(record(1, 1))
        JsonLines(run_dir).write(record(1, 1))
    (run_dir / "evaluation.json").write_text("{}")
    log_artifacts(run_dir, {"evaluation": run_dir / "evaluation.json"})
    records = {one.WhichOneof("record_type"): one for one in wandb_records(run_dir)}
    config = {item.key: json.loads(item.value_json) for item in records["run"].run.config.update}
    assert (records["run"].run.display_name, config["epochs"]) == ("a run", 7)
    assert (config["origin"]["job_id"], config["origin"]["nodes"]) == ("4711", "node[1-2]")
    assert records["artifact"].artifact.type == "evaluation"
    assert wandb_history(run_dir, "loss") == [(1, 11.0)]
    link = tracker_links(run_dir)["wandb"]
    (folder,) = shlex.split(link.rpartition("wandb sync ")[2])  # as a shell reads it
    assert Path(folder).is_dir()


@pytest.mark.slow
def test_without_a_server_wandb_goes_offline_by_itself(run_dir, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(run_dir))  # no login of whoever runs the tests
    with Attempt(run_dir, Tracking.wandb, saved=0).processes as sink:
        sink.write(record(1, 1))
        JsonLines(run_dir).write(record(1, 1))
    assert wandb_history(run_dir, "loss") == [(1, 11.0)]
    assert "offline" in (run_dir / "tracking" / "wandb.log").read_text()


def _last(run_dir: Path) -> RunAttempt:
    attempt = RunAttempt.__new__(RunAttempt)
    attempt.run_dir, attempt.number = run_dir, 1
    return attempt
