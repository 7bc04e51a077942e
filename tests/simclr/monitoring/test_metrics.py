"""Metric lines: appended, rewound to a checkpoint, readable after a kill."""

import json
import logging

import pytest

from simclr.monitoring.metrics import JsonLines, LogLines, ProgressBar, read_metrics, screen


def record(step: int, **values):
    return {
        "step": step, "num_steps": 10, "loss": 1.5, "learning_rate": 1e-3,
        "patches_per_s": 20.0, **values,
    }  # fmt: skip


def test_records_come_back_in_order(tmp_path):
    sink = JsonLines(tmp_path)
    for step in (1, 2, 3):
        sink.write(record(step))
    assert [line["step"] for line in read_metrics(sink.path)] == [1, 2, 3]


def test_rewinding_drops_what_the_lost_attempt_wrote(tmp_path):
    sink = JsonLines(tmp_path)
    for step in (1, 2, 3, 4):
        sink.write(record(step))
    sink.rewind(2)
    sink.write(record(3, loss=9.0))
    lines = read_metrics(sink.path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] == 9.0


def test_a_line_cut_short_by_a_kill_is_passed_over_aloud(tmp_path, caplog):
    sink = JsonLines(tmp_path)
    sink.write(record(1))
    with sink.path.open("a") as file:
        file.write(json.dumps(record(2))[:20])
    assert [line["step"] for line in read_metrics(sink.path)] == [1]
    assert "incomplete line" in caplog.text


def test_a_log_gets_lines(caplog):
    with caplog.at_level(logging.INFO):
        LogLines().write(record(4))
    assert "step 4 of 10  loss 1.5000  learning rate 1.00e-03  20.0 patches/s" in caplog.text


def test_a_terminal_gets_a_bar_that_begins_where_the_run_does(capsys):
    bar = ProgressBar()
    for step in (6, 8, 10):
        bar.write(record(step))
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss=1.500" in shown


@pytest.mark.parametrize(("terminal", "kind"), [(True, ProgressBar), (False, LogLines)])
def test_the_screen_decides(monkeypatch, terminal, kind):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert isinstance(screen(), kind)


def test_a_line_that_a_full_disk_cut_spoils_no_other(tmp_path):
    sink = JsonLines(tmp_path)
    sink.write({"step": 1})
    with sink.path.open("ab") as file:
        file.write(b'{"step": 2, "lo\xff')
    sink.write({"step": 3})
    assert [line["step"] for line in read_metrics(sink.path)] == [1, 3]
    sink.rewind(2)
    assert [line["step"] for line in read_metrics(sink.path)] == [1]


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    JsonLines(tmp_path / "gone").write({"step": 7})
    assert "step 7 is missing in" in caplog.text
