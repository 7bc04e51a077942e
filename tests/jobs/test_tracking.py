"""TensorBoard gets what metrics.jsonl gets, also after a restart."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.tracking import FOLDER, Tracking, sinks_of


def record(step, loss):
    return {"step": step, "num_steps": 9, "epoch": 0, "time": 1.0, "loss": loss, "probe/f1": 0.5}


def scalars(run_dir, name):
    events = EventAccumulator(str(run_dir / FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_records_become_scalars_and_a_restart_replaces_what_was_lost(tmp_path):
    run_dir = tmp_path / "run with space"
    (first,) = sinks_of(Tracking.tensorboard, run_dir)
    for step in (1, 2, 3):
        first.write(record(step, float(step)))
    (second,) = sinks_of(Tracking.tensorboard, run_dir)
    second.write(record(2, 20.0))
    assert scalars(run_dir, "loss") == [(1, 1.0), (2, 20.0)]
    assert scalars(run_dir, "probe/f1") == [(1, 0.5), (2, 0.5)]


def test_a_value_that_does_not_exist_is_left_out(tmp_path):
    (sink,) = sinks_of(Tracking.tensorboard, tmp_path)
    sink.write({**record(1, 1.0), "gradient_norm": None})
    sink.write(record(2, 2.0))
    assert len(scalars(tmp_path, "loss")) == 2
    with pytest.raises(KeyError):
        scalars(tmp_path, "gradient_norm")


def test_without_tracking_nobody_else_is_told(tmp_path):
    assert sinks_of(Tracking.none, tmp_path) == []
