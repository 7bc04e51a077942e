"""The card holds what a user needs, and its code runs without ours."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
import torch

from simclr.checkpoint.manifest import read_checkpoint_manifest, write_manifest
from simclr.export import ExportConfig
from simclr.export.card import build_card, card_markdown, loading_example
from simclr.export.export import export
from simclr.export.load import load_encoder, read_card
from simclr.model.pretrained import load_pretrained

CPU = torch.device("cpu")
BANDS = ["B04", "B03", "B02", "B08"]


@pytest.mark.slow
def test_the_loading_example_gives_our_representations_in_plain_torchvision(trained_run, tmp_path):
    folder = export(ExportConfig(run=str(trained_run.folder), output=str(tmp_path / "out")))
    page = (folder / "CARD.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "simclr" not in code
    code += '\ntorch.save(h.detach(), "h.pt")\n'
    # -I: neither this repository nor its environment variables are there
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True, timeout=600)
    table = read_card(folder)["normalisation"]["arrays"]
    mean, std = (torch.tensor([table[band][key] for band in BANDS]) for key in ("mean", "std"))
    views = ((1000.0 - mean) / std)[None, :, None, None].expand(1, 4, 12, 12)
    expected = load_encoder(folder, BANDS)(views)
    torch.testing.assert_close(torch.load(folder / "h.pt"), expected, rtol=1e-5, atol=1e-5)


def test_the_example_loads_in_ten_lines(trained_run):
    card = build_card(load_pretrained(trained_run.folder, CPU), trained_run.folder, "MIT")
    loading, _ = loading_example(card).split("\n\n")
    assert len(loading.splitlines()) <= 10


def test_the_card_tells_input_origin_and_training(trained_run):
    pretrained = load_pretrained(trained_run.folder, CPU)
    card = build_card(pretrained, trained_run.folder, "CC-BY-4.0")
    assert [band["name"] for band in card["bands"]] == BANDS
    assert card["bands"][3] == {"name": "B08", "wavelength_nm": 832.8, "ground_resolution_m": 10}
    assert card["size_px"] == 12
    assert card["unit"] == "reflectance x 10000, offset removed"
    assert list(card["normalisation"]["arrays"]) == BANDS
    assert card["dataset"]["fingerprint"] == pretrained.dataset["fingerprint"]
    assert (card["step"], card["augmentation"], card["stem"]) == (2, "standard", "small")
    assert card["training"]["data"]["global_batch_size"] == 8
    assert card["licence"] == "CC-BY-4.0"


def test_the_card_names_no_path_of_this_machine(trained_run, tmp_path):
    run = with_evaluation(trained_run, tmp_path, step=2, others=[str(tmp_path / "other.pth")])
    [folder] = (run / "checkpoints").glob("step-*")
    manifest = read_checkpoint_manifest(folder)
    manifest.config["monitor"] |= {"shards": str(tmp_path / "held_out"), "task": "labels"}
    manifest.config["model"]["weights"] = str(tmp_path / "imagenet.pth")
    write_manifest(folder, manifest)
    card = build_card(load_pretrained(run, CPU), run, "MIT")
    for path in (trained_run.folder, trained_run.shards, run, tmp_path):
        assert str(path) not in json.dumps(card)
    assert card["training"]["model"]["weights"] == "imagenet.pth"
    assert card["evaluations"][0]["protocol"]["others"] == ["other.pth"]


def test_simulated_is_said_in_card_and_page(trained_run):
    card = build_card(load_pretrained(trained_run.folder, CPU), trained_run.folder, "MIT")
    assert card["simulated"] is True
    assert "**Trained on simulated patches" in card_markdown(card)
    assert "simulated" not in card_markdown({**card, "simulated": False, "evaluations": []})


def test_the_commit_of_the_run_is_quoted(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder, run)
    (run / "provenance.json").write_text('{"code": {"commit": "abc123", "changed": true}}')
    card = build_card(load_pretrained(run, CPU), run, "MIT")
    assert card["code"]["commit"] == "abc123"
    assert "commit abc123 with local changes" in card_markdown(card)


def with_evaluation(trained_run, tmp_path, step, others=()):
    """Copy the run and lay an evaluation of some step into it."""
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder, run)
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "by_seed": [0.5]}
    result = {
        "encoder": "pretrained",
        "protocol": "linear probe",
        "fraction": 1.0,
        "seeds": [0],
        "choices": [{}],
        "scores": {"accuracy": score},
        "classes": {"average_precision": [None], "f1": [score]},
    }
    evaluation = {
        "simulated": True,
        "run": str(run),
        "step": step,
        "encoder": "resnet18",
        "bands": BANDS,
        "task": {"name": "labels", "kind": "single", "classes": ["field"], "positives": [3]},
        "shards": {"folder": str(trained_run.shards), "sources": ["arrays"], "num_labelled": 3},
        "split": {"origin": "official", "seeds": [0], "counts": {"test": 3}},
        "protocol": {"bootstrap": {"unit": "patch", "blocks": 3}, "others": others},
        "headline": "accuracy",
        "differences": [],
        "results": [result],
        "findings": ["a finding"],
        "notes": ["a limit"],
    }
    (run / "evaluation.json").write_text(json.dumps({"evaluations": [evaluation]}))
    return run


def test_scores_of_this_step_stand_in_the_card(trained_run, tmp_path):
    run = with_evaluation(trained_run, tmp_path, step=2)
    card = build_card(load_pretrained(run, CPU), run, "MIT")
    assert card["evaluations"][0]["results"][0]["scores"]["accuracy"]["low"] == 0.4
    assert "50.0 [40.0, 60.0]" in card_markdown(card)


def test_scores_of_another_step_are_left_out_aloud(trained_run, tmp_path, caplog):
    run = with_evaluation(trained_run, tmp_path, step=1)
    with caplog.at_level(logging.WARNING):
        card = build_card(load_pretrained(run, CPU), run, "MIT")
    assert card["evaluations"] == []
    assert "of step 1, the export of step 2" in caplog.text
    assert "Not evaluated at this step." in card_markdown(card)


@pytest.mark.parametrize("std", [0.0, 0.2, 700.0])
def test_normalisation_is_what_training_divided_by(trained_run, tmp_path, std):
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder, run)
    [folder] = (run / "checkpoints").glob("step-*")
    manifest = read_checkpoint_manifest(folder)
    manifest.dataset["normalisation"]["arrays"]["B04"]["std"] = std
    write_manifest(folder, manifest)
    card = build_card(load_pretrained(run, CPU), run, "MIT")
    assert card["normalisation"]["arrays"]["B04"]["std"] == max(std, 1.0)
