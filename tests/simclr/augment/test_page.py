"""The page on adding an augmentation: its change applies to this code, and does what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "adding-an-augmentation.md"
PROGRAM = """
import torch
from simclr.augment.parameters import draw
from simclr.augment.geometry import frame_of, warp
from simclr.augment.operations import preset_of
from simclr.config import AugmentConfig

preset = preset_of(AugmentConfig(preset="list", operations=["stretch", "gain"]))
ids = torch.arange(200)
parameters = draw(preset, 0, 0, ids, ids % 2, 2)
ratio = parameters.linear[:, 0, 0, 0]
assert ratio.min() >= 0.8 and ratio.max() <= 1.25 and ratio.std() > 0.1
# A ramp of 1 a pixel along y is read at `ratio` pixels a pixel: so steep is the view, but for what
# averaging between pixels leaves.
ramp = torch.arange(24.0).expand(200, 2, 24, 24).transpose(2, 3)
views = warp(*frame_of(parameters, preset, 24).lay_out(ramp.permute(0, 2, 1, 3).clone()))
slope = (views[:, 17] - views[:, 6]) / 11
assert torch.allclose(slope, ratio[:, None, None].expand_as(slope), atol=0.03)
"""


def test_the_change_on_the_page_applies_and_stretches_what_it_should(tmp_path):
    for package in ("simclr", "preprocess"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (change,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for command, given in ((["git", "apply", "-"], change), ([sys.executable, "-"], PROGRAM)):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            input=given,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
