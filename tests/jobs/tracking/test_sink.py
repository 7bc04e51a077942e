"""Trackers can neither stop nor hold up a training, and a missing one is refused before it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest

from jobs.tracking import sink
from jobs.tracking.sink import (
    TrackerProcesses,
    Tracking,
    check_installed,
    log_artifacts,
    tracker_links,
)


def starts(monkeypatch, code: str) -> None:
    """Let a program of our own stand in the place of the follower."""

    def start(name, run_dir, stdin):
        (run_dir / "tracking").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=stdin, stdout=subprocess.PIPE
        )
        sink.os.set_blocking(process.stdout.fileno(), False)
        return process

    monkeypatch.setattr(sink, "_start", start)


def test_a_tracker_that_hangs_holds_up_nothing_but_its_own_end(tmp_path, monkeypatch, caplog):
    starts(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(sink, "FINISH_S", 1.0)
    with TrackerProcesses([Tracking.wandb], tmp_path) as processes:
        for step in range(20_000):  # more than any pipe takes
            processes.write({"step": step})
    assert "tracking by wandb did not end within 1 s" in caplog.text


def test_a_tracker_that_dies_is_one_warning(tmp_path, monkeypatch, caplog):
    starts(monkeypatch, "raise SystemExit(3)")
    with TrackerProcesses([Tracking.mlflow], tmp_path) as processes:
        processes.write({"step": 1})
        processes._processes["mlflow"].wait()
        for step in range(2, 9):
            processes.write({"step": step})
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    assert "mlflow.log" in caplog.text


def test_what_a_tracker_complains_of_is_in_the_log_of_the_training(tmp_path, monkeypatch, caplog):
    starts(monkeypatch, "print('no route to host'); import sys; sys.stdin.read()")
    with TrackerProcesses([Tracking.mlflow], tmp_path) as processes:
        end = time.monotonic() + 600
        while not caplog.records and time.monotonic() < end:
            processes.write({"step": 1})
            time.sleep(0.05)
    assert caplog.messages == ["tracking by mlflow: no route to host"]


def test_a_process_that_cannot_start_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "tracking").write_text("a file where the folder should be")
    with TrackerProcesses([Tracking.tensorboard], tmp_path) as processes:
        processes.write({"step": 1})
        processes.write({"step": 2})
    assert len(caplog.messages) == 1
    assert "could not start" in caplog.text


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(sink, "find_spec", lambda name: None if name == "wandb" else object())
    check_installed([Tracking.tensorboard, Tracking.mlflow])
    with pytest.raises(ValueError, match=r"tracking has wandb.*pip install wandb, or leave"):
        check_installed([Tracking.tensorboard, Tracking.wandb])


def test_without_trackers_nothing_is_started_or_written(tmp_path):
    with TrackerProcesses([], tmp_path) as processes:
        processes.write({"step": 1})
    log_artifacts(tmp_path, {"evaluation": tmp_path / "evaluation.json"})
    assert tracker_links(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
