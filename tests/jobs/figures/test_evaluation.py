"""The page of an evaluation holds its figures; the CSV beside each holds its numbers."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import matplotlib.image
import pytest

from jobs.figures.evaluation import write_evaluation_page
from preprocess.shards.atomic_io import write_json
from simclr.evaluation.report import FORMAT, FORMAT_VERSION

SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "by_seed": [0.5]}
ABSENT = {"value": None, "low": None, "high": None, "by_seed": [None]}


def result(encoder, fraction, confusion):
    empty = [None] * 14
    return {
        "protocol": "k-NN",
        "encoder": encoder,
        "fraction": fraction,
        "scores": {"accuracy": SCORE, "brier": ABSENT},
        "classes": {"f1": [SCORE, ABSENT, SCORE]},
        "confusion": confusion,
        "reliability": {
            "edges": [number / 15 for number in range(16)],
            "counts": [4.0] + [0.0] * 14,
            "probability": [0.05, *empty],
            "frequency": [0.25, *empty],
        },
    }


def write_evaluation(
    run_dir, fractions, confusion=None, encoders=("pretrained", "image statistics")
):
    rows = [result(encoder, fraction, confusion) for fraction in fractions for encoder in encoders]
    difference = {
        **{"encoder": "pretrained", "control": "image statistics", "protocol": "k-NN"},
        **{"fraction": 1.0, "score": "accuracy", "resolved": True},
        "over_samples": {"value": 0.125, "low": 0.05, "high": 0.2},
        "over_seeds": {"value": 0.125, "low": None, "high": None},
    }
    evaluation = {
        "simulated": True,
        "step": 7,
        "task": {"name": "covers", "classes": ["<wood>", "bog", "sea"], "positives": [3, 0, 5]},
        "encoder": "resnet18",
        "bands": ["B02", "B04"],
        "shards": {"fingerprint": "ff", "folder": "shards"},
        "split": {
            "counts": {"train": 30, "validation": 10, "test": 20},
            "origin": "official split of the shards",
            "seeds": [0],
        },
        "protocol": {"bootstrap": {"unit": "tile", "blocks": 12}},
        "differences": [difference],
        "headline": "accuracy",
        "results": rows,
        "findings": ["k-NN: ahead"],
        "notes": ["few patches"],
        "map": {"points": [[0, 1], [1, 0]], "classes": [0, 3], "variance": [0.5, 0.25]},
    }
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    write_json(run_dir / "evaluation.json", {**head, "evaluations": [evaluation]})
    return run_dir / "evaluation" / "covers-ff"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("fractions", [[1.0], [0.1, 1.0]], ids=["one share", "curve"])
def test_every_picture_has_ink_stands_on_the_page_and_has_its_numbers_beside_it(
    tmp_path, fractions
):
    folder = write_evaluation(tmp_path, fractions, confusion=[[2, 1, 0], [0, 0, 0], [0, 1, 4]])
    page = write_evaluation_page(tmp_path).read_text()
    pictures = sorted(folder.glob("*.png"))
    assert {path.stem for path in pictures} == {
        "classes",
        "confusion",
        "map",
        "reliability",
        "scores",
    }
    assert page.count("<img ") == len(pictures)
    for path in pictures:
        assert matplotlib.image.imread(path)[..., :3].std() > 0.03
        assert table(path.with_suffix(".csv"))


def test_numbers_are_those_of_the_evaluation_and_absent_ones_are_empty(tmp_path):
    folder = write_evaluation(tmp_path, [0.1, 1.0])
    write_evaluation_page(tmp_path)
    rows = table(folder / "scores.csv")
    assert len(rows) == 8
    assert rows[0] == {
        "protocol": "k-NN",
        "encoder": "pretrained",
        "fraction": "0.1",
        "score": "accuracy",
        "value": "0.5",
        "low": "0.4",
        "high": "0.6",
        "by_seed": "0.5",
    }
    assert (rows[1]["score"], rows[1]["value"], rows[1]["by_seed"]) == ("brier", "", "")
    assert [row["class"] for row in table(folder / "map.csv")] == ["<wood>", ""]


def test_classes_that_may_occur_together_have_no_confusion(tmp_path):
    folder = write_evaluation(tmp_path, [1.0], confusion=None)
    write_evaluation_page(tmp_path)
    assert not list(folder.glob("confusion.*"))


@pytest.mark.parametrize("fractions", [[1.0], [0.1, 1.0]], ids=["one share", "curve"])
def test_twenty_encoders_fit_on_the_page(tmp_path, fractions):
    encoders = ["pretrained", *map(str, range(19))]
    folder = write_evaluation(tmp_path, fractions, encoders=encoders)
    write_evaluation_page(tmp_path)
    assert {row["encoder"] for row in table(folder / "classes.csv")} == set(encoders)


def test_the_next_command_keeps_the_rows_and_the_split(tmp_path):
    write_evaluation(tmp_path, [1.0])
    page = html.unescape(write_evaluation_page(tmp_path).read_text())
    same = f"simclr-evaluate run={tmp_path} shards=shards task=covers seeds=[0"
    assert f"{same},1,2] protocols=[knn]" in page
    assert f"{same}] protocols=[knn,finetune_all]" in page


def test_the_page_says_what_is_simulated_and_which_share_of_the_labels_a_row_had(tmp_path):
    write_evaluation(tmp_path, [0.1, 1.0])
    page = write_evaluation_page(tmp_path).read_text()
    assert "SIMULATED PATCHES, covers, step 7" in page
    assert "k-NN: pretrained, 10 % of the labels" in page
    assert "few patches" in page


def test_the_verdict_comes_first_and_says_on_what_it_rests(tmp_path):
    write_evaluation(tmp_path, [1.0])
    page = write_evaluation_page(tmp_path).read_text()
    order = (
        "Pretraining beats every control",
        "k-NN, accuracy +12.5 points [+5.0, +20.0]",
        "trained on 30 patches, chosen on 10 and scored on 20",
        "12 blocks of neighbouring patches (a block is one tile)",
        "<img ",
        "<table>",
        "Findings",
        "Caveats",
        "What to do next",
        "seeds=[0,1,2]",
    )
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert page.index("few patches") > page.index("Caveats")


def test_every_linked_file_is_there(tmp_path):
    write_evaluation(tmp_path, [0.1, 1.0])
    links = re.findall(r'<a href="([^"]+)"', write_evaluation_page(tmp_path).read_text())
    assert {Path(link).name for link in links} >= {"evaluation.json", "scores.csv", "classes.csv"}
    assert all((tmp_path / link).is_file() for link in links)
