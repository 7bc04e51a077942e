"""The demonstration finds what lies in a root, and its commands survive any path."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from make_data import bigearthnet_v1, packed_arrays

from jobs import demo
from jobs.run_dir import code_version


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1))
def test_any_path_comes_through_the_command_line(name):
    path = Path(name)
    (override,) = OverridesParser.create().parse_overrides([demo._is("output", path)])
    assert str(override.value()) == str(path)


def test_a_v1_tree_is_recognised_from_above_and_from_inside(tmp_path):
    bigearthnet_v1(tmp_path / "BigEarthNet-v1.0", 1)
    assert demo.kind_of_root(tmp_path) == "bigearthnet_v1"
    assert demo.kind_of_root(tmp_path / "BigEarthNet-v1.0") == "bigearthnet_v1"


def test_the_real_roots_are_recognised(real_data):
    assert demo.kind_of_root(real_data / "bigearthnet_v1") == "bigearthnet_v1"
    assert demo.kind_of_root(real_data / "bigearthnet_v2") == "bigearthnet_v2"


def test_another_root_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", str(tmp_path))
    assert demo.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"demo: DATA is {tmp_path}, which holds neither")
    assert said.count("\n") == 1


def test_few_patches_get_a_batch_that_the_ranks_can_share(tmp_path):
    it = demo.Demo("simulated", Path("r"), tmp_path)
    packed_arrays(it.shards, 13, bands=["B02"])
    steps = demo.steps_after_packing(it)
    assert "data.global_batch_size=12" in steps["pretrain"]
    assert 'data.splits=[train,validation,test,""]' in steps["pretrain"]
    assert "evaluate" not in steps  # nothing could be said of an encoder


def test_a_failing_step_ends_it_with_its_exit_code(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setattr(demo, "NUM_PATCHES", -1)
    assert demo.main() == 2
    printed = capfd.readouterr()
    assert "$ simclr-pack source=simulated" in printed.out
    assert "source.num_patches is -1" in printed.err


@pytest.mark.slow
def test_the_whole_demonstration_runs(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setattr(demo, "NUM_PATCHES", 64)
    assert demo.main() == 0
    out = capfd.readouterr().out
    assert "simulated patches: the scores say that it works, nothing about Sentinel-2" in out
    for name in ("run/evaluation.md", "export/encoder.safetensors", "export/CARD.md"):
        assert (tmp_path / "demo" / "simulated" / name).exists()


def test_shown_commands_can_be_typed():
    it = demo.Demo("bigearthnet_v1", Path("/data/Big Earth"), Path("demo/x"))
    typed = shlex.split(shlex.join(["simclr-pack", *demo.pack_arguments(it)]))
    assert 'source.root="/data/Big Earth"' in typed


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_version(tmp_path) == {"commit": None, "changed": None}


def test_code_in_a_checkout_has_one():
    version = code_version(Path(__file__).parent)
    assert len(version["commit"]) == 40
    assert isinstance(version["changed"], bool)


def test_enough_patches_are_trained_on_by_their_split_and_scored(tmp_path):
    it = demo.Demo("simulated", Path("r"), tmp_path)
    packed_arrays(it.shards, 2 * demo.BATCH_SIZE, bands=["B02"])
    steps = demo.steps_after_packing(it)
    assert not any("splits" in argument for argument in steps["pretrain"])
    assert "data.global_batch_size=64" in steps["pretrain"]
    assert "evaluate" in steps
