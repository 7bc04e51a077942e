"""A trained run and labelled shards give a report with controls, intervals and its limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from make_data import packed_arrays

from simclr.checkpoint.manifest import read_checkpoint_manifest, write_manifest
from simclr.evaluation.config import (
    IMAGE_STATISTICS,
    RANDOM_CONVOLUTIONS,
    RANDOM_ENCODER,
    SCORES,
    WITHOUT_INTERVAL,
    EvaluateConfig,
    FinetuneConfig,
    Protocol,
)
from simclr.evaluation.evaluate import evaluate
from simclr.evaluation.features import LabelledPatches
from simclr.evaluation.report import read_report, report_text

pytestmark = pytest.mark.slow
CONTROLS = [RANDOM_ENCODER, RANDOM_CONVOLUTIONS, IMAGE_STATISTICS]


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """The run, evaluated on its own shards, and the settings of that."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained_run.folder, run)
    config = settings(run, trained_run.shards)
    assert evaluate(config, progress=False) == own_path(config)
    return config


def settings(run, shards, **others):
    options = {
        "task": "labels",
        "seeds": [0, 1],
        "bootstrap": 100,
        "batch_size": 40,
        "protocols": [Protocol.probe, Protocol.knn],
        **others,
    }
    return EvaluateConfig(run=str(run), shards=str(shards), **options)


def report_path(config):
    return Path(config.run) / "evaluation.json"


def own_path(config):
    [path] = (Path(config.run) / "evaluation").glob("*.json")
    return path


def report(config):
    return read_report(report_path(config))


def test_every_score_has_an_interval_and_stands_beside_all_controls(evaluated):
    [evaluation] = report(evaluated)
    rows = {(row["protocol"], row["encoder"]): row for row in evaluation["results"]}
    assert set(rows) == {
        (protocol, encoder)
        for protocol in ("linear probe", "k-NN")
        for encoder in ("pretrained", *CONTROLS)
    }
    for row in rows.values():
        assert tuple(row["scores"]) == SCORES["single"]
        for name, score in row["scores"].items():
            if name in WITHOUT_INTERVAL or score["value"] in (0, 1):  # all resamples are alike
                assert score["low"] is None
                continue
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    # the official split is one for all seeds: only what is drawn by a seed is tried twice
    assert rows["k-NN", "pretrained"]["seeds"] == [0]
    assert rows["k-NN", RANDOM_ENCODER]["seeds"] == [0, 1]
    compared = {(one["protocol"], one["control"]) for one in evaluation["differences"]}
    assert len(compared) == 6


def test_the_report_tells_what_was_scored(evaluated):
    [evaluation] = report(evaluated)
    assert evaluation["step"] == 2
    assert evaluation["bands"] == ["B04", "B03", "B02", "B08"]
    assert evaluation["shards"]["num_labelled"] == 96
    assert evaluation["split"]["origin"] == "official split of the shards"
    assert evaluation["split"]["counts"] == {"train": 48, "validation": 24, "test": 24}
    assert evaluation["split"]["leakage"] == 0
    notes = " ".join(evaluation["notes"])
    assert "pretrained on none of these test patches, compared by pixels" in notes
    assert "2 seeds: how much" in notes


def test_simulated_is_said_in_every_output(evaluated):
    [evaluation] = report(evaluated)
    assert evaluation["simulated"] is True
    assert report_text(own_path(evaluated)).startswith("SIMULATED PATCHES")
    page = (Path(evaluated.run) / "evaluation.md").read_text()
    assert page.startswith(f"# SIMULATED PATCHES, labels, step 2\n\n**{evaluation['verdict']}**\n")


def test_the_terminal_table_is_plain_and_names_all_rows(evaluated):
    table = report_text(own_path(evaluated))
    assert table.isascii()
    for encoder in ("pretrained", *CONTROLS):
        assert f"linear probe: {encoder}" in table
        assert f"k-NN: {encoder}" in table
    assert max(map(len, table.splitlines())) <= 110


def test_a_second_evaluation_reads_stored_features_and_finds_the_same(evaluated, monkeypatch):
    before = report(evaluated)

    def no_reading(*_):
        raise AssertionError("patches were read though their features are stored")

    monkeypatch.setattr(LabelledPatches, "in_order", no_reading)
    evaluate(evaluated, progress=False)
    assert report(evaluated) == before


