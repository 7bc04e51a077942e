"""A task runs where the cluster says; what it says, or why it failed, comes back."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import fake_slurm
from make_data import packed_arrays

from jobs import launch
from jobs.commands.pack import Pack
from jobs.commands.pretrain import Pretrain
from jobs.commands.verify import Verify
from jobs.config import ClusterConfig, CpuConfig, Executor
from jobs.launch import (
    JobError,
    StoppedError,
    last_exception,
    log_lines,
    narrow,
    num_gpus,
    run,
    run_all,
)
from jobs.slurm import client as slurm
from jobs.slurm.submit import SRUN_UNTIL_RANK_0_IS_DONE, python_command, slurm_options
from jobs.staging import scratch_folder
from preprocess.config import PackConfig, VerifyConfig
from preprocess.sources.simulated import SimulatedConfig
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EncoderName,
    ModelConfig,
    TrainConfig,
)

LOCAL = ClusterConfig(executor=Executor.local, tasks_per_node=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return packed_arrays(tmp_path_factory.mktemp("a packed source"), bands=["B02", "B04"])


@pytest.fixture
def training(shards, tmp_path, monkeypatch) -> TrainConfig:
    """Return settings of a training that takes seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return TrainConfig(
        shards=[str(shards)],
        run_dir=str(tmp_path / "a run"),
        max_steps=3,
        log_every_steps=1,
        data=DataConfig(bands=["B02", "B04"], global_batch_size=8, num_threads=1),
        augment=AugmentConfig(view_size_px=12),
        model=ModelConfig(encoder=EncoderName.resnet18),
        checkpoint=CheckpointConfig(every_steps=1000),
    )


