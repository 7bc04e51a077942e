"""What the verbs do, in this process: results, refusals, records; and their end in a Slurm job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from make_data import packed_arrays

from jobs import launch
from jobs.commands import pretrain as pretraining
from jobs.commands.evaluate import Evaluate, Export
from jobs.commands.pack import Pack
from jobs.commands.pretrain import Pretrain
from jobs.commands.verify import Verify, VerifyError
from jobs.config import ClusterConfig
from jobs.launch import StoppedError, run
from jobs.slurm import requeue
from jobs.slurm.environment import Launcher, RankEnvironment
from jobs.slurm.requeue import RunStop
from preprocess.config import PackConfig, VerifyConfig
from preprocess.shards.atomic_io import write_json
from preprocess.sources.simulated import SimulatedConfig
from simclr.config import TrainConfig
from simclr.evaluation.config import EvaluateConfig
from simclr.export import ExportConfig
from simclr.preemption import Preempted, StopReason

HERE = ClusterConfig()


@pytest.fixture
def pretrain(tmp_path) -> Pretrain:
    """Return a task whose training is replaced by what a test says."""
    shards = packed_arrays(tmp_path / "shards", 8, bands=["B02"])
    config = TrainConfig(shards=[str(shards)], run_dir=str(tmp_path / "run"))
    return Pretrain(config)


def trains(monkeypatch: pytest.MonkeyPatch, outcome: Path | BaseException) -> None:
    def train(self, env, sinks, attempt, signals):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(Pretrain, "_train", train)


def events(task: Pretrain) -> list[dict[str, object]]:
    lines = (task.run_dir / "attempts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_finished_training_names_its_checkpoint(pretrain, monkeypatch):
    trains(monkeypatch, Path("checkpoints/step-000000009"))
    assert run(pretrain, HERE) == "checkpoints/step-000000009"
    assert events(pretrain)[-1]["checkpoint"] == "step-000000009"
    assert (pretrain.run_dir / "logs" / "pretrain.log").exists()


def test_curves_that_cannot_be_drawn_fail_no_training(pretrain, monkeypatch, capsys):
    def draw(run_dir: Path) -> None:
        raise OSError(28, "No space left on device", str(run_dir / "curves.png"))

    monkeypatch.setattr("jobs.figures.run_report.draw_curves", draw)
    trains(monkeypatch, Path("checkpoints/step-000000009"))
    assert run(pretrain, HERE) == "checkpoints/step-000000009"
    assert events(pretrain)[-1]["event"] == "finished"
    assert "the training is done, but its curves are not drawn: OSError" in capsys.readouterr().err


def test_a_stopped_training_says_where_it_saved(pretrain, monkeypatch):
    trains(monkeypatch, Preempted(7, StopReason.SIGTERM))
    with pytest.raises(StoppedError, match="saved at step 7; the same command continues"):
        run(pretrain, HERE)
    assert events(pretrain)[-1]["event"] == "stop"
    assert events(pretrain)[-1]["step"] == 7


def test_a_stop_before_training_goes_on_from_the_newest_checkpoint(pretrain, monkeypatch):
    (pretrain.run_dir / "checkpoints" / "step-000000005").mkdir(parents=True)
    trains(monkeypatch, Preempted(None, StopReason.SIGTERM))
    with pytest.raises(StoppedError, match="saved at step 5"):
        run(pretrain, HERE)


def test_a_stop_that_an_import_turned_into_another_error_is_no_failure(pretrain, monkeypatch):
    def imports(*_: object) -> Path:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)
        except Preempted as event:
            raise RuntimeError("Error calling __set_name__") from event
        return Path()

    monkeypatch.setattr(Pretrain, "_train", imports)
    with pytest.raises(StoppedError, match="stopped before a step was saved"):
        run(pretrain, HERE)
    assert [event["event"] for event in events(pretrain)] == ["start", "stop"]


def test_a_failure_is_written_down_and_raised(pretrain, monkeypatch):
    trains(monkeypatch, OSError(28, "No space left"))
    with pytest.raises(OSError, match="No space left"):
        run(pretrain, HERE)
    assert events(pretrain)[-1]["error"] == "OSError: [Errno 28] No space left"


def test_in_a_slurm_job_a_stop_ends_by_slurms_word(pretrain, monkeypatch):
    left: list[RunStop] = []

    def leave(stop: RunStop) -> None:
        left.append(stop)
        raise SystemExit(75)

    env = RankEnvironment(Launcher.slurm, "1")
    monkeypatch.setattr(launch, "current_rank", lambda: env)
    monkeypatch.setattr(pretraining, "exit_for_requeue", leave)
    trains(monkeypatch, Preempted(7, StopReason.SIGUSR2))
    with pytest.raises(SystemExit):
        pretrain()
    assert left == [RunStop(env, StopReason.SIGUSR2, pretrain.run_dir, 1, 7)]


def test_parts_of_an_array_pack_all_together(tmp_path, monkeypatch):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=6)
    config = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=0.2)
    said = []
    for index in range(3):
        env = RankEnvironment(array_index=index, array_size=3)
        monkeypatch.setattr(requeue, "current_rank", lambda env=env: env)
        said.append(Pack(config)())
    assert said[:2] == ["", ""]
    assert "6 simulated patches in 6 shards" in said[2]


def test_damaged_shards_fail_with_what_is_wrong_and_the_cure(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 8, bands=["B02"])
    assert "sound" in run(Verify(VerifyConfig(shards=str(shards))), HERE)
    path = sorted(shards.glob("*.h5"))[0]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        VerifyError, match=r"1 problems: shard-00000\.h5: .*; repair=true packs it again"
    ):
        run(Verify(VerifyConfig(shards=str(shards))), HERE)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Verify(VerifyConfig()), "shards is empty"),
        (Evaluate(EvaluateConfig()), "run is empty"),
        (Evaluate(EvaluateConfig(run="nowhere")), "run is nowhere, which is not a folder"),
        (Evaluate(EvaluateConfig(run=".")), "shards is empty"),
        (Evaluate(EvaluateConfig(run=".", shards=".")), "task is empty"),
        (Export(ExportConfig()), "run is empty"),
        (Export(ExportConfig(run="nowhere")), "run is nowhere, which is not a folder"),
        (Export(ExportConfig(run=".")), "output is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(task, told):
    with pytest.raises(ValueError, match=told):
        run(task, HERE)


@pytest.mark.slow
def test_a_sweep_gives_each_member_a_folder_of_its_own(tmp_path):
    output = tmp_path / "packed"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.commands.pack", "-m", "source=simulated"),
            f"source.root={tmp_path}/rasters-${{source.seed}}",
            f"output={output}",
            "source.num_patches=2",
            "source.seed=1,2",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("manifest written") == 2
    assert len(list(output.glob("*/manifest.json"))) == 2


def test_a_process_that_packs_only_its_part_names_it_and_what_is_missing(tmp_path, monkeypatch):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=3)
    config = PackConfig(source=source, output=str(tmp_path / "out"), shard_size_mib=0.2)
    # the shell of one task of srun --ntasks=2
    env = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    for name, value in {**env, "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    said = run(Pack(config), HERE)
    assert "part 0 of 2 (from 0) packed; 1 of 3 shards are not packed (shard-00001.h5) yet" in said
    assert not Pack(config).completion.exists()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "in 3 shards" in run(Pack(config), HERE)


def test_a_job_array_with_gaps_is_refused(tmp_path, monkeypatch):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=3)
    config = PackConfig(source=source, output=str(tmp_path / "out"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "2")
    with pytest.raises(ValueError, match=r"has 2 tasks up to number 2, .*--array=0-1"):
        run(Pack(config), HERE)
    assert not (tmp_path / "out").exists()


def test_shards_that_cannot_be_written_to_are_verified_all_the_same(tmp_path, capfd):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=2)
    run(Pack(PackConfig(source=source, output=str(tmp_path / "out"))), HERE)
    done = Verify(VerifyConfig(shards=str(tmp_path / "out"))).completion.parent
    shutil.rmtree(done)
    done.touch()  # no mark can be written, as in a folder of others
    said = run(Verify(VerifyConfig(shards=str(tmp_path / "out"))), HERE)
    assert said.endswith("sound")
    assert "success is not marked" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "config"), [(Evaluate, EvaluateConfig), (Export, ExportConfig)]
)
def test_what_was_done_with_one_checkpoint_is_not_done_with_a_newer_one(tmp_path, command, config):
    newest, given = (command(config(run=str(tmp_path), step=step)) for step in (0, 100))
    marks = []
    for step in (100, 200):
        (tmp_path / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        marks.append((newest.completion, given.completion))
    assert marks[0][0] != marks[1][0]
    assert marks[0][1] == marks[1][1]


def test_what_was_done_is_not_done_once_its_result_is_gone(tmp_path):
    export = Export(ExportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "encoder")))
    packing = Pack(PackConfig(output=str(tmp_path / "shards")))
    for command, result in ((export, "encoder/card.json"), (packing, "shards/manifest.json")):
        write_json(command.completion, {})
        assert not command.is_done
        write_json(tmp_path / result, {})
        assert command.is_done


def test_what_was_verified_is_verified_again_when_packed_anew(tmp_path):
    verify, marks = Verify(VerifyConfig(shards=str(tmp_path / "s"))), []
    for num_patches in (2, 3):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        packed_arrays(tmp_path / "s", num_patches, bands=["B02"])
        marks.append(verify.completion)
    assert marks[0] != marks[1]


def test_what_was_scored_on_one_pack_is_not_scored_on_another_in_its_place(tmp_path):
    evaluate, marks = Evaluate(EvaluateConfig(run=str(tmp_path), shards=str(tmp_path / "s"))), []
    for num_patches in (2, 3):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        packed_arrays(tmp_path / "s", num_patches, bands=["B02"])
        marks.append(evaluate.completion)
    assert marks[0] != marks[1]
