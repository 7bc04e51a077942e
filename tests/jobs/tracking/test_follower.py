"""A follower sends each record once and in order, through outages, until the training is over."""

from __future__ import annotations

import json

import pytest

from jobs.run_dir import RunAttempt
from jobs.tracking.follower import Follower, MetricsReader


class Server:
    """A tracker that keeps what it gets, and is away when told."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.files: dict[str, str] = {}
        self.away, self.ending = False, ""

    def open(self) -> int:
        self._answer()
        return max(self.held, default=0)

    def write(self, records):
        self._answer()
        self.held += [record["step"] for record in records]

    def add_artifact(self, name, path):
        self.files[name] = path.read_text()

    def close(self, ending):
        self._answer()
        self.ending = ending

    def _answer(self) -> None:
        if self.away:
            raise ConnectionError("no route to host\nand more")


class Training:
    """Scripted: each wait of the follower runs the next action, and the last one is the end."""

    def __init__(self, *actions) -> None:
        self.actions, self.pauses = list(actions), []

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        if self.actions:
            self.actions.pop(0)()
        return not self.actions


@pytest.fixture
def run_dir(tmp_path):
    RunAttempt(tmp_path, {"job_id": "1", "restarts": 0})
    return tmp_path


def trains(run_dir, *steps):
    def act() -> None:
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write("".join(json.dumps({"step": step}) + "\n" for step in steps))

    return act


def goes(server: Server, *, away: bool):
    def act() -> None:
        server.away = away

    return act


def both(*actions):
    return lambda: [action() for action in actions]


def run(run_dir, server, *actions):
    training, complaints = Training(*actions), []
    sent = Follower(server, run_dir).follow(training.wait, complaints.append)
    return sent, complaints, training.pauses


def test_every_record_is_sent_once_and_the_last_ones_at_the_end(run_dir):
    server = Server()
    sent, complaints, _ = run(run_dir, server, trains(run_dir, 1, 2), *[trains(run_dir, 3)] * 1)
    assert (sent, server.held, complaints, server.ending) == (True, [1, 2, 3], [], "start")


def test_steps_that_the_server_holds_are_not_sent_again(run_dir):
    server = Server()
    server.held = [1, 2, 3, 4]
    trains(run_dir, 1, 2, 3, 4, 5)()
    run(run_dir, server, lambda: None)
    assert server.held == [1, 2, 3, 4, 5]


def test_an_outage_is_one_complaint_and_no_loss_and_is_asked_about_less_and_less(run_dir):
    server = Server()
    server.away = True
    idle = [lambda: None] * 8
    back = both(goes(server, away=False), trains(run_dir, 2))
    sent, complaints, pauses = run(run_dir, server, trains(run_dir, 1), *idle, back, idle[0])
    assert (sent, server.held) == (True, [1, 2])
    assert complaints == ["ConnectionError: no route to host; the records are in metrics.jsonl"]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 1]


def test_an_outage_until_the_end_is_a_failure(run_dir):
    server = Server()
    server.away = True
    sent, complaints, _ = run(run_dir, server, trains(run_dir, 1))
    assert (sent, len(complaints)) == (False, 1)


def test_a_later_attempt_ends_the_follower_of_an_earlier_one(run_dir):
    server = Server()
    overtakes = both(lambda: RunAttempt(run_dir, {"job_id": "2"}), trains(run_dir, 2))
    sent, _, _ = run(run_dir, server, trains(run_dir, 1), overtakes, trains(run_dir, 3))
    assert (sent, server.held) == (True, [1])


def test_files_of_later_commands_are_added_at_the_end_if_they_exist(run_dir):
    server = Server()
    there = run_dir / "evaluation.json"
    there.write_text("scores")
    (run_dir / "tracking").mkdir()
    files = {"evaluation": str(there), "card": str(run_dir / "gone.json")}
    (run_dir / "tracking" / "artifacts.json").write_text(json.dumps(files))
    run(run_dir, server, lambda: None)
    assert server.files == {"evaluation": "scores"}


def test_a_line_is_read_when_it_is_complete_and_a_broken_one_is_passed_over(tmp_path):
    path, reader = tmp_path / "metrics.jsonl", MetricsReader(tmp_path)
    assert reader.read() == []
    path.write_text('{"step": 1}\n{"st')
    assert reader.read() == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n{"step": 3, "lo\n{"step": 4}\n')
    assert reader.read() == [{"step": 2}, {"step": 4}]
    assert reader.read() == []
