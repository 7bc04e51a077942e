"""Several stages in one command: cut apart, checked before the first starts, run in order."""

from __future__ import annotations

import sys

import pytest
from fake_slurm import fake_slurm
from make_data import packed_arrays

from jobs.commands import chain
from jobs.commands.chain import plan, run_chain, split_stages


def test_settings_in_front_are_for_all_and_a_stages_own_come_first():
    words = ["cluster=a", "debug=true", "pack", "x=1", "export", "cluster=b"]
    assert split_stages(words) == [
        ("pack", ["cluster=a", "debug=true", "x=1"]),
        ("export", ["debug=true", "cluster=b"]),
    ]


def chained(tmp_path, *more):
    root = tmp_path / "ras ters"
    return [
        *("pack", "source=simulated", f"source.root='{root}'", "source.num_patches=4"),
        *("source.bands=[B02]", f"output='{tmp_path / 'shards'}'", "verify"),
        *more,
    ]


def test_what_a_stage_leaves_is_what_the_next_ones_read(tmp_path):
    more = ("pretrain", f"run_dir='{tmp_path / 'run'}'", "evaluate", "task=x", "export", "output=e")
    stages = {command.name: command.config for command, _ in plan(chained(tmp_path, *more))}
    shards = str(tmp_path / "shards")
    assert stages["verify"].shards == stages["evaluate"].shards == shards
    assert stages["pretrain"].shards == [shards]
    assert stages["evaluate"].run == stages["export"].run == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()  # planning writes nothing


def test_a_dry_run_behind_the_last_stage_is_one_of_the_whole_chain(monkeypatch, capsys, tmp_path):
    words = ["simclr-chain", *chained(tmp_path), "--dry-run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        chain.main()
    assert ended.value.code == 0
    assert "pack would run in this process" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_chain_goes_on_where_it_was_and_what_comes_after_a_change_is_done_again(tmp_path):
    said: list[str] = []
    run_chain(chained(tmp_path), said.append)
    assert [line.split()[0] for line in said] == ["pack", "verify"]
    said.clear()
    run_chain(chained(tmp_path), said.append)
    assert all("done before" in line for line in said)
    said.clear()
    run_chain(chained(tmp_path, "quick=true"), said.append)
    assert ["done before" in line for line in said] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no stage is named; give commands with their settings: fetch,"),
        (["cluster=here"], "no stage is named"),
        (["pretain", "epochs=1"], "no stage is named; did you mean pretrain? give commands"),
        (["--config-dir=nowhere", "pack"], "--config-dir is 'nowhere', which is not a folder"),
        (
            ["--config-dir", "mine", "pack", "-m"],
            "pack: 'mine' is not a setting; write key=value",
        ),
        (["pack"], "pack: source is missing"),
        (["export", "output=x"], "export: run is empty"),
        (["verify", "shard=x"], "verify: shard is not a setting; did you mean shards?"),
        (["verify", "here"], "verify: 'here' is not a setting; write key=value"),
        (["pack", "evalute"], "pack: 'evalute' is not a setting; did you mean evaluate? write"),
        (["--loud", "verify"], "verify: '--loud' is not a setting"),
        (["verify", "cluster=mine"], "verify: cluster is 'mine'; choose one of here, laptop"),
        (
            ["verify", "cluster.time_min=soon"],
            "verify: cluster.time_min is soon; give a whole number",
        ),
    ],
)
def test_wrong_use_is_one_line_with_the_cure(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(sys, "argv", ["simclr-chain", *arguments])
    with pytest.raises(SystemExit) as ended:
        chain.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert told in printed.err


def test_a_stage_that_cannot_be_is_refused_before_the_first_one_works(tmp_path):
    with pytest.raises(ValueError, match="evaluate: task is empty"):
        run_chain(chained(tmp_path, "evaluate", "run=r"), print)
    assert not (tmp_path / "shards").exists()


@pytest.fixture
def evaluation(tmp_path):
    """Return a chain that evaluates a run on Slurm."""
    shards = packed_arrays(tmp_path / "shards", 8, bands=["B02"])
    (tmp_path / "a run").mkdir()
    place = ("cluster=slurm_cpu_example", "evaluate", f"shards='{shards}'")
    return [*place, f"run='{tmp_path / 'a run'}'", "task=labels"]


def test_a_queued_job_is_kept_unless_its_settings_are_others(tmp_path, monkeypatch, evaluation):
    queue, said = fake_slurm(tmp_path / "bin", monkeypatch), []
    run_chain(evaluation, said.append)
    queue.write_text("1|PENDING|N/A|1:00||Priority\n")
    run_chain(evaluation, said.append)
    assert said == ["evaluate  job 1", "evaluate  job 1, submitted before"]
    with pytest.raises(ValueError, match=r"job 1 \(evaluate, PENDING\) is at work in"):
        run_chain([*evaluation, "fractions=[0.5]"], said.append)


def test_a_job_that_waits_in_vain_is_not_waited_for(tmp_path, monkeypatch, evaluation):
    queue, said = fake_slurm(tmp_path / "bin", monkeypatch), []
    run_chain(evaluation, said.append)
    queue.write_text("1|PENDING|N/A|1:00||DependencyNeverSatisfied\n")
    run_chain(evaluation, said.append)
    assert said == ["evaluate  job 1", "evaluate  job 2"]


def test_a_stage_that_would_not_wait_for_a_job_is_refused(tmp_path, monkeypatch):
    fake_slurm(tmp_path / "bin", monkeypatch)
    words = ["cluster=slurm_cpu_example", *chained(tmp_path, "cluster=here")]
    with pytest.raises(ValueError, match=r"verify: cluster\.executor is here, .* wait for pack on"):
        run_chain(words, print)
    assert (tmp_path / "bin" / "taken").read_text() == "0"


def test_a_number_that_is_meant_as_text_is_refused_in_a_file_of_a_chain_too(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text(
        "# @package _global_\ncluster:\n  account: 2024_01\n"
    )
    words = [f"--config-dir={tmp_path}", "cluster=mine", *chained(tmp_path)]
    with pytest.raises(
        ValueError, match=r"cluster\.account is 2024_01, which YAML reads as 202401"
    ):
        plan(words)


def test_help_shows_a_chain(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simclr-chain", "--help"])
    with pytest.raises(SystemExit) as ended:
        chain.main()
    assert ended.value.code == 0
    assert "pretrain recipe=recommended run_dir=runs/first" in capsys.readouterr().out


def test_shards_that_are_there_can_be_trained_on(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 8, bands=["B02"])
    ((command, _),) = plan(["pretrain", f"shards=['{shards}']", f"run_dir='{tmp_path / 'run'}'"])
    assert command.config.shards == [str(shards)]
