"""What each command says of itself, and how settings are composed, swept and only looked at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from contract.console import COMMANDS, TRAINING, call, end, files, start

# Settings that a command's --help names, with the default where it shows one.
SETTINGS = {
    "fetch": {
        **{"what": "stac", "output": "", "boxes": "", "geojson": "", "dates": "", "tiles": ""},
        **{"max_cloud": "100", "max_gb": "200", "streams": "8", "whole_scenes": "False"},
    },
    "pack": {
        **{"source.root": "", "source.bands": "", "output": "", "limit": "0"},
        **{"shard_size_mib": "1024", "compression": "none", "on_error": "quarantine"},
        **{"max_rejected": "0.01", "cluster.tasks_per_node": "1", "cluster.parts": "1"},
    },
    "verify": {"shards": "", "quick": "False", "repair": "False", "root": "", "threads": ""},
    "pretrain": {
        **{"shards": "", "run_dir": "", "epochs": "50", "max_steps": "0"},
        **{"data.global_batch_size": "256", "data.bands": "", "data.positives": "same"},
        **{"model.encoder": "resnet50", "optim.learning_rate": "0.0005"},
        **{"loss.temperature": "0.1", "monitor.shards": "", "tracking": ""},
    },
    "evaluate": {
        **{"run": "", "shards": "", "task": "", "protocols": "", "fractions": "", "others": ""},
        **{"seeds": "", "step": "0", "split": "", "all_checkpoints": "False"},
    },
    "export": {"run": "", "output": "", "step": "0", "formats": "", "licence": ""},
    "inspect": {"what": "shards", "shards": "", "output": "", "patches": "", "seed": "0"},
    "study": {
        **{"study": "", "output": "", "shards": "", "labelled": "", "tasks": "", "seeds": ""},
        **{"arms": "", "protocol": "probe", "fractions": ""},
    },
    "status": {"--short": "", "--watch": "", "--json": "", "--report": ""},
    "chain": {},
    "doctor": {},
}
GROUPS = {
    "fetch": {"area", "cluster"},
    "pack": {"source", "cluster"},
    "pretrain": {"recipe", "cluster"},
}
COMPOSED = [command for command in SETTINGS if command not in ("status", "chain", "doctor")]


def help_of(command: str, cwd: Path) -> str:
    ended = call(command, "--help", cwd=cwd)
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def test_these_are_all_commands():
    assert set(SETTINGS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_and_exit_codes_and_writes_nothing(command, tmp_path):
    page = help_of(command, tmp_path)
    assert page.startswith(f"simclr-{command}: ")
    assert len(re.findall(rf"^ +.*simclr-{command}\b", page, re.MULTILINE)) >= 2
    for code in "012":
        assert re.search(rf"Exit codes:.*\b{code} ", page, re.DOTALL)
    assert call(command, "-h", cwd=tmp_path).out == page
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(command, tmp_path):
    assert [line for line in help_of(command, tmp_path).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("command", "key", "default"),
    [(command, key, default) for command, of in SETTINGS.items() for key, default in of.items()],
)
def test_help_names_the_main_settings_with_their_defaults(command, key, default, tmp_path):
    page = help_of(command, tmp_path)
    entry = re.search(rf"^( +){re.escape(key)}(?=[\s=\[]).*\n(?:\1 +.*\n)*", page, re.MULTILINE)
    assert entry, key
    assert not default or re.search(rf"\b{re.escape(default)}\b", entry[0], re.IGNORECASE)


@pytest.mark.parametrize("command", GROUPS)
def test_help_lists_the_choices_of_each_group(command, tmp_path):
    page = help_of(command, tmp_path)
    choices = {
        **{"source": ("bigearthnet_v1", "bigearthnet_v2", "eurosat", "geotiff", "simulated")},
        **{"recipe": ("laptop", "paper", "recommended"), "area": ("central_valley",)},
        **{"cluster": ("here", "laptop", "slurm_example", "slurm_cpu_example")},
    }
    for group in GROUPS[command]:
        assert [name for name in choices[group] if not re.search(rf"\b{name}\b", page)] == []


@pytest.mark.parametrize("command", COMPOSED)
def test_cfg_job_is_yaml_with_the_settings_of_the_help(command, tmp_path):
    arguments = ["source=geotiff"] if command == "pack" else []
    ended = call(command, *arguments, "--cfg", "job", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    composed = yaml.safe_load(ended.out)
    assert {"cluster", "debug"} <= set(composed)
    for key in SETTINGS[command]:
        level = composed
        for name in key.split("."):
            assert name in level, key
            level = level[name]
    assert list(tmp_path.iterdir()) == []


def test_a_site_file_and_the_command_line_win_over_what_is_shipped(tmp_path):
    for group in ("cluster", "recipe"):
        (tmp_path / "own" / group).mkdir(parents=True)
    shipped = (REPOSITORY / "jobs" / "conf" / "cluster" / "slurm_example.yaml").read_text()
    assert "partition: gpu" in shipped
    mine = shipped.replace("partition: gpu", "partition: ours")
    (tmp_path / "own" / "cluster" / "mine.yaml").write_text(mine)
    recipe = "# @package _global_\nepochs: 7\noptim:\n  learning_rate: 0.25\n"
    (tmp_path / "own" / "recipe" / "ours.yaml").write_text(recipe)
    ended = call(
        *("pretrain", "--config-dir=own", "cluster=mine", "recipe=ours"),
        *("optim.learning_rate=1e-3", "cluster.nodes=3", "--cfg", "job"),
        cwd=tmp_path,
    )
    assert (ended.code, ended.err) == (0, "")
    composed = yaml.safe_load(ended.out)
    assert (composed["cluster"]["partition"], composed["cluster"]["nodes"]) == ("ours", 3)
    assert (composed["epochs"], composed["optim"]["learning_rate"]) == (7, 1e-3)


def test_a_recipe_sets_what_it_says(tmp_path):
    said = {
        name: yaml.safe_load(call("pretrain", f"recipe={name}", "--cfg", "job", cwd=tmp_path).out)
        for name in ("paper", "laptop")
    }
    paper, laptop = said["paper"], said["laptop"]
    assert (paper["model"]["encoder"], paper["data"]["global_batch_size"]) == ("resnet152", 32)
    assert (paper["epochs"], paper["loss"]["temperature"]) == (50, 0.1)
    assert (paper["optim"]["name"], paper["optim"]["learning_rate"]) == ("adam", 5e-4)
    assert (laptop["model"]["encoder"], laptop["augment"]["view_size_px"]) == ("resnet18", 48)


@pytest.mark.parametrize("spelling", ["--dry-run", "cluster.dry_run=true"])
def test_a_dry_run_prints_the_batch_script_and_writes_nothing(packed, tmp_path, spelling):
    settings = ("recipe=laptop", f"shards=['{packed.folder}']", "run_dir=run")
    ended = call("pretrain", *settings, "cluster=slurm_example", spelling, cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("#!/bin/bash\n")
    for line in (
        *("--partition=gpu", "--requeue", "--open-mode=append", "--signal=USR2@120"),
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"),
    ):
        assert re.search(rf"^#SBATCH {line}$", ended.out, re.MULTILINE), line
    for word in ("--kill-on-bad-exit=1", "env --block-signal=USR2,TERM", f"{tmp_path}/run/slurm"):
        assert word in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_pack_shows_an_array(tmp_path):
    settings = ("source=simulated", "source.root=rasters", "output=shards", "cluster.parts=5")
    cluster = ("cluster=slurm_example", "cluster.parallel_parts=2", "--dry-run")
    ended = call("pack", *settings, *cluster, cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "#SBATCH --array=0-4%2\n" in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cluster", ["here", "laptop"])
def test_a_dry_run_on_this_machine_only_says_what_would_run(packed, tmp_path, cluster):
    settings = ("recipe=laptop", f"shards=['{packed.folder}']", "run_dir=run")
    ended = call("pretrain", *settings, f"cluster={cluster}", "--dry-run", cwd=tmp_path)
    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    assert "would run" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_each_value_once_and_a_repetition_only_what_is_missing(packed, tmp_path):
    def sound(values: str) -> list[bool]:
        ended = call("verify", f"shards={packed.folder}", f"quick={values}", "-m", cwd=tmp_path)
        assert ended.code == 0, ended.err
        return [line.endswith("sound") for line in ended.out.splitlines()]

    assert sound("true,false") == [True, True]
    assert sound("true,false") == [False, False]


def test_a_sweep_with_a_member_that_cannot_be_ends_with_its_code(packed, tmp_path):
    ended = call("verify", f"shards={packed.folder},nowhere", "-m", cwd=tmp_path)
    assert (ended.code, ended.err.count("simclr-verify: ")) == (2, 1)
    assert "nowhere" in ended.err.splitlines()[-1]


@pytest.mark.slow
def test_members_of_a_sweep_lie_in_folders_named_by_their_values(packed, tmp_path):
    settings = (*TRAINING, "max_steps=1", f"shards=['{packed.folder}']", "run_dir=runs")
    sweep = (*settings, "optim.learning_rate=1e-4,5e-4", "-m")
    ended = call("pretrain", *sweep, cwd=tmp_path)
    assert ended.code == 0, ended.err
    members = [f"optim.learning_rate={rate}" for rate in ("0.0001", "0.0005")]
    assert sorted(path.name for path in (tmp_path / "runs").glob("*/")) == members
    for line, member in zip(ended.out.splitlines(), members, strict=True):
        assert line.endswith(f"runs/{member}/checkpoints/step-000000001")
    events = {path: path.read_bytes() for path in tmp_path.glob("runs/*/attempts.jsonl")}
    assert len(events) == 2
    assert call("pretrain", *sweep, cwd=tmp_path).code == 0
    assert {path: path.read_bytes() for path in events} == events


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_installed_script_starts(command, tmp_path):
    ended = end(start(command, "--help", cwd=tmp_path))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == help_of(command, tmp_path)
    assert files(tmp_path) == set()
