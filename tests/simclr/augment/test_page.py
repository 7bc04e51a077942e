"""The page on adding an augmentation: its example works as it stands, and its table is true."""

import re
import subprocess
import sys
from pathlib import Path

from simclr.augment.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "adding-an-augmentation.md").read_text()
# The module with the example behind its registry, under the module's own name.
LOAD = """
import sys, types
import simclr.augment
module = types.ModuleType("simclr.augment.operations")
sys.modules[module.__name__] = module
exec({source!r}, vars(module))
"""
PROGRAM = """
import torch
from simclr.augment.transforms import frame_of, warp
from simclr.augment.parameters import ParameterSampler, preset_of
from simclr.config import AugmentConfig

def drawn(**settings):
    config = AugmentConfig(preset="list", operations=["stretch", "gain"], **settings)
    preset, ids = preset_of(config), torch.arange(200)
    return preset, ParameterSampler(preset, 0, 2, torch.device("cpu")).draw(0, ids, ids % 2)

preset, parameters = drawn()
ratio = parameters.maps[:, 0, 0, 0]
assert ratio.min() >= 0.8 and ratio.max() <= 1.25 and ratio.std() > 0.1
assert drawn(strengths={"stretch": 1.05})[1].maps[:, 0, 0, 0].max() < 1.06
# A ramp of 1 a pixel along y is read at `ratio` pixels a pixel: so steep is the view, but for what
# averaging between pixels leaves.
ramp = torch.arange(24.0).expand(200, 2, 24, 24).transpose(2, 3)
views = warp(*frame_of(parameters, preset, 24).lay_out(ramp.permute(0, 2, 1, 3).clone()))
slope = (views[:, 17] - views[:, 6]) / 11
assert torch.allclose(slope, ratio[:, None, None].expand_as(slope), atol=0.03)
"""


def test_the_example_of_the_page_stretches_what_it_should():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    source = (ROOT / "simclr/augment/operations.py").read_text()
    program = LOAD.format(source=source + example) + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_strengths_has_the_defaults():
    table = {}
    for names, values in re.findall(r"^\| ((?:`\w+`,? ?)+)\| ([\d., ]+) \|", PAGE, re.MULTILINE):
        named = re.findall(r"`(\w+)`", names)
        table |= dict(zip(named, map(float, values.split(",")), strict=True))
    defaults = {
        name: round(one.default, 2)
        for operation in OPERATIONS.values()
        for name, one in operation.strengths.items()
    }
    assert table == defaults
