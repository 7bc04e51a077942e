"""Progress: lines in a log where there is no terminal, a bar where there is, or silence."""

import io
import logging

import pytest

from preprocess.progress import progress_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_the_last_line_of_the_log_tells_the_total(caplog):
    with caplog.at_level(logging.INFO), progress_of(3, "pack") as advance:
        advance(2)
        advance(1)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "pack: 3 of 3 patches"
    ]


def test_on_a_terminal_a_bar_is_drawn(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_of(3, "pack") as advance:
        advance(3)
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_switched_off_nothing_is_said(monkeypatch, caplog, stream):
    output = stream()
    monkeypatch.setattr("sys.stderr", output)
    with caplog.at_level(logging.INFO), progress_of(1, "pack", enabled=False) as advance:
        advance(1)
    assert (output.getvalue(), caplog.text) == ("", "")
