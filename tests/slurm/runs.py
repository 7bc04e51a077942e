"""Small trainings on the test cluster: submit one, read what it says of itself, compare weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from slurm.cluster import PATIENCE, Cluster, wait_until

STEPS = 24
SETTINGS = (
    "recipe=laptop",
    f"max_steps={STEPS}",
    "epochs=100",
    "data.bands=[B02,B04]",
    "data.global_batch_size=8",
    "augment.view_size_px=64",
    "checkpoint.every_steps=1000",
    "world.timeout_s=240",  # a busy machine holds ranks up for long, and none of them is lost
)
PLACE = (
    "cluster=slurm_cpu_example",
    "cluster.nodes=2",
    "cluster.tasks_per_node=2",
    "cluster.cpus_per_task=1",
    "cluster.time_min=60",  # a busy machine must not meet it
)


@dataclass(frozen=True)
class Run:
    """A training that was submitted."""

    folder: Path
    job_id: str

    def metrics(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "metrics.jsonl")

    def step(self) -> int:
        records = self.metrics()
        return records[-1]["step"] if records else 0

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in _lines(self.folder / "attempts.jsonl") if e["event"] == kind]

    def pid(self, rank: int) -> int:
        """Return the process of a rank, as it says itself."""
        paths = (self.folder / "heartbeats").glob(f"*/rank-{rank:04d}.json")
        beats = [json.loads(path.read_text()) for path in paths]
        return int(max(beats, key=lambda beat: beat["time"])["pid"])

    def log(self) -> str:
        files = sorted((self.folder / "slurm").glob("*_log.err"))
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)

    def state(self) -> dict[str, Any]:
        last = (self.folder / "checkpoints" / "latest").read_text().strip()
        path = self.folder / "checkpoints" / last / "state.pt"
        return torch.load(path, map_location="cpu", weights_only=True)


def verb(name: str, *arguments: str, cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """Run a verb as a user on the login node would."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.commands.{name}", *arguments],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
        check=False,
    )


def submit(cluster: Cluster, shards: Path, folder: Path, *settings: str) -> Run:
    """Submit a training on 2 nodes x 2 ranks."""
    named = (f"shards=['{shards}']", f"run_dir='{folder}'")
    done = verb("pretrain", *SETTINGS, *PLACE, *named, *settings, cluster=cluster)
    assert done.returncode == 0, done.stderr
    return Run(folder, done.stdout.strip())


def wait_for_step(cluster: Cluster, run: Run, step: int) -> None:
    """Wait until a run has trained so far."""
    wait_until(lambda: run.step() >= step, f"step {step}", 180, run.log)


def preempt(cluster: Cluster) -> str:
    """Submit a short job that needs all nodes and goes first; return its id."""
    return cluster.run(
        "sbatch",
        "--parsable",
        "-p",
        "high",
        "-N4",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "true",
    ).strip()


def assert_finished_like(cluster: Cluster, run: Run, unbroken: Run, restarts: int) -> None:
    """Wait for the end of a disturbed run; it must leave what an undisturbed one leaves."""
    fields = cluster.wait_for(run.job_id, "COMPLETED", "FAILED", "CANCELLED", timeout_s=240)
    assert fields["JobState"] == "COMPLETED", run.log()
    assert fields["Restarts"] == str(restarts)
    assert_equal(run, unbroken)


def assert_equal(run: Run, unbroken: Run) -> None:
    """Compare weights, optimizer and generators bit by bit, and every loss on the way."""
    assert differing(run.state(), unbroken.state()) == []
    assert [m["loss"] for m in run.metrics()] == [m["loss"] for m in unbroken.metrics()]


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two nested states differ in any bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [line for key in one for line in differing(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for k, (a, b) in pairs for line in differing(a, b, f"{path}/{k}")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = one == other
    return [] if same else [path]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