def test_other_shards_are_added_and_drawn_splits_tried_with_every_seed(evaluated, tmp_path):
    shards = packed_arrays(
        tmp_path, 40, size_px=12, native=False, source="elsewhere", splits=("",), seed=3
    )
    evaluate(settings(evaluated.run, shards), progress=False)
    evaluations = {one["shards"]["sources"][0]: one for one in report(evaluated)}
    assert set(evaluations) == {"arrays", "elsewhere"}
    elsewhere = evaluations["elsewhere"]
    assert elsewhere["split"]["redrawn"]
    assert all(row["seeds"] == [0, 1] for row in elsewhere["results"])
    assert "pretrained on none of these test patches" in " ".join(elsewhere["notes"])
    page = (Path(evaluated.run) / "evaluation.md").read_text()
    assert page.count("# SIMULATED PATCHES") == 2


def test_a_run_that_saw_the_test_patches_says_so(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder, run)
    [folder] = (run / "checkpoints").glob("step-*")
    manifest = read_checkpoint_manifest(folder)
    manifest.config["data"]["splits"] = ["train", "validation", "test"]
    write_manifest(folder, manifest)
    config = settings(run, trained_run.shards, seeds=[0])
    evaluate(config, progress=False)
    notes = " ".join(report(config)[0]["notes"])
    assert "pretrained on 100 % of these test patches" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": ""}, "run is empty"),
        ({"shards": ""}, "shards is empty"),
        ({"step": 7}, "no checkpoint of step 7; there are: 2"),
        ({"others": ["nowhere"]}, "nowhere is not a run folder, export or file of weights"),
        ({"task": "eurosat"}, "they hold: labels"),
    ],
)
def test_wrong_use_stops_and_leaves_nothing(trained_run, tmp_path, change, message):
    run = tmp_path / "run"
    shutil.copytree(trained_run.folder, run)
    before = sorted(run.rglob("*"))
    config = settings(run, trained_run.shards)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        evaluate(config, progress=False)
    assert sorted(run.rglob("*")) == before


def test_a_report_of_another_format_stops(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="evaluate again"):
        read_report(path)


def test_fine_tuning_stands_beside_the_same_network_from_scratch_at_every_fraction(
    evaluated, trained_run
):
    short = FinetuneConfig(max_steps=1, batch_size=8, learning_rates=[1e-3], checks=1)
    everything = settings(
        evaluated.run,
        trained_run.shards,
        protocols=list(Protocol),
        fractions=[0.25, 1.0],
        seeds=[0],
        finetune=short,
        others=[str(trained_run.folder)],
    )
    evaluate(everything, progress=False)
    [evaluation] = [one for one in report(everything) if len(one["protocol"]["fractions"]) == 2]
    rows = {
        (row["protocol"], row["fraction"], row["encoder"]): row for row in evaluation["results"]
    }
    for fraction in (0.25, 1.0):
        assert ("fine-tune all", fraction, "training from scratch") in rows
        assert ("fine-tune all", fraction, RANDOM_ENCODER) not in rows
        for protocol in ("fine-tune frozen", "fine-tune last stage"):
            assert (protocol, fraction, RANDOM_ENCODER) in rows
            assert (protocol, fraction, IMAGE_STATISTICS) not in rows
    # the same weights under another name: the same answers, whatever was drawn
    for protocol in ("linear probe", "fine-tune all"):
        own, other = (rows[protocol, 0.25, name] for name in ("pretrained", "run"))
        assert own["scores"] == other["scores"]
        assert own["seeds"] == [0]
    compared = {
        (one["protocol"], one["fraction"], one["control"]) for one in evaluation["differences"]
    }
    assert ("fine-tune all", 0.25, "training from scratch") in compared
    assert all(one["p_value"] <= one["p_holm"] <= 1 for one in evaluation["differences"])
    assert "validation split, also where few labels" in " ".join(evaluation["notes"])
    # as it was, for the tests that follow
    evaluate(evaluated, progress=False)


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_that_say_nothing_are_refused(seeds):
    with pytest.raises(ValueError, match="seeds is"):
        EvaluateConfig(seeds=seeds)
