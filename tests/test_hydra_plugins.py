"""Sweeps: members are named by what differs, and what is done is left out."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from hydra.version import VersionBase
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from make_data import packed_arrays
from packaging.version import Version

from jobs import cli, commands
from jobs.cli import hydra_arguments
from jobs.cli.schema import register

PRETRAIN = commands.load("pretrain")


def test_runs_are_named_by_their_swept_settings_alone():
    words = ["-m", "run_dir='a b'", "seed=0,1", "data.bands=[B02,B04],[B02]", "+x.y=1"]
    setting = hydra_arguments(words, PRETRAIN)[-1]
    assert setting == "hydra.job.config.override_dirname.exclude_keys=[run_dir,x.y]"


def test_options_may_stand_anywhere(tmp_path):
    folder = tmp_path / "x y"
    folder.mkdir()
    words = hydra_arguments(
        ["a=1", "-m", "b=1,2", "--config-dir", str(folder), "--dry-run"], PRETRAIN
    )
    assert words[:3] == ["-m", "--config-dir", str(folder)]
    assert words[3:6] == ["a=1", "b=1,2", "cluster.dry_run=true"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config-dir"], "--config-dir needs a value: --config-dir VALUE"),
        (["--cfg", "jobs"], "--cfg is 'jobs'; choose one of job, hydra, all"),
        (["--loud"], "--loud is not an option; there are --help"),
        (["-x=1"], "-x=1 is not an option"),
    ],
)
def test_unknown_options_are_told_with_those_there_are(words, told):
    with pytest.raises(ValueError, match=told):
        hydra_arguments(words, PRETRAIN)


@pytest.mark.parametrize("name", commands.WITH_SETTINGS)
def test_every_sweep_goes_through_the_safe_form_of_hydras_slurm_launcher(name):
    register(commands.load(name))
    found = {one.__name__: one for one in Plugins.instance().discover(Launcher)}
    settings = ["cluster=slurm_example"]
    settings += ["source=simulated"] if name == "pack" else []
    with initialize_config_module("jobs.conf", version_base="1.3"):
        composed = compose(name, settings, return_hydra_config=True)
    launcher = composed.hydra.launcher
    chosen = found[launcher._target_.rpartition(".")[2]]
    assert issubclass(chosen, SlurmLauncher)
    assert chosen.launch is not SlurmLauncher.launch
    assert list(launcher) == ["_target_"]  # what cluster= says cannot be contradicted


@pytest.mark.slow
def test_a_sweep_that_is_started_again_does_only_what_is_missing(tmp_path):
    for name in ("one", "two"):
        packed_arrays(tmp_path / name, 4, bands=["B02"])
    command = [
        sys.executable,
        "-m",
        "jobs.commands.verify",
        f"shards={tmp_path}/one,{tmp_path}/two",
    ]

    def said(*more: str) -> list[str]:
        done = subprocess.run(
            [*command, "-m", *more], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return [line.partition(": ")[2] for line in done.stdout.splitlines()]

    assert all(line.endswith("sound") for line in said())
    assert said() == ["done before, with the same settings"] * 2
    assert all(line.endswith("sound") for line in said("quick=true"))  # another task


def test_a_sweep_that_is_only_shown_writes_nothing(tmp_path, monkeypatch, capsys):
    shards = packed_arrays(tmp_path / "shards", 4, bands=["B02"])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["-m", "--dry-run", f"shards={shards}", "quick=true,false", "cluster=slurm_cpu_example"]
    monkeypatch.setattr(sys, "argv", ["simclr-verify", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main(commands.load("verify"))
    assert (ended.value.code, "--array=0-1" in capsys.readouterr().out) == (0, True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def applications_of_hydra_1_1(monkeypatch):
    """The suite's applications were written for the defaults of hydra 1.1, a global of hydra."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))


@pytest.mark.slow
@pytest.mark.usefixtures("applications_of_hydra_1_1")
@pytest.mark.filterwarnings("ignore:Future Hydra versions")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("simclr_slurm", [])])
class TestOtherApplications(LauncherTestSuite):
    """hydra's own suite for launchers: its applications run as with any other launcher."""
