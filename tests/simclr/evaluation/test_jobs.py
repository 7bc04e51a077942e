"""What an evaluation consists of: every encoder has a row of its own."""

from __future__ import annotations

from pathlib import Path

from simclr.evaluation.jobs import _named


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
