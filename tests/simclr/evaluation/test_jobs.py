"""What an evaluation consists of: every encoder has a row of its own."""

from __future__ import annotations

from pathlib import Path

from simclr.evaluation.config import PRETRAINED, RANDOM_ENCODER
from simclr.evaluation.jobs import EvaluatedEncoder, _named


def test_no_other_encoder_is_dropped_for_its_name():
    others = ["a/run/net.pt", "b/run/net.pt", "c/wide.pt", "d/wide.pt", "e/deep.pt", "e/deep.pt"]
    assert _named(others) == {
        "a/run/net.pt": Path("a/run/net.pt"),
        "b/run/net.pt": Path("b/run/net.pt"),
        "c/wide": Path("c/wide.pt"),
        "d/wide": Path("d/wide.pt"),
        "deep": Path("e/deep.pt"),
    }


def test_a_control_keeps_its_name_beside_an_encoder_of_that_name():
    assert list(_named(["runs/pretrained"])) == ["pretrained (other)"]


def test_a_folder_keeps_what_follows_a_dot_in_its_name():
    assert list(_named(["runs/lr.0.5", "lr.0.1/model.v2.safetensors"])) == ["lr.0.5", "model.v2"]


def test_no_other_encoder_reads_the_features_of_a_control_or_checkpoint():
    own = [
        EvaluatedEncoder(RANDOM_ENCODER, 0, None),
        EvaluatedEncoder(PRETRAINED, None, None, "sha", "step-000000002"),
        EvaluatedEncoder("step 2", None, None, "sha", "step-000000002"),
    ]
    others = [
        EvaluatedEncoder(name, None, None, "facts")
        for name in _named(["random encoder 0.pt", "x/step-000000002", "step 2.pt"])
    ]
    assert not {one.features_name for one in own} & {one.features_name for one in others}
    assert not {one.name for one in own} & {one.name for one in others}
