"""A stopped training saves, says so by its exit code, and ends with the same bits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from contract.console import OF_A_JOB, PREEMPTED, TRAINING, Ended, call, end, start, wait_until

pytestmark = pytest.mark.slow

# eight steps are enough: sharing statistics makes each slower
TWO_RANKS = ("cluster=laptop", "model.batchnorm=world", "max_steps=8")
CANCELLED = "JobId=7 JobState=CANCELLED Restarts=0 PreemptTime=None NodeList=n0"


def lines(path: Path) -> list[dict[str, object]]:
    """Return the records of a file of JSON lines, without one that is being written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def losses(run: Path) -> list[tuple[object, object]]:
    return [(record["step"], record["loss"]) for record in lines(run / "metrics.jsonl")]


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def assert_same_bits(run: Path, undisturbed: Path) -> None:
    """Compare all losses, and every tensor of the last checkpoint."""
    assert losses(run) == losses(undisturbed)
    assert newest(run).name == newest(undisturbed).name
    one, other = (
        torch.load(newest(folder) / "state.pt", map_location="cpu", weights_only=True)
        for folder in (run, undisturbed)
    )
    assert differing(one, other) == []


def differing(one: object, other: object, path: str = "") -> list[str]:
    """Return where two nested states differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {*one, *other}
        return [line for k in names for line in differing(one.get(k), other.get(k), f"{path}/{k}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for k, (a, b) in pairs for line in differing(a, b, f"{path}/{k}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = one == other
    return [] if same else [path]


def stopped_in_training(
    packed: Path, cwd: Path, number: signal.Signals, *settings: str, **environment: str
) -> tuple[Ended, list[dict[str, object]]]:
    """Start the training of ``trained``, and signal it once three steps are in its metrics.

    Returns:
        How it ended, and its stops as the run folder holds them.
    """
    arguments = (*TRAINING, f"shards=['{packed}']", "run_dir=run", *settings)
    process = start("pretrain", *arguments, cwd=cwd, **environment)
    wait_until(lambda: len(lines(cwd / "run" / "metrics.jsonl")) >= 3, process)
    # Ctrl-C in a terminal reaches all processes in front of it; everything else only its target
    (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
    ended = end(process)
    events = lines(cwd / "run" / "attempts.jsonl")
    return ended, [event for event in events if event["event"] == "stop"]


@pytest.fixture(scope="module")
def trained_by_two(packed, tmp_path_factory) -> Path:
    """Train the same steps by two ranks of this machine, that share BatchNorm's statistics."""
    folder = tmp_path_factory.mktemp("two ranks")
    arguments = (*TRAINING, f"shards=['{packed.folder}']", "run_dir=run", *TWO_RANKS)
    ended = call("pretrain", *arguments, cwd=folder)
    assert (ended.code, ended.out) == (0, "run/checkpoints/step-000000008\n"), ended.err
    return folder / "run"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a function that sets scontrol's answer, and returns the file that keeps its calls.

    What a real Slurm answers and does is tested in ``tests/slurm``.
    """
    commands = tmp_path / "commands"
    commands.mkdir()

    def answer(job: str) -> Path:
        asked = commands / "asked"
        (commands / "scontrol").write_text(
            f"#!/bin/sh\necho \"$*\" >> '{asked}'\ncase $2 in show) echo '{job}';; esac\n"
        )
        (commands / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        return asked

    return answer


def test_a_training_here_saves_at_a_stop_and_ends_with_the_same_bits(packed, trained, tmp_path):
    ended, stops = stopped_in_training(packed.folder, tmp_path, signal.SIGTERM)
    assert (ended.code, ended.out) == (1, ""), ended
    assert ended.err.count("simclr-pretrain: ") == 1
    last = ended.err.splitlines()[-1]
    assert "the same command continues" in last
    step = int(re.search(r"step (\d+)", last)[1])
    assert newest(tmp_path / "run").name == f"step-{step:09d}"
    assert [stop["step"] for stop in stops] == [step]
    ended = call(
        *("pretrain", *TRAINING, f"shards=['{packed.folder}']", "run_dir=run"), cwd=tmp_path
    )
    assert (ended.code, ended.out) == (0, "run/checkpoints/step-000000024\n"), ended.err
    assert_same_bits(tmp_path / "run", trained.folder)


def test_ctrl_c_on_two_ranks_saves_and_ends_with_the_same_bits(packed, trained_by_two, tmp_path):
    ended, (stop,) = stopped_in_training(packed.folder, tmp_path, signal.SIGINT, *TWO_RANKS)
    assert (ended.code, ended.out) == (1, ""), ended
    assert f"step {stop['step']}" in ended.err.splitlines()[-1]
    arguments = (*TRAINING, f"shards=['{packed.folder}']", "run_dir=run", *TWO_RANKS)
    ended = call("pretrain", *arguments, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert_same_bits(tmp_path / "run", trained_by_two)


def test_another_number_of_ranks_sees_the_same_samples_and_views(trained, trained_by_two):
    (one, *_), (two, *_) = losses(trained.folder), losses(trained_by_two)
    assert one[0] == two[0] == 1
    assert one[1] == pytest.approx(two[1], rel=1e-5)  # sums over ranks are taken in another order


def test_a_preempted_job_requeues_itself_leaves_with_75_and_ends_with_the_same_bits(
    packed, trained, tmp_path, slurm
):
    asked = slurm(PREEMPTED)
    ended, (stop,) = stopped_in_training(packed.folder, tmp_path, signal.SIGTERM, **OF_A_JOB)
    assert ended.code == 75, ended
    assert (stop["decision"], stop["job_id"]) == ("requeue", "7")
    assert asked.read_text().splitlines()[-1] == "requeue 7"
    assert newest(tmp_path / "run").name == f"step-{stop['step']:09d}"
    arguments = (*TRAINING, f"shards=['{packed.folder}']", "run_dir=run")
    again = start("pretrain", *arguments, cwd=tmp_path, **OF_A_JOB | {"SLURM_RESTART_COUNT": "1"})
    ended = end(again)
    assert (ended.code, ended.out) == (0, "run/checkpoints/step-000000024\n"), ended.err
    assert_same_bits(tmp_path / "run", trained.folder)


def test_a_cancelled_job_saves_and_leaves_with_75_without_a_requeue(packed, tmp_path, slurm):
    asked = slurm(CANCELLED)
    ended, (stop,) = stopped_in_training(packed.folder, tmp_path, signal.SIGTERM, **OF_A_JOB)
    assert (ended.code, stop["decision"]) == (75, "quit"), ended
    assert newest(tmp_path / "run").name == f"step-{stop['step']:09d}"
    assert "requeue" not in asked.read_text()


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_leads_to_the_same_bits(
    packed, trained, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    state = newest(run) / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    arguments = (*TRAINING, f"shards=['{packed.folder}']", "run_dir=run")
    ended = call("pretrain", *arguments, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert [path.name for path in (run / "checkpoints").glob("bad-*")] == ["bad-step-000000024"]
    assert_same_bits(run, trained.folder)


def test_a_finished_training_is_not_done_again(packed, trained, workspace):
    before = (trained.folder / "metrics.jsonl").read_bytes()
    ended = call("pretrain", *TRAINING, "shards=[shards]", "run_dir=run", cwd=workspace)
    assert (ended.code, ended.out) == (0, "run/checkpoints/step-000000024\n"), ended.err
    assert (trained.folder / "metrics.jsonl").read_bytes() == before
