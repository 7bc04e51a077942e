"""A study makes what is missing, and what is cut or run twice changes no number."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from make_data import packed_arrays

from jobs.cli.schema import register, to_settings
from jobs.commands.pretrain import Pretrain
from jobs.commands.study import run_study
from jobs.config import ClusterConfig, Executor
from jobs.study.analysis import conclude, published, read_table, tabulate
from jobs.study.arms import StudyConfig, StudyName
from jobs.study.report import conclusions, write_study
from simclr.config import DataConfig, EncoderName, ModelConfig, to_plain
from simclr.train import train

HERE = ClusterConfig()
# the patches of one split would not fill the smallest batch of study=batch_size
ALL_SPLITS = DataConfig(splits=["train", "validation", "test"], bands=["B04", "B08"])
DRIVER = """
import json, sys
from jobs.commands.study import run_study
from jobs.config import ClusterConfig
from jobs.study.arms import StudyConfig
from simclr.config import from_plain
run_study(from_plain(StudyConfig, json.load(sys.stdin)), ClusterConfig())
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two rates, two seeds, two steps, on patches of four classes."""
    folder = tmp_path_factory.mktemp("a study")
    shards = packed_arrays(folder / "shards", 48, size_px=12, native=False)
    config = StudyConfig(
        study=StudyName.rate,
        arms=["0.0001", "0.05"],
        seeds=[0, 1],
        tasks=["labels"],
        score="accuracy",
        output=str(folder / "out"),
        shards=[str(shards)],
        max_steps=2,
        data=DataConfig(global_batch_size=8, bands=["B04", "B03", "B02", "B08"]),
        model=ModelConfig(encoder=EncoderName.resnet18),
    )
    run_study(config, HERE)
    return config, folder / "out"


@pytest.mark.slow
def test_a_study_leaves_a_page_pictures_and_every_number(study):
    config, folder = study
    table = read_table(config)
    assert (table.arms, table.labels, table.seeds) == (("0.0001", "0.05"), ("labels",), (0, 1))
    assert table.missing == []
    names = {"scores.csv", "arms.csv", "stability.csv", "differences.csv", "arms.png"}
    assert names | {"curves.png", "curves.csv", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert len((folder / "scores.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.slow
def test_what_was_lost_is_made_again_and_nothing_else_and_the_numbers_stay(study, monkeypatch):
    config, folder = study
    before = (folder / "scores.csv").read_text()
    shutil.rmtree(folder / "runs" / "0.05" / "seed-1")
    made = []

    def counted(run, *others):
        made.append(run.run_dir)
        return train(run, *others)

    monkeypatch.setattr("simclr.train.train", counted)
    run_study(config, HERE)
    assert made == [str(folder / "runs" / "0.05" / "seed-1")]
    assert (folder / "scores.csv").read_text() == before


@pytest.mark.slow
def test_a_driver_that_is_killed_twice_leaves_the_same_bytes(study, tmp_path):
    config, folder = study
    again = replace(config, output=str(tmp_path / "killed"))
    runs = Path(again.output, "runs")
    first, last = runs / "0.0001" / "seed-0", runs / "0.05" / "seed-1"
    for sign in (first / "metrics.jsonl", last / "attempts.jsonl"):
        driver = start(again)
        wait_for(sign, driver)
        driver.kill()
        driver.wait()
    assert not (Path(again.output) / "scores.csv").exists()
    assert start(again).wait(timeout=600) == 0
    for name in ("scores.csv", "arms.csv", "differences.csv", "stability.csv"):
        assert (Path(again.output) / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.slow
def test_a_study_that_goes_on_with_more_steps_is_scored_again(study, tmp_path):
    config, folder = study
    shutil.copytree(folder, tmp_path / "more")
    more = replace(config, output=str(tmp_path / "more"), arms=["0.05"], seeds=[0])
    for max_steps in (2, 4):
        run_study(replace(more, max_steps=max_steps), HERE)
        (path,) = (tmp_path / "more" / "runs" / "0.05" / "seed-0" / "evaluation").glob("*.json")
        assert json.loads(path.read_text())["step"] == max_steps


def start(config):
    """Start a study in a process of its own."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, text=True)
    json.dump(to_plain(config), driver.stdin)
    driver.stdin.close()
    return driver


