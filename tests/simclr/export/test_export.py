"""What is exported is the checkpoint's encoder, loadable by others and never overwritten."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from simclr.export import ExportConfig
from simclr.export import export as module
from simclr.export.export import export
from simclr.export.load import load_encoder, read_card
from simclr.model.pretrained import load_pretrained

BANDS = ["B04", "B03", "B02", "B08"]


def make_views():
    return torch.randn(3, 4, 12, 12, generator=torch.Generator().manual_seed(2))


def test_the_exported_encoder_gives_the_checkpoints_representations(trained_run, exported):
    encoder = load_encoder(exported, BANDS)
    original = load_pretrained(trained_run.folder, torch.device("cpu")).encoder
    assert not encoder.training
    assert torch.equal(encoder(make_views()), original(make_views()))


def test_three_files_and_nothing_else_are_left(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "CARD.md",
        "card.json",
        "encoder.safetensors",
    ]
    assert [path.name for path in exported.parent.iterdir()] == ["encoder"]
    weights = exported / "encoder.safetensors"
    assert weights.stat().st_mode & 0o777 == (exported / "card.json").stat().st_mode & 0o777


def test_the_card_also_lies_inside_the_weights_file(exported):
    from safetensors import safe_open

    with safe_open(exported / "encoder.safetensors", framework="pt") as file:
        inside = json.loads(file.metadata()["card"])
    card = read_card(exported)
    assert inside == {name: value for name, value in card.items() if name != "weights"}


def test_exporting_the_same_again_changes_nothing(trained_run, exported):
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    export(ExportConfig(run=str(trained_run.folder), output=str(exported), licence="MIT"))
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before


def test_another_export_in_the_same_place_stops_and_leaves_it_alone(trained_run, exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    config = ExportConfig(run=str(trained_run.folder), output=str(exported), licence="other")
    with pytest.raises(ValueError, match="holds other files than this export"):
        export(config)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["encoder"]


def test_an_empty_folder_is_filled_and_a_file_is_refused(trained_run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    run = str(trained_run.folder)
    assert read_card(export(ExportConfig(run=run, output=str(tmp_path / "empty"))))["step"] == 2
    with pytest.raises(ValueError, match="holds other files"):
        export(ExportConfig(run=run, output=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_folder_that_is_empty_or_not_there_yet_is_filled(trained_run, tmp_path, exists):
    target, link = tmp_path / "scratch" / "target", tmp_path / "link"
    if exists:
        target.mkdir(parents=True)
    link.symlink_to(target)
    export(ExportConfig(run=str(trained_run.folder), output=str(link)))
    assert link.is_symlink()
    assert read_card(target)["step"] == 2
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_failure_while_writing_leaves_no_folder(trained_run, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "card_markdown", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(ExportConfig(run=str(trained_run.folder), output=str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_differ_from_the_checkpoint_are_not_published(
    trained_run, tmp_path, monkeypatch
):
    def other_weights(*_):
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * 12 * 12, 512)).eval()

    monkeypatch.setattr(module, "load_encoder", other_weights)
    with pytest.raises(RuntimeError, match="differs from the checkpoint's"):
        export(ExportConfig(run=str(trained_run.folder), output=str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["run", "output"])
def test_an_empty_setting_is_named(missing):
    config = ExportConfig(**{"run": "a", "output": "b", missing: ""})
    with pytest.raises(ValueError, match=f"{missing} is empty"):
        export(config)
