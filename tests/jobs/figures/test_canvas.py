import os
import subprocess
import sys
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


def test_a_backend_in_the_environment_does_not_matter(tmp_path):
    program = (
        "from jobs.figures.canvas import canvas\n"
        f"with canvas({str(tmp_path / 'a.png')!r}) as figure: figure.subplots().plot([1, 2])\n"
    )
    environment = {**os.environ, "MPLBACKEND": "module://no_such_backend"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert (tmp_path / "a.png").stat().st_size > 1000
