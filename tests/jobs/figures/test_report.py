"""The page on a run: pictures of its curves and attempts, whatever state the run is in."""

from __future__ import annotations

import json

import pytest

from jobs.figures.run_report import write_report
from jobs.run_dir import freeze
from jobs.status.records import describe
from simclr.config import TrainConfig

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <run>"
    freeze(folder, TrainConfig(run_dir=str(folder)))
    return folder


def started(run, *, ends: list[dict[str, object]]) -> None:
    """Write attempts of an hour each, a minute apart."""
    with (run / "attempts.jsonl").open("w") as file:
        for number, end in enumerate(ends, 1):
            begin = NOW - 3660 * (len(ends) - number + 1)
            origin = {"attempt": number, "job_id": "12", "host": "n1", "nodes": "n[1-2]"}
            file.write(json.dumps({**origin, "event": "start", "time": begin, "pid": 1}) + "\n")
            if end:
                file.write(json.dumps({**origin, "time": begin + 3600, **end}) + "\n")


def test_a_run_that_has_not_begun_has_a_page(run):
    page = write_report(describe(run, now=NOW), NOW).read_text()
    assert "Not started." in page
    assert "No metrics yet" in page
    assert "a &lt;run&gt;" in page


def test_attempts_are_drawn_on_a_line_of_time_and_told_in_a_table(run):
    stop = {"event": "stop", "signal": "SIGUSR2", "decision": "requeue", "step": 40}
    started(run, ends=[stop, {}, {"event": "failed", "error": "OSError: disk full"}])
    record = {"step": 40, "num_steps": 100, "loss": 2.0, "learning_rate": 0.1, "time": NOW}
    numbers = {"gradient_norm": 1.0, "chance_level": 3.0, "patches_per_s": 9.0}
    spread = {"deviation": 1.0, "mean_cosine": 0.1}
    (run / "metrics.jsonl").write_text(json.dumps({**record, **numbers, **spread}) + "\n")
    page = write_report(describe(run, now=NOW), NOW).read_text()
    assert page.count('<img src="data:image/png') == 2
    assert "warned of the time limit or preemption: saved, requeued" in page
    assert "killed, or its node was lost" in page
    assert "failed: OSError: disk full" in page
    assert "Failed: OSError: disk full: step 40 of 100 (40 %)." in page
    assert (run / "attempts.png").read_bytes().startswith(b"\x89PNG")


def test_trackers_are_linked_or_their_command_is_shown(run):
    (run / "tracking").mkdir()
    for name, link in (
        ("wandb", "https://wandb.ai/a/b?c=1&d=2"),
        ("tensorboard", "tensorboard -x"),
    ):
        (run / "tracking" / f"{name}.json").write_text(json.dumps({"id": "1", "link": link}))
    page = write_report(describe(run, now=NOW), NOW).read_text()
    assert '<a href="https://wandb.ai/a/b?c=1&amp;d=2">wandb</a>' in page
    assert "<td>tensorboard -x</td>" in page
