"""Trainings that share a job are as they would be alone, and stop and come back together."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from make_data import packed_arrays

from jobs.commands.pretrain import Pretrain
from jobs.commands.together import Stopped, Together, TogetherConfig
from jobs.config import ClusterConfig, Executor
from jobs.launch import dispatch
from jobs.run_dir import is_done
from jobs.slurm.preemption import MAX_IDLE
from simclr.config import AugmentConfig, DataConfig, EncoderName, ModelConfig, TrainConfig

HERE = ClusterConfig()
DRIVER = """
import pickle, sys
from jobs.config import ClusterConfig
from jobs.launch import dispatch
dispatch(pickle.load(sys.stdin.buffer), ClusterConfig())
"""


def runs(folder: Path, max_steps: int) -> list[TrainConfig]:
    shards = packed_arrays(folder / "shards", 16, bands=["B02", "B04"])
    return [
        TrainConfig(
            shards=[str(shards)],
            run_dir=str(folder / f"run-{seed}"),
            seed=seed,
            max_steps=max_steps,
            epochs=1000,
            log_every_steps=1,
            data=DataConfig(bands=["B02", "B04"], global_batch_size=8, num_threads=1),
            augment=AugmentConfig(view_size_px=12),
            model=ModelConfig(encoder=EncoderName.resnet18),
        )
        for seed in (0, 1)
    ]


def losses(config: TrainConfig) -> list[float]:
    lines = Path(config.run_dir, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def events(config: TrainConfig, kind: str) -> list[dict[str, object]]:
    path = Path(config.run_dir, "attempts.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if json.loads(line)["event"] == kind]


@pytest.mark.slow
def test_trainings_that_are_stopped_together_come_back_and_end_as_if_alone(tmp_path):
    steps = 30
    both = runs(tmp_path, steps)
    driver = start(both)
    end = time.monotonic() + 900
    while not all(Path(run.run_dir, "metrics.jsonl").exists() for run in both):
        assert time.monotonic() < end
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)  # to the one process that Slurm knows of, as scancel does
    assert driver.wait(300) == 1
    stops = [events(run, "stop")[-1] for run in both]
    assert all(0 < stop["step"] < steps for stop in stops)
    assert not any(is_done(Pretrain(run)) for run in both)
    assert start(both).wait(600) == 0
    assert all(is_done(Pretrain(run)) for run in both)
    assert [len(events(run, "start")) for run in both] == [2, 2]
    alone = replace(both[1], run_dir=str(tmp_path / "alone"))
    dispatch(Pretrain(alone), HERE)
    assert losses(both[1]) == losses(alone)
    assert losses(both[0]) != losses(alone)


@pytest.mark.slow
def test_the_failure_of_one_training_is_named_and_does_not_end_the_others(tmp_path):
    both = runs(tmp_path, 2)
    both[0].data.bands = ["B04", "B11"]  # of which the shards hold one
    with pytest.raises(RuntimeError, match=r"^1 of 2 failed: .*run-0: ValueError: band B11 not in"):
        dispatch(Together(TogetherConfig(runs=both)), HERE)
    assert is_done(Pretrain(both[1]))


def test_trainings_of_several_ranks_share_no_job(tmp_path):
    cluster = ClusterConfig(executor=Executor.local, tasks_per_node=2)
    with pytest.raises(ValueError, match="runs_per_job is 2 but a job has 2 ranks"):
        dispatch(Together(TogetherConfig(runs=runs(tmp_path, 2))), cluster)


def test_a_job_is_futile_only_if_no_training_in_it_saves_anything(tmp_path):
    both = runs(tmp_path, 2)
    stopped = Stopped([Pretrain(run) for run in both])
    for run in both:
        Path(run.run_dir).mkdir()
        lines = [
            {"attempt": k, "event": "start", "job_id": "", "first_step": 0} for k in range(MAX_IDLE)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        Path(run.run_dir, "attempts.jsonl").write_text(text)
    assert stopped.idle_attempts() == MAX_IDLE
    Path(both[1].run_dir, "checkpoints", "step-000000002").mkdir(parents=True)
    assert stopped.step == 2
    assert stopped.idle_attempts() == 0


def start(both: list[TrainConfig]) -> subprocess.Popen[bytes]:
    """Make trainings together in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    pickle.dump(Together(TogetherConfig(runs=both)), driver.stdin)
    driver.stdin.close()
    return driver