def events(config: TrainConfig) -> list[str]:
    lines = Path(config.run_dir, "attempts.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def test_tasks_travel_in_a_pickle_and_can_be_run_again(training):
    for task in (Pretrain(training), Pack(PackConfig()), Verify(VerifyConfig())):
        copy = pickle.loads(pickle.dumps(task))
        assert copy == task
        # submitit asks under both names
        assert copy.checkpoint().function == task == copy.__submitit_checkpoint__().function


@pytest.mark.slow
def test_two_ranks_of_this_machine_train_and_tell_of_it(training, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    checkpoint = run(Pretrain(training), LOCAL)
    assert checkpoint == f"{training.run_dir}/checkpoints/step-000000003"
    assert "step 3 of 3" in capsys.readouterr().err
    assert events(training) == ["start", "training", "finished"]
    assert len(list(Path(training.run_dir, "heartbeats").glob("*/rank-*.json"))) == 2
    assert not list((tmp_path / "tmp").glob("simclr-*"))  # where the ranks met


@pytest.mark.slow
def test_a_rank_that_refuses_its_settings_is_heard(training, capsys):
    training.data.bands = ["B10"]
    with pytest.raises(ValueError, match="band B10 not in the shards"):
        run(Pretrain(training), LOCAL)
    assert "Traceback" not in capsys.readouterr().err
    assert events(training) == ["start", "failed"]


@pytest.mark.slow
def test_parts_on_this_machine_leave_what_one_process_leaves(tmp_path):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=6)
    config = PackConfig(source=source, output=str(tmp_path / "shards"), shard_size_mib=0.2)
    said = run(Pack(config), LOCAL)
    assert "6 simulated patches in 6 shards" in said
    assert run(Verify(VerifyConfig(shards=config.output)), LOCAL).endswith("sound")


@pytest.mark.slow
def test_torchrun_starts_the_ranks_as_well(training):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    arguments = [*command(training)[2:], "max_steps=2"]
    done = subprocess.run(
        [*torchrun, "-m", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{training.run_dir}/checkpoints/step-000000002\n"  # once
    line = Path(training.run_dir, "attempts.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["num_ranks"] == 2


def wait_for_ranks(config: TrainConfig) -> list[int]:
    """Return the process ids of two ranks, once both train."""
    beats = Path(config.run_dir, "heartbeats")
    end = time.monotonic() + 600
    while len(list(beats.glob("*/rank-*.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    return [json.loads(path.read_text())["pid"] for path in sorted(beats.glob("*/rank-*.json"))]


def command(config: TrainConfig, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.commands.pretrain", "recipe=laptop"),
        f"shards=['{config.shards[0]}']",
        f"run_dir='{config.run_dir}'",
        *("max_steps=2000", "epochs=1000", "data.bands=[B02,B04]", "data.global_batch_size=8"),
        *("augment.view_size_px=12", *more),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", "laptop"])
def test_ctrl_c_saves_and_the_same_command_goes_on(training, place):
    process = subprocess.Popen(
        command(training, f"cluster={place}"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts what runs in its background deaf to Ctrl-C, and so would be our child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = Path(training.run_dir, "metrics.jsonl")
    end = time.monotonic() + 600
    while not metrics.exists() and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process in front
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert "stopped, saved at step" in said.splitlines()[-1]
    saved = int(said.rpartition("step ")[2].split(";")[0])
    assert (Path(training.run_dir) / f"checkpoints/step-{saved:09d}/manifest.json").exists()
    assert events(training) == ["start", "training", "stop"]


@pytest.mark.slow
def test_a_killed_rank_is_reported_and_no_process_is_left(training):
    process = subprocess.Popen(
        command(training, "cluster=laptop", "world.timeout_s=60"),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    pids = wait_for_ranks(training)
    os.kill(pids[1], signal.SIGKILL)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert said.splitlines()[-1].startswith("simclr-pretrain: ")
    assert "log " in said.splitlines()[-1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_peer_that_hangs_after_a_rank_was_killed_is_ended_within_a_bound(training, monkeypatch):
    monkeypatch.setattr(launch, "PEERS_S", 1.0)
    training.max_steps = 100000
    training.epochs = 100000

    def strike() -> None:
        first, second = wait_for_ranks(training)
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)

    threading.Thread(target=strike, daemon=True).start()
    with pytest.raises(
        JobError,
        match="rank 0 ended without an error: killed, perhaps by the out-of-memory killer; log",
    ):
        run(Pretrain(training), LOCAL)


def test_slurm_is_asked_for_what_the_cluster_says():
    cluster = ClusterConfig(
        executor=Executor.slurm, nodes=2, gpus_per_node=4, tasks_per_node=4, cpus_per_task=8
    )
    options = slurm_options(cluster, "pretrain", Path("slurm"), Path("code"))
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=8", "--export=ALL"} < {*options["srun_args"]}
    assert options["additional_parameters"] == {"requeue": True}
    assert options["wckey"] is None
    assert (options["nodes"], options["ntasks_per_node"], options["gpus_per_node"]) == (2, 4, 4)


@pytest.mark.parametrize("name", ["evaluate", "export", "pretrain"])
def test_every_script_ends_with_rank_0_in_the_same_way(name, training, monkeypatch):
    plain = (Path(launch.__file__).parent / "sbatch" / f"{name}.sbatch").read_text()
    text = submitted_script(Pretrain(training), ClusterConfig(executor=Executor.slurm), monkeypatch)
    for each in (plain, text):
        assert SRUN_UNTIL_RANK_0_IS_DONE in each
        assert each.index("export SIMCLR_RANK_0_DONE=") < each.index("srun() {")
        assert subprocess.run(["bash", "-n"], input=each, text=True, check=False).returncode == 0


def test_a_job_that_may_not_be_requeued_says_so_whatever_the_site_does(training, monkeypatch):
    cluster = ClusterConfig(executor=Executor.slurm, requeue=False)
    text = submitted_script(Pretrain(training), cluster, monkeypatch)
    assert "#SBATCH --no-requeue" in text
    assert "#SBATCH --requeue" not in text


def test_a_folder_with_a_percent_sign_is_refused_for_slurm(training, monkeypatch):
    training.run_dir = f"{training.run_dir}/d%j_50%n"
    with pytest.raises(ValueError, match=r"d%j_50%n.* has a % in its name"):
        submitted_script(Pretrain(training), ClusterConfig(executor=Executor.slurm), monkeypatch)


def test_python_runs_inside_the_wrapper_and_the_container():
    cluster = ClusterConfig(container="apptainer exec --nv i.sif", python="/opt/a b/python")
    assert python_command(cluster) == (
        "env --block-signal=USR2,TERM apptainer exec --nv i.sif '/opt/a b/python'"
    )


def test_a_job_waits_for_others_and_is_cancelled_with_them():
    options = slurm_options(ClusterConfig(after="12:13"), "export", Path("slurm"), Path("code"))
    asked = options["additional_parameters"]
    assert (asked["dependency"], asked["kill-on-invalid-dep"]) == ("afterok:12:13", "yes")


def test_a_job_that_waits_for_others_keeps_the_dependency_of_the_cluster_file():
    cluster = ClusterConfig(after="12:13", extra={"dependency": "singleton"})
    asked = slurm_options(cluster, "export", Path("slurm"), Path("code"))["additional_parameters"]
    assert asked["dependency"] == "afterok:12:13,singleton"


def test_scratch_of_one_command_is_not_that_of_the_next(shards, monkeypatch):
    seen = []
    monkeypatch.setattr(Verify, "run", lambda self, env: seen.append(scratch_folder()) or "done")
    verify = Verify(VerifyConfig(shards=str(shards)))
    for scratch in ("/tmp/a", None):
        run(verify, ClusterConfig(scratch=scratch))
    assert seen == ["/tmp/a", ""]


def test_scratch_keeps_the_variables_of_the_job_for_the_node():
    setup = slurm_options(
        ClusterConfig(scratch="/tmp/$SLURM_JOB_ID"), "x", Path("slurm"), Path("c")
    )["setup"]
    assert "export SIMCLR_SCRATCH='/tmp/$SLURM_JOB_ID'" in setup


def test_a_dry_run_shows_the_script_and_writes_nothing(training):
    cluster = ClusterConfig(executor=Executor.slurm, partition="gpu", dry_run=True)
    text = run(Pretrain(training), cluster)
    assert text.startswith("#!/bin/bash")
    assert "#SBATCH --partition=gpu" in text
    assert "export PYTHONSAFEPATH=1" in text
    assert not Path(training.run_dir).exists()


def test_a_command_that_uses_no_gpu_asks_for_none_and_for_little(training, tmp_path):
    cluster = ClusterConfig(
        executor=Executor.slurm,
        nodes=2,
        gpus_per_node=4,
        memory_gb=200,
        dry_run=True,
        cpu=CpuConfig(partition="cpu", cpus_per_task=2, memory_gb=16, time_min=60),
    )
    shards = Verify(VerifyConfig(shards=training.shards[0]))
    assert "--gpus-per-node=4" in run(Pretrain(training), cluster)
    text = run(shards, cluster)
    for line in ("nodes=1", "partition=cpu", "cpus-per-task=2", "mem=16384M", "time=60"):
        assert f"#SBATCH --{line}\n" in text
    assert "gpus" not in text
    with pytest.raises(ValueError, match=r"cluster.time_min=5"):
        run(shards, replace(cluster, cpu=CpuConfig(time_min=1)))


def test_true_is_a_flag_of_sbatch_and_zero_gpus_are_not_asked_for(training):
    cluster = ClusterConfig(
        executor=Executor.slurm,
        gpus_per_node=0,
        extra={"exclusive": "true", "overcommit": "False", "gpus-per-task": "1"},
        dry_run=True,
    )
    text = run(Pretrain(training), cluster)
    assert "#SBATCH --exclusive\n" in text
    assert "#SBATCH --gpus-per-task=1\n" in text
    assert "overcommit" not in text
    assert "gpus-per-node" not in text


def test_a_folder_whose_name_slurm_would_expand_is_refused(training, tmp_path):
    training.run_dir = str(tmp_path / "d%j_50%n" / "run")
    with pytest.raises(ValueError, match="has a % in its name"):
        run(Pretrain(training), ClusterConfig(executor=Executor.slurm, dry_run=True))


def test_the_script_for_slurm_is_complete(training, tmp_path, monkeypatch):
    text = submitted_script(Pretrain(training), ClusterConfig(executor=Executor.slurm), monkeypatch)
    for line in (
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR2@120",
        "--kill-on-bad-exit=1",
        "env --block-signal=USR2,TERM",
        f"'{training.run_dir}/slurm'",
    ):
        assert line in text
    assert "wckey" not in text


def test_packing_on_slurm_is_an_array(tmp_path, monkeypatch):
    source = SimulatedConfig(root=str(tmp_path / "rasters"))
    config = PackConfig(source=source, output=str(tmp_path / "shards"))
    cluster = ClusterConfig(executor=Executor.slurm, parts=5, parallel_parts=2, tasks_per_node=3)
    text = submitted_script(Pack(config), cluster, monkeypatch)
    assert "#SBATCH --array=0-4%2" in text
    assert "#SBATCH --ntasks-per-node=1" in text


def submitted_script(task, cluster, monkeypatch) -> str:
    """Submit to an sbatch that keeps the first script, and return it."""
    folder = Path(task.job_dir).parent.parent / "commands"
    folder.mkdir(exist_ok=True, parents=True)
    for name, body in {
        "sbatch": f'cp -n "$1" "{folder}/script"; echo Submitted batch job 42',
        "srun": "true",
        "squeue": "true",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert run(task, cluster) == "42"
    return (folder / "script").read_text()


def test_an_array_that_was_taken_is_recorded_when_slurm_refuses_the_next(tmp_path, monkeypatch):
    queue = fake_slurm(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr("jobs.slurm.submit.largest_array", lambda: 2)
    (queue.parent / "accepts").write_text("1")
    source = SimulatedConfig(root=str(tmp_path / "rasters"))
    task = Pack(PackConfig(source=source, output=str(tmp_path / "shards")))
    with pytest.raises(slurm.SlurmError, match="too many jobs"):
        run(task, ClusterConfig(executor=Executor.slurm, parts=3))
    queue.write_text("1_[0-1]|PENDING|N/A|1:00||Priority\n")
    with pytest.raises(ValueError, match=r"job 1_\[0-1\] \(pack, PENDING\) is at work"):
        run(task, ClusterConfig(executor=Executor.slurm, parts=3))


def test_gpus_that_are_named_with_a_space_reach_the_ranks(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1")
    assert shlex.split(launch._devices(LOCAL)) == ["env", "CUDA_VISIBLE_DEVICES=0, 1"]


def test_the_same_run_twice_is_refused_before_it_is_in_a_folder_of_two(shards):
    one = Verify(VerifyConfig(shards=str(shards)))
    with pytest.raises(ValueError, match="same settings and the same folder; name each value once"):
        list(run_all([(one, ClusterConfig()), (one, ClusterConfig())]))


def test_a_machine_without_slurm_is_told_so(training, monkeypatch):
    monkeypatch.setattr(slurm, "is_available", lambda: False)
    with pytest.raises(ValueError, match="this machine has no sbatch"):
        run(Pretrain(training), ClusterConfig(executor=Executor.slurm))
    assert not Path(training.run_dir).exists()


@pytest.mark.parametrize(
    ("complaint", "told"),
    [
        ("sbatch: error: Invalid account", "sbatch refused the job: Invalid account"),
        (
            "sbatch: error: no DNS\nsbatch: fatal: no configuration",
            "Slurm cannot be reached from here (no configuration); simclr-doctor looks for the "
            "cause",
        ),
    ],
)
def test_a_refused_submission_is_told_in_slurms_words_once(
    training, tmp_path, monkeypatch, capfd, caplog, complaint, told
):
    for name in ("sbatch", "srun", "sinfo", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(slurm.SlurmError) as raised:
        run(Pretrain(training), ClusterConfig(executor=Executor.slurm))
    assert str(raised.value) == told
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.parametrize(("devices", "count"), [("", 0), ("0", 1), ("0,GPU-8a", 2)])
def test_gpus_that_were_chosen_are_counted(monkeypatch, devices, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    assert num_gpus() == count


def test_more_ranks_than_gpus_run_on_the_cpu_and_say_so(monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert launch._devices(LOCAL) == "env CUDA_VISIBLE_DEVICES="
    assert "1 GPU for 2 ranks: they run on the CPU" in caplog.text


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\n'
            "ValueError: x is 1: give 2\n",
            ("ValueError", "x is 1: give 2"),
        ),
        (
            'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    x()\n'
            "jobs.launch.StoppedError: stopped\nfor two lines\n",
            ("StoppedError", "stopped\nfor two lines"),
        ),
        ("", ("error", "no traceback")),
    ],
)
def test_the_last_exception_of_a_traceback_is_found(trace, expected):
    assert last_exception(trace) == expected


def test_only_log_lines_reach_the_terminal():
    text = "12:00:01 INFO a\nTraceback (most recent call last):\n  x\n12:00:02 WARNING b\n"
    assert log_lines(text) == "12:00:01 INFO a\n12:00:02 WARNING b\n"


def test_a_stop_is_a_failure_with_a_cure():
    assert issubclass(StoppedError, RuntimeError)


def test_narrowed_settings_are_those_of_the_work(training):
    assert narrow(training, TrainConfig) == training
