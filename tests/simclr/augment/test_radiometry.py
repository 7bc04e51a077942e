"""Pixel operations mean in reflectance what their names say."""

import dataclasses

import pytest
import torch

from simclr.augment.operations import Preset
from simclr.augment.parameters import ViewParameters, draw
from simclr.augment.photometric import band_lines
from simclr.config import Variant

MEAN, STD = 1200.0, 400.0
LEVEL = torch.full((1, 2), MEAN / STD)


def change(**values: torch.Tensor) -> ViewParameters:
    ids = torch.zeros(1, dtype=torch.int64)
    nothing = draw(Preset("none", Variant.corrected, {}), 0, 0, ids, ids, bands=2)
    return dataclasses.replace(nothing, **values)


def adjust(view, parameters, level, *, gain_on_z):
    slope, shift = band_lines(
        parameters, torch.arange(2), view.mean((1, 3)), level, gain_on_z=gain_on_z
    )
    return view * slope[:, None, :, None] + shift[:, None, :, None]


@pytest.fixture
def stored():
    return 200 + 3000 * torch.rand(1, 16, 2, 16, generator=torch.Generator().manual_seed(0))


def z(stored: torch.Tensor) -> torch.Tensor:
    return (stored - MEAN) / STD


def test_identity_parameters_change_nothing(stored):
    torch.testing.assert_close(adjust(z(stored), change(), LEVEL, gain_on_z=False), z(stored))


def test_gain_multiplies_the_reflectance(stored):
    gain = torch.tensor([[0.8, 1.2]])
    actual = adjust(z(stored), change(gain=gain), LEVEL, gain_on_z=False)
    torch.testing.assert_close(actual, z(stored * gain[:, None, :, None]), rtol=1e-5, atol=1e-5)


def test_gain_of_2021_multiplies_the_normalised_value(stored):
    actual = adjust(z(stored), change(gain=torch.tensor([[0.5, 0.5]])), LEVEL, gain_on_z=True)
    torch.testing.assert_close(actual, 0.5 * z(stored))


def test_contrast_spreads_each_band_about_its_own_mean(stored):
    view = z(stored)
    actual = adjust(view, change(contrast=torch.tensor([1.4])), LEVEL, gain_on_z=False)
    torch.testing.assert_close(actual.mean((1, 3)), view.mean((1, 3)))
    torch.testing.assert_close(actual.std((1, 3)), 1.4 * view.std((1, 3)))


def test_brightness_moves_all_bands_alike(stored):
    actual = adjust(z(stored), change(brightness=torch.tensor([0.3])), LEVEL, gain_on_z=False)
    torch.testing.assert_close(actual, z(stored) + 0.3)


def test_operations_follow_each_other_as_documented(stored):
    view, gain = z(stored), torch.tensor([[0.9, 1.1]])
    together = adjust(
        view,
        change(contrast=torch.tensor([1.3]), gain=gain, brightness=torch.tensor([0.2])),
        LEVEL,
        gain_on_z=False,
    )
    step = adjust(view, change(contrast=torch.tensor([1.3])), LEVEL, gain_on_z=False)
    step = adjust(step, change(gain=gain), LEVEL, gain_on_z=False)
    torch.testing.assert_close(together, step + 0.2)


def test_brightness_before_gain_is_multiplied_too(stored):
    gain, brightness = torch.tensor([[0.9, 1.1]]), torch.tensor([0.2])
    first = change(gain=gain, brightness=brightness, brightness_first=torch.tensor([True]))
    actual = adjust(z(stored), first, LEVEL, gain_on_z=False)
    brighter = adjust(z(stored), change(brightness=brightness), LEVEL, gain_on_z=False)
    expected = adjust(brighter, change(gain=gain), LEVEL, gain_on_z=False)
    torch.testing.assert_close(actual, expected)


def test_a_dropped_band_becomes_its_mean(stored):
    dropped = change(keep=torch.tensor([[0.0, 1.0]]), brightness=torch.tensor([0.3]))
    actual = adjust(z(stored), dropped, LEVEL, gain_on_z=False)
    assert (actual[:, :, 0] == 0).all()
    torch.testing.assert_close(actual[:, :, 1], z(stored)[:, :, 1] + 0.3)
