"""Photometric operations mean in reflectance what their names say."""

import dataclasses

import pytest
import torch

from simclr.augment.operations import OPERATIONS
from simclr.augment.parameters import ParameterSampler, Preset, ViewParameters
from simclr.augment.transforms import joined_line

MEAN, STD = 1200.0, 400.0
LEVEL = torch.full((1, 2), MEAN / STD)


def lines(*names: str, **strengths: float) -> list[torch.Tensor]:
    """Return lines (1, 4, 2) with every uniform at 0.75: half the strength."""
    found = []
    for name in names:
        operation = OPERATIONS[name]
        values = {key: one.default for key, one in operation.strengths.items()} | strengths
        u = torch.full((1, operation.num_uniforms + 2 * operation.num_per_band), 0.75)
        found.append(operation.function(values, u).expand(-1, 4, 2))
    return found


def change(*drawn: torch.Tensor, **values: torch.Tensor) -> ViewParameters:
    ids = torch.zeros(1, dtype=torch.int64)
    nothing = ParameterSampler(Preset("none", {}), 0, 2, torch.device("cpu")).draw(0, ids, ids)
    if drawn:
        values["lines"] = torch.stack(drawn, 1)
    return dataclasses.replace(nothing, **values)


def adjust(view, parameters):
    slope, shift = joined_line(parameters, LEVEL, view.mean((1, 3)), None)
    return view * slope[:, None, :, None] + shift[:, None, :, None]


@pytest.fixture
def stored():
    return 200 + 3000 * torch.rand(1, 16, 2, 16, generator=torch.Generator().manual_seed(0))


def z(stored: torch.Tensor) -> torch.Tensor:
    return (stored - MEAN) / STD


def test_no_line_changes_nothing(stored):
    torch.testing.assert_close(adjust(z(stored), change()), z(stored))


def test_gain_multiplies_the_reflectance(stored):
    actual = adjust(z(stored), change(*lines("gain", gain=1.44, gain_per_band=0.0)))
    torch.testing.assert_close(actual, z(1.2 * stored), rtol=1e-5, atol=1e-5)


def test_contrast_spreads_each_band_about_its_own_mean(stored):
    view = z(stored)
    actual = adjust(view, change(*lines("contrast")))
    torch.testing.assert_close(actual.mean((1, 3)), view.mean((1, 3)))
    torch.testing.assert_close(actual.std((1, 3)), 1.2 * view.std((1, 3)))


def test_brightness_moves_all_bands_alike(stored):
    torch.testing.assert_close(adjust(z(stored), change(*lines("brightness"))), z(stored) + 0.2)


@pytest.mark.parametrize(
    "names",
    [("contrast", "gain", "brightness"), ("brightness", "gain", "contrast"), ("gain", "contrast")],
)
def test_lines_in_one_pass_equal_those_one_after_the_other(stored, names):
    together = adjust(z(stored), change(*lines(*names)))
    step = z(stored)
    for line in lines(*names):
        step = adjust(step, change(line))
    torch.testing.assert_close(together, step, rtol=1e-5, atol=1e-5)


def test_a_dropped_band_becomes_its_mean(stored):
    dropped = change(*lines("brightness"), keep=torch.tensor([[0.0, 1.0]]))
    actual = adjust(z(stored), dropped)
    assert (actual[:, :, 0] == 0).all()
    torch.testing.assert_close(actual[:, :, 1], z(stored)[:, :, 1] + 0.2)
