"""The figure of a choice shows scores beside the loss; its numbers stand in the CSV."""

from __future__ import annotations

import csv
import json

import matplotlib.image

from jobs.figures.evaluation import write_evaluation_page
from simclr.evaluation.report import CHOICE_FORMAT as FORMAT
from simclr.evaluation.report import CHOICE_FORMAT_VERSION as FORMAT_VERSION


def result(encoder, step, protocol, value):
    score = {"value": value, "low": value - 0.1, "high": value + 0.1, "by_seed": [value]}
    return {"encoder": encoder, "step": step, "protocol": protocol, "scores": {"accuracy": score}}


def test_scores_stand_beside_the_loss_and_an_unknown_loss_is_an_empty_cell(tmp_path):
    choice = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "simulated": True,
        "task": {"name": "covers"},
        "headline": "accuracy",
        "chosen_by": "linear probe",
        "best": 20,
        "steps": [10, 20],
        "losses": [None, 2.5],
        "results": [
            result("step 10", 10, "linear probe", 0.4),
            result("step 20", 20, "linear probe", 0.6),
            result("step 10", 10, "k-NN", 0.3),
            result("step 20", 20, "k-NN", 0.2),
            result("random encoder", None, "linear probe", 0.5),
        ],
        "findings": ["step 20 is <best>"],
        "notes": ["few patches"],
    }
    path = tmp_path / "evaluation" / "covers-ff" / "checkpoints.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(choice))
    page = write_evaluation_page(tmp_path).read_text()  # of a run that nobody has evaluated yet
    assert "SIMULATED PATCHES, covers: choosing a checkpoint" in page
    assert "Step 20 is &lt;best&gt;." in page
    assert "step 20 (best)" in page
    assert page.count("<img ") == 1
    assert matplotlib.image.imread(path.with_suffix(".png"))[..., :3].std() > 0.03
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["value"]) for row in rows] == [
        ("10", "", "0.4"),
        ("20", "2.5", "0.6"),
        ("10", "", "0.3"),
        ("20", "2.5", "0.2"),
        ("", "", "0.5"),
    ]
