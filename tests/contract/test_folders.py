"""What each command leaves on disk and says on stdout, for people and for programs."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from contract.console import TRAINING, call, datasets, files
from safetensors import safe_open

MANIFEST_KEYS = {
    *("format", "format_version", "unit", "rows", "source", "simulated", "layout", "shards"),
    *("statistics", "sha256"),
}
EVENT_KEYS = {
    "start": {"attempt", "time", "job_id", "restarts", "num_ranks", "nodes", "host", "pid"},
    "training": {"attempt", "time", "duration_s", "first_step", "lost_steps"},
    "finished": {"attempt", "time", "duration_s", "first_step", "checkpoint"},
}
METRIC_KEYS = {
    *("step", "num_steps", "epoch", "time", "learning_rate", "loss", "chance_level"),
    *("gradient_norm", "deviation", "mean_cosine", "alignment", "uniformity", "rank_me"),
    *("rank_me_centred", "patches_per_s", "data_wait_share", "peak_memory_gib", "skipped_steps"),
}
RUN_KEYS = {
    *("run", "state", "needs_person", "action", "job_id", "nodes", "attempt", "attempts", "step"),
    *("num_steps", "patches_per_s", "time_left_s", "expected_end", "limit_left_s"),
    *("checkpoint_step", "checkpoint_age_s", "checkpoint_state", "at_risk_steps", "at_risk_s"),
    *("heartbeat_age_s", "heartbeat_of", "metrics", "log", "others", "trackers", "slurm_error"),
}
ATTEMPT_KEYS = {
    *("number", "start", "end", "outcome", "cause", "first_step", "last_step", "nodes"),
    *("num_ranks", "job_id", "lost_steps"),
}
PACKING_KEYS = {
    *("shards", "state", "needs_person", "action", "job_id", "members", "failed", "num_done"),
    *("num_shards", "log", "slurm_error"),
}


def json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_pack_leaves_shards_and_a_manifest_that_names_them(packed):
    shards = [f"shard-{number:05d}.h5" for number in range(3)]
    assert {"manifest.json", "rejected.jsonl", *shards} == {
        name for name in packed.files if "/" not in name
    }
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert set(manifest) >= MANIFEST_KEYS
    assert [shard["file"] for shard in manifest["shards"]] == shards
    assert (manifest["rows"], manifest["format"]) == (64, "simclr-s2-shard")
    assert [group["name"] for group in manifest["layout"]["groups"]] == ["b10", "b20", "b60"]


def test_the_data_sets_of_a_shard_are_those_of_the_format(packed):
    index = (
        *("acquired", "baseline", "block", "crc32", "epsg", "facts_crc32", "id", "offset"),
        *("offset_authority", "path", "place", "product", "split", "tile", "transform"),
        "valid_fraction",
    )
    labels = ("bigearthnet19", "bigearthnet43", "irrigation_extended", "irrigation_regular")
    assert set(datasets(packed.folder / "shard-00000.h5")) == {
        *(f"index/{name}" for name in index),
        *(f"labels/{name}" for name in labels),
        *("patches/b10", "patches/b20", "patches/b60", "statistics/histogram"),
    }


@pytest.mark.slow
def test_a_training_leaves_settings_events_metrics_curves_and_checkpoints(trained):
    run = trained.folder
    assert trained.ended.out == "run/checkpoints/step-000000024\n"
    assert "step 24 of 24" in trained.ended.err
    assert trained.files >= {
        *("config.yaml", "provenance.json", "attempts.jsonl", "attempt.json", "metrics.jsonl"),
        *("curves.png", "logs/pretrain.log", "checkpoints/latest"),
        *(f"checkpoints/step-{step:09d}/state.pt" for step in (20, 24)),
        *(f"checkpoints/step-{step:09d}/manifest.json" for step in (20, 24)),
    }
    checkpoints = {name.split("/")[1] for name in trained.files if name.startswith("checkpoints/")}
    assert checkpoints == {"latest", "step-000000020", "step-000000024"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["max_steps"], config["data"]["bands"]) == (24, ["B02", "B04"])
    assert config["shards"] == ["shards"]


@pytest.mark.slow
def test_events_and_metrics_of_a_training_have_their_keys(trained):
    events = json_lines(trained.folder / "attempts.jsonl")[:3]
    assert [event["event"] for event in events] == ["start", "training", "finished"]
    for event in events:
        assert set(event) >= EVENT_KEYS[event["event"]]
    metrics = json_lines(trained.folder / "metrics.jsonl")
    assert [record["step"] for record in metrics] == list(range(1, 25))
    assert all(set(record) >= METRIC_KEYS for record in metrics)


@pytest.mark.slow
def test_an_evaluation_leaves_a_report_for_programs_and_people_and_every_number(evaluated):
    new = {name for name in evaluated.files if name.startswith("evaluation")}
    assert {"evaluation.json", "evaluation.md", "evaluation.html"} <= new
    (folder,) = {Path(name).parent.name for name in new if name.endswith("scores.csv")}
    assert folder.startswith("bigearthnet19-")
    for name in ("scores", "classes", "map", "reliability"):
        assert {f"evaluation/{folder}/{name}.csv", f"evaluation/{folder}/{name}.png"} <= new
    assert f"evaluation/{folder}.json" in new
    said = evaluated.ended.out
    for row in ("probe: pretrained", "probe: random encoder", "probe: image statistics"):
        assert row in said
    assert re.search(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", said)  # a score with its interval
    assert said.endswith("run/evaluation.json\n")
    with (evaluated.folder / "evaluation" / folder / "scores.csv").open() as file:
        assert len(list(csv.reader(file))) > 8
    scores = json.loads((evaluated.folder / "evaluation.json").read_text())
    assert scores["format"] == "simclr-s2-evaluation"
    (entry,) = scores["evaluations"]
    assert (entry["task"]["name"], entry["step"]) == ("bigearthnet19", 24)
    assert set(entry) >= {"run", "shards", "bands", "split", "results", "differences", "findings"}


@pytest.mark.slow
def test_an_export_leaves_weights_with_a_card_for_programs_and_people(exported):
    assert exported.ended.out == "encoder\n"
    assert exported.files == {"encoder.safetensors", "card.json", "CARD.md"}
    card = json.loads((exported.folder / "card.json").read_text())
    assert [band["name"] for band in card["bands"]] == ["B02", "B04"]
    with safe_open(exported.folder / "encoder.safetensors", "pt") as weights:
        assert tuple(weights.get_tensor("conv1.weight").shape)[:2] == (64, 2)


@pytest.mark.slow
def test_an_inspection_leaves_a_page_and_names_it(packed, tmp_path):
    ended = call("inspect", f"shards={packed.folder}", "output=look", "patches=2", cwd=tmp_path)
    assert ended.code == 0, ended.err
    page = tmp_path / ended.out.strip()
    assert page.suffix == ".html"
    assert page.parent == tmp_path / "look"
    assert {name.rpartition(".")[2] for name in files(tmp_path / "look")} >= {"html", "png"}


@pytest.mark.slow
def test_status_gives_programs_a_record_of_each_run_and_packing(packed, trained, workspace):
    ended = call("status", "--json", "run", "shards", cwd=workspace)
    assert (ended.code, ended.err) == (0, "")
    run, packing = json.loads(ended.out)
    assert set(run) >= RUN_KEYS
    assert (run["run"], run["state"], run["needs_person"]) == ("run", "finished", False)
    assert (run["step"], run["num_steps"], run["checkpoint_step"]) == (24, 24, 24)
    assert set(run["attempts"][0]) >= ATTEMPT_KEYS
    assert set(run["metrics"]) >= {"loss", "learning_rate"}
    assert set(packing) >= PACKING_KEYS
    assert (packing["shards"], packing["state"]) == ("shards", "packed")
    assert (packing["num_done"], packing["num_shards"]) == (3, 3)
    assert json.loads(call("status", "json=true", "run", cwd=workspace).out)[0]["step"] == 24


@pytest.mark.slow
def test_status_compares_checksums_of_one_run_and_ends_to_watch_what_has_ended(trained, workspace):
    ended = call("status", "--watch", "run", cwd=workspace)
    assert (ended.code, ended.err) == (0, "")
    for word in ("run", "finished", "24"):
        assert re.search(rf"\b{word}\b", ended.out)
    (record,) = json.loads(call("status", "--json", "run", cwd=workspace).out)
    assert record["checkpoint_state"] == "verified"


@pytest.mark.slow
def test_a_status_report_is_one_page_in_the_run_folder(trained, workspace):
    ended = call("status", "--report", "run", cwd=workspace)
    assert (ended.code, ended.out) == (0, "run/report.html\n")
    assert "data:image/png" in (workspace / "run" / "report.html").read_text()


def test_status_of_a_folder_without_runs_says_how_to_name_them(tmp_path):
    ended = call("status", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "simclr-status RUN" in ended.out


@pytest.mark.slow
def test_a_run_that_failed_needs_a_person_and_says_what_to_do(packed, tmp_path):
    settings = (*TRAINING, f"shards=['{packed.folder}']", "run_dir=run", "data.bands=[B10]")
    assert call("pretrain", *settings, cwd=tmp_path).code == 2
    ended = call("status", "--json", "run", cwd=tmp_path)
    (record,) = json.loads(ended.out)
    assert (ended.code, record["needs_person"]) == (1, True)
    assert "B10" in record["state"]
    assert record["action"]


@pytest.mark.slow
def test_a_doctor_names_a_finding_a_line_and_leaves_the_folder_as_it_was(tmp_path):
    ended = call("doctor", str(tmp_path), cwd=tmp_path)
    assert ended.err == ""
    levels = {line.split()[0] for line in ended.out.splitlines()}
    assert "ok" in levels
    assert levels <= {"ok", "warn", "FAIL"}
    assert ended.code == int("FAIL" in levels)
    for word in ("Python", "torch", str(tmp_path)):
        assert word in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_chain_leaves_out_what_is_done(packed, trained, evaluated, exported, workspace):
    before = {name: (workspace / name).stat().st_mtime_ns for name in files(workspace)}
    ended = call(
        *("chain", "pack", "source=simulated", "source.root=rasters", "source.num_patches=64"),
        *("output=shards", "shard_size_mib=4", "pretrain", *TRAINING, "run_dir=run"),
        *("evaluate", "task=bigearthnet19", "seeds=[0]", "bootstrap=100"),
        *("export", "output=encoder"),
        cwd=workspace,
    )
    assert ended.code == 0, ended.err
    stages = [line.split()[0].rstrip(":,") for line in ended.out.splitlines()]
    assert stages == ["pack", "pretrain", "evaluate", "export"]
    assert {name: (workspace / name).stat().st_mtime_ns for name in files(workspace)} == before


def test_a_dry_run_of_a_chain_shows_a_script_for_each_stage(packed, tmp_path):
    ended = call(
        *("chain", "cluster=slurm_example", "--dry-run"),
        *("pretrain", "recipe=laptop", f"shards=['{packed.folder}']", "run_dir=run"),
        *("export", "output=encoder"),
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert ended.out.count("#!/bin/bash") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_leaves_a_report_and_every_number(packed, tmp_path):
    ended = call(
        *("study", "study=rate", "arms=[0.0001,0.05]", "seeds=[0]", "tasks=[bigearthnet19]"),
        *(*TRAINING, "max_steps=2", "protocol=knn", f"shards=['{packed.folder}']", "output=study"),
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert ended.out
    assert {"report.html", "scores.csv", "arms.csv"} <= files(tmp_path / "study")
    with (tmp_path / "study" / "scores.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 2
