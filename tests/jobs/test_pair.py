"""The pair of torch and torchvision is checked in one line."""

from __future__ import annotations

import sys

import pytest

from jobs import pair


def test_the_installed_pair_belongs_together(capsys):
    assert pair.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("torch ")
    assert "belong together" in said
    assert said.count("\n") == 1


def test_a_pair_that_does_not_import_is_named_with_the_cure(monkeypatch, capsys):
    def fails(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(pair, "import_module", fails)
    assert pair.main() == 1
    said = capsys.readouterr().err
    assert "do not belong together (operator torchvision::nms does not exist)" in said
    assert "pip install --force-reinstall -c constraints.txt torch torchvision" in said


def test_a_failed_import_is_no_success(monkeypatch):
    monkeypatch.setitem(sys.modules, "simclr.model.simclr", None)
    with pytest.raises(RuntimeError, match="do not belong together"):
        pair.check_pair()
