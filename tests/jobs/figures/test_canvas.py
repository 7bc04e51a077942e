from pathlib import Path

import numpy as np
import pytest

from jobs.figures.canvas import canvas

_PNG = b"\x89PNG\r\n\x1a\n"


def _draw(path: Path) -> None:
    with canvas(path, 3, 2) as figure:
        figure.subplots().plot(np.arange(4), np.arange(4) ** 2)


def test_a_figure_is_a_png_in_a_folder_that_did_not_exist(tmp_path: Path) -> None:
    _draw(tmp_path / "with space" / "figure.png")
    assert (tmp_path / "with space" / "figure.png").read_bytes().startswith(_PNG)


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        _draw(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_is_left_of_a_drawing_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), canvas(tmp_path / "figure.png"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
