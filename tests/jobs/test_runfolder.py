"""A run folder keeps the settings it was started with, and lets one attempt at a time publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.run_dir import (
    Submission,
    check_run_dir,
    code_version,
    freeze,
    frozen_config,
    read_submission,
    write_submission,
)
from simclr.config import OptimConfig, TrainConfig


def config(run_dir, **settings) -> TrainConfig:
    return TrainConfig(run_dir=str(run_dir), shards=["a b"], **settings)


def with_a_checkpoint(run_dir):
    (run_dir / "checkpoints" / "step-000000005").mkdir(parents=True)
    return run_dir


def test_frozen_settings_read_back_equal(tmp_path):
    started = config(tmp_path, epochs=3, optim=OptimConfig(learning_rate=0.25))
    freeze(tmp_path, started)
    assert frozen_config(tmp_path) == started


def test_other_settings_are_refused_with_the_list_of_keys(tmp_path):
    freeze(with_a_checkpoint(tmp_path), config(tmp_path, epochs=3))
    with pytest.raises(ValueError, match=r"other settings \(epochs: 3, now 4; seed: 0, now 1\)"):
        check_run_dir(tmp_path, config(tmp_path, epochs=4, seed=1))
    assert frozen_config(tmp_path).epochs == 3


def test_a_folder_of_packed_shards_becomes_no_run(tmp_path):
    (tmp_path / "manifest.json").touch()
    with pytest.raises(ValueError, match=r"holds packed shards; give another run_dir"):
        check_run_dir(tmp_path, config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_settings_that_leave_the_weights_alone_may_change(tmp_path):
    freeze(with_a_checkpoint(tmp_path), config(tmp_path))
    check_run_dir(tmp_path, config(tmp_path, log_every_steps=99))


def test_settings_may_be_mended_before_the_first_checkpoint(tmp_path):
    freeze(tmp_path, config(tmp_path, epochs=3))
    check_run_dir(tmp_path, config(tmp_path, epochs=4))
    freeze(tmp_path, config(tmp_path, epochs=4))
    assert frozen_config(tmp_path).epochs == 4


@pytest.mark.parametrize("text", ["- a list\n", "a: [", "nonsense: 1\n"])
def test_settings_that_cannot_be_read_are_refused_with_their_file(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        frozen_config(tmp_path)


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        frozen_config(tmp_path)


def test_the_provenance_names_code_and_versions_and_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret-value")
    freeze(tmp_path, config(tmp_path))
    text = (tmp_path / "provenance.json").read_text()
    assert "secret-value" not in text
    assert json.loads(text)["versions"]["torch"]


def test_a_submission_reads_back_equal(tmp_path):
    assert read_submission(tmp_path, "pretrain") is None
    submission = Submission("12", "pretrain", ["simclr-pretrain", "a b"], 1.5, "log")
    write_submission(tmp_path, submission)
    assert read_submission(tmp_path, "pretrain") == submission


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_version(tmp_path) == {"commit": None, "changed": None}


def test_code_in_a_checkout_has_one():
    version = code_version(Path(__file__).parent)
    assert len(version["commit"]) == 40
    assert isinstance(version["changed"], bool)
