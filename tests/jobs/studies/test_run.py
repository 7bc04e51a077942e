"""A study makes what is missing, and what is cut or run twice changes no number."""

from __future__ import annotations

import shutil

import pytest
from hydra import compose, initialize_config_module
from make_data import packed_arrays

from jobs.cluster import ClusterConfig
from jobs.schema import register, to_app
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.report import conclude, write_study
from jobs.studies.run import run_study
from jobs.studies.scores import published, read_table, tabulate
from simclr.choices import EncoderName
from simclr.config import DataConfig, ModelConfig
from simclr.train import train

HERE = ClusterConfig()


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
    assert names | {"losses.png", "report.html"} <= {path.name for path in folder.iterdir()}
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


def test_the_published_study_leaves_its_couplets_as_a_recipe_that_pretraining_takes(tmp_path):
    config = StudyConfig(study=StudyName.published, output=str(tmp_path / "the study"))
    said = run_study(config, HERE)
    assert "Spearman 0.10 and Pearson 0.13" in said
    assert "reliability 0.23" in said
    assert "Not conclusive" in said
    assert (tmp_path / "the study" / "heatmap.png").stat().st_size > 20_000
    register()
    path = f"hydra.searchpath=['file://{tmp_path / 'the study'}']"
    with initialize_config_module("jobs.conf", version_base="1.3"):
        app = to_app(compose("pretrain", ["recipe=allowed", path]))
    assert app.augment.preset == "couplets"
    assert len(app.augment.couplets) == 27


def test_a_study_without_scores_says_how_to_make_them(tmp_path):
    config = StudyConfig(study=StudyName.rate, output=str(tmp_path), tasks=["x"])
    with pytest.raises(ValueError, match="holds no scored run yet"):
        write_study(config)


def test_one_seed_is_never_conclusive():
    found = conclude(StudyName.published, tabulate(published()))
    assert any("one seed" in sentence for sentence in found.sentences)
    assert not found.against
