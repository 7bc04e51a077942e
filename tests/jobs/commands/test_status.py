"""``simclr-status`` as a person and a program read it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from jobs.commands import status
from jobs.run_dir import RunAttempt, Submission, freeze, write_submission
from jobs.slurm.environment import RankEnvironment
from jobs.status.render import duration
from simclr.config import TrainConfig


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command; it returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simclr-status", *arguments])
        with pytest.raises(SystemExit) as ended:
            status.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.fixture
def runs(tmp_path):
    """Make a finished run and a failed one."""
    for name, event, facts in (
        ("good", "finished", {"checkpoint": "step-000000001"}),
        ("bad one", "failed", {"error": "OSError: disk full"}),
    ):
        folder = tmp_path / "runs" / name
        freeze(folder, TrainConfig(run_dir=str(folder)))
        RunAttempt(folder, RankEnvironment().describe()).record(event, **facts)
    return tmp_path / "runs"


def test_all_runs_of_the_folder_are_shown_and_a_failure_is_a_failure(said, runs):
    code, out, _ = said()
    assert code == 1
    assert "finished" in out
    assert "failed: OSError: disk full" in out
    assert "runs/bad one: next: read the log; the same command continues from the start" in out


def test_short_is_one_line_a_run(said, runs):
    lines = said("--short")[1].splitlines()
    assert len(lines) == 3
    assert [line.split()[:2] for line in lines] == [
        ["job", "run"],
        ["-", "runs/bad"],
        ["-", "runs/good"],
    ]


@pytest.mark.parametrize("option", ["--short", "--watch"])
def test_a_terminal_of_80_columns_shows_one_line_a_run_with_the_state_in_colour(runs, option):
    """Through a pseudo-terminal: the escape codes are those that a person's terminal gets."""
    far = runs / "a sweep whose name is longer than its column" / "optim.learning_rate=0.001"
    freeze(far, TrainConfig(run_dir=str(far)))
    RunAttempt(far, RankEnvironment().describe()).record("finished", checkpoint="step-000000001")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.commands.status", option],
        stdout=theirs,
        cwd=runs.parent,
        env=environment,
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    assert process.wait(600) == 1
    assert b"\x1b[32mfinished" in written
    assert b"\x1b[1;31mfailed: OSError" in written
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"  # a screen of its own
    text, on_screen = written.decode(), option == "--watch"
    assert (enter in text, leave in text) == (on_screen, on_screen)
    shown = text.partition(enter)[2].partition(leave)[0] if on_screen else text
    lines = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"^- +….*learning_rate=0.001 +finished", line) for line in lines)


def test_a_finished_run_is_no_failure(said, runs):
    assert said(str(runs / "good"))[0] == 0


def test_programs_get_json(said, runs):
    code, out, _ = said("json=true", str(runs / "good"))
    (record,) = json.loads(out)
    assert (code, record["state"], record["needs_person"]) == (0, "finished", False)


def test_a_run_named_twice_is_shown_once(said, runs):
    once, twice = (said(*[str(runs / "good")] * times)[1] for times in (1, 2))
    assert once == twice


@pytest.mark.parametrize("options", [(), ("--watch",)])
def test_nothing_to_show_is_said(said, options):
    told = "no runs in ./runs; name run folders: simclr-status RUN ...\n"
    assert said(*options) == (0, told, "")


def test_a_failed_run_does_not_end_the_view_of_one_that_trains(said, runs, monkeypatch):
    going = runs / "going"
    freeze(going, TrainConfig(run_dir=str(going)))
    attempt = RunAttempt(going, RankEnvironment().describe())
    attempt.record("start")
    monkeypatch.setattr(status, "REFRESH_S", 0.01)
    monkeypatch.setattr(
        status.time, "sleep", lambda _: attempt.record("finished", checkpoint="step-1")
    )
    code, out, _ = said("--watch", "--short")
    assert code == 1
    assert out.count("runs/going") == 2  # while it trained, and when it had finished


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("nowhere", "nowhere is not a run folder"),
        ("--wach", "is not an option"),
        ("--watch=2", "10 or more"),
    ],
)
def test_wrong_use_is_one_line(said, argument, told):
    code, out, err = said(argument)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_help_names_the_exit_codes(said):
    code, out, _ = said("--help")
    assert code == 0
    assert "1 a run needs a person" in out


def test_a_silent_controller_is_told_and_the_runs_speak_for_themselves(
    said, runs, tmp_path, monkeypatch
):
    write_submission(runs / "good" / "slurm", Submission("12", "pretrain", [], 0.0, ""))
    for name, body in {"squeue": "echo 'Unable to contact' >&2; exit 1", "sbatch": "true"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, out, err = said(str(runs / "good"))
    assert (code, "finished" in out, err) == (0, True, "")
    assert "no answer of Slurm, so this is what the folders say: squeue" in out
    assert "Unable to contact" in out
    assert (
        "Unable to contact" in json.loads(said("--json", str(runs / "good"))[1])[0]["slurm_error"]
    )


def test_a_controller_that_never_answers_is_given_up_after_seconds(
    said, runs, tmp_path, monkeypatch
):
    write_submission(runs / "good" / "slurm", Submission("12", "pretrain", [], 0.0, ""))
    for name in ("squeue", "sacct", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 600\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, out, _ = said(str(runs / "good"))
    assert (code, "gave no answer in 4 s" in out) == (0, True)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (40, "40 s"), (720, "12 min"), (12600, "3.5 h"), (181440, "2.1 d")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
