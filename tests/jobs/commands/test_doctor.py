"""A sound machine is called sound, and what is not right is named with what mends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.commands import doctor
from jobs.commands.doctor import Level, examine, file_system
from jobs.slurm.client import parse_settings

MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/x /home nfs4 rw 0 0
10.0.0.1@tcp:/fs /scratch\\040two lustre rw 0 0
"""


def levels(findings):
    return {finding.level for finding in findings}


def test_a_machine_on_which_the_tests_run_has_nothing_that_fails(tmp_path):
    found = list(examine([tmp_path]))
    assert Level.fail not in levels(found)
    text = "\n".join(map(str, found))
    assert "belong together" in text
    assert "writes and renames" in text
    assert list(tmp_path.iterdir()) == []  # what was tried is removed


def test_a_missing_folder_fails_with_the_fix(tmp_path):
    (finding,) = doctor._folder(tmp_path / "none")
    assert finding.level is Level.fail
    assert "mkdir -p" in finding.fix


def test_a_folder_that_cannot_be_written_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.os, "fsync", full)
    *_, finding = doctor._folder(tmp_path)
    assert finding.level is Level.fail
    assert "No space left" in finding.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/x", "ext4"),
        ("/home/me/runs", "nfs4"),
        ("/homestead", "ext4"),
        ("/scratch two/a", "lustre"),
        ("/dev/shm", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_longest_mount(folder, kind):
    assert file_system(Path(folder), MOUNTS) == kind


def test_settings_of_slurm_are_judged_by_what_they_mean_for_a_run():
    settings = parse_settings("JobRequeue              = 0\nKillWait                = 10 sec\nX = ")
    assert settings["KillWait"] == "10 sec"
    assert doctor.judge_setting("JobRequeue", settings["JobRequeue"]).level is Level.warn
    assert "signal_delay_s" in doctor.judge_setting("KillWait", settings["KillWait"]).fix
    for value, level in (("9 sec", Level.warn), ("30 sec", Level.ok), ("120 sec", Level.ok)):
        assert doctor.judge_setting("KillWait", value).level is level


def test_a_broken_pair_of_torch_and_torchvision_fails_with_the_fix(monkeypatch):
    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    assert doctor.check_torch().level is Level.ok
    monkeypatch.setattr(doctor, "import_module", fails)
    finding = doctor.check_torch()
    assert finding.level is Level.fail
    assert "do not belong together (operator torchvision::nms does not exist)" in finding.what
    assert "--force-reinstall -c constraints.txt torch torchvision" in finding.fix


def test_a_torch_that_does_not_import_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "simclr.model.simclr", None)
    assert doctor.check_torch().level is Level.fail


def test_variables_that_change_answers_behind_our_back_are_named():
    found = doctor._environment({"SQUEUE_STATES": "RUNNING", "PROJ_LIB": "/opt", "HOME": "/root"})
    assert [finding.what.partition("=")[0] for finding in found] == ["PROJ_LIB", "SQUEUE_STATES"]


def test_quiet_shows_only_what_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simclr-doctor", "--quiet", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.startswith(f"FAIL  {tmp_path}/none is not a folder; mkdir -p")


def test_options_are_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "jobs.commands.doctor", "--fast"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "simclr-doctor: --fast is not an option; there are --quiet, --write-cluster, --partition; "
        "else name folders\n"
    )