def wait_for(path, driver):
    """Wait until a file is there."""
    end = time.monotonic() + 600
    while not path.exists():
        assert driver.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("optimizer", {"arms": ["lars 0.3", "sgd 2021"], "died_after_steps": 1}),
        ("batch_size", {"arms": ["32"], "data": ALL_SPLITS}),
        ("temperature", {"arms": ["0.1", "0.5"]}),
        ("labels", {"arms": [], "fractions": [0.5, 1.0]}),
    ],
)
def test_every_study_ends_with_a_page(study, tmp_path, name, others):
    config, _ = study
    plain = {"study": StudyName(name), "output": str(tmp_path), "seeds": [0], **others}
    said = run_study(replace(config, **plain), HERE)
    assert "one seed" in said
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_published_study_leaves_its_couplets_as_a_recipe_that_pretraining_takes(tmp_path):
    config = StudyConfig(study=StudyName.published, output=str(tmp_path / "the study"))
    said = run_study(config, HERE)
    assert "Spearman 0.10 and Pearson 0.13" in said
    assert "reliability 0.23" in said
    assert "Not conclusive" in said
    assert (tmp_path / "the study" / "heatmap.png").stat().st_size > 20_000
    register(Pretrain)
    path = f"hydra.searchpath=['file://{tmp_path / 'the study'}']"
    with initialize_config_module("jobs.conf", version_base="1.3"):
        app = to_settings(compose("pretrain", ["recipe=allowed", path]))
    assert app.augment.preset == "couplets"
    assert len(app.augment.couplets) == 27


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tasks": ["corn"]}, "no label set 'corn' in these shards; they hold: labels"),
        ({"score": "f2"}, "score is f2, which labels cannot have; give one of accuracy, "),
        # of other kinds of label sets
        (
            {"score": "f1_micro"},
            "f1_micro, which labels cannot have; give one of accuracy",
        ),
        ({"score": "average_precision_balanced"}, "which labels cannot have; give one of"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_trained(tmp_path, settings, told):
    shards = packed_arrays(tmp_path / "shards", 12, size_px=12, native=False)
    config = StudyConfig(
        study=StudyName.rate, shards=[str(shards)], output=str(tmp_path / "out"), tasks=["labels"]
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        run_study(replace(config, **settings), HERE)
    assert not (tmp_path / "out").exists()


def test_a_study_that_waits_for_a_job_waits_for_its_success_and_for_its_own_however_they_end(
    tmp_path,
):
    shards = packed_arrays(tmp_path / "shards", 12, size_px=12, native=False)
    config = StudyConfig(
        study=StudyName.temperature,
        arms=["0.1"],
        seeds=[0],
        shards=[str(shards)],
        output=str(tmp_path / "out"),
        tasks=["labels"],
        data=replace(ALL_SPLITS, global_batch_size=4),
    )
    text = run_study(config, ClusterConfig(executor=Executor.slurm, dry_run=True, after="12"))
    waits = re.findall(r"--dependency=(\S+)", text)
    assert waits == ["afterok:12", "afterany:JOB", "afterany:JOB"]


def test_a_batch_that_no_epoch_fills_is_refused_before_any_arm_is_trained(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 48, size_px=12, native=False)
    config = StudyConfig(
        study=StudyName.batch_size,
        shards=[str(shards)],
        output=str(tmp_path / "out"),
        tasks=["labels"],
        data=ALL_SPLITS,
    )
    told = r"arm 512 has 512 pairs a step but the selected shards hold 48 .* arms=\[32\]"
    with pytest.raises(ValueError, match=told):
        run_study(config, HERE)
    assert not (tmp_path / "out").exists()


def test_a_change_that_makes_no_views_is_refused_before_any_arm_is_trained(tmp_path):
    shards = packed_arrays(tmp_path / "shards", 12, size_px=12, native=False)
    config = StudyConfig(
        study=StudyName.settings,
        changes=["augment.strengths.crop=0.3"],
        shards=[str(shards)],
        output=str(tmp_path / "out"),
        tasks=["labels"],
        data=replace(ALL_SPLITS, global_batch_size=4),
    )
    with pytest.raises(ValueError, match=r"augment\.strengths has 'crop'"):
        run_study(config, HERE)
    assert not (tmp_path / "out").exists()


def test_a_study_is_not_written_into_the_folder_of_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="the folder of a run; give one of its own"):
        run_study(StudyConfig(study=StudyName.published, output=str(tmp_path)), HERE)


def test_a_study_without_scores_says_how_to_make_them(tmp_path):
    config = StudyConfig(study=StudyName.rate, output=str(tmp_path), tasks=["x"])
    with pytest.raises(ValueError, match="holds no scored run yet"):
        write_study(config)


def test_one_seed_is_never_conclusive():
    found = conclude(StudyConfig(study=StudyName.published), tabulate(published()))
    assert any("one seed" in sentence for sentence in conclusions(found))
    assert not found.against
