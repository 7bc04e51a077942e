"""Pixel operations mean in reflectance what their names say."""

import dataclasses

import pytest
import torch
from scipy import stats

from simclr.augment.draws import ViewParameters, draw
from simclr.augment.presets import Preset, Variant
from simclr.augment.radiometry import (
    NOISE_VALUES,
    add_impulses,
    add_speckle,
    adjust,
    noise_table,
    noise_windows,
)

MEAN, STD = 1200.0, 400.0
LEVEL = torch.full((1, 2), MEAN / STD)


def change(**values: torch.Tensor) -> ViewParameters:
    ids = torch.zeros(1, dtype=torch.int64)
    nothing = draw(Preset("none", Variant.corrected, {}), 0, 0, ids, ids, bands=2)
    return dataclasses.replace(nothing, **values)


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


def test_speckle_is_noise_in_proportion_to_the_reflectance(stored):
    noise = torch.randn(1, 16, 2, 16, generator=torch.Generator().manual_seed(1))
    actual = add_speckle(z(stored), change(speckle=torch.tensor([0.1])), LEVEL, noise)
    torch.testing.assert_close(actual, z(stored * (1 + 0.1 * noise)), rtol=1e-5, atol=1e-5)


def test_impulses_hit_the_share_asked_for_on_either_side():
    view = torch.zeros(1, 200, 2, 200)
    noise = noise_table(0, torch.device("cpu"))[: view.numel()].view(view.shape)
    actual = add_impulses(view, change(impulse=torch.tensor([0.02])), noise)
    for value in (-5.0, 5.0):
        assert stats.binomtest(int((actual == value).sum()), view.numel(), 0.02).pvalue > 1e-4
    assert torch.equal(add_impulses(view, change(), noise), view)


def test_the_noise_table_is_standard_normal_and_depends_on_the_seed_alone():
    table = noise_table(5, torch.device("cpu"))
    assert torch.equal(table, noise_table(5, torch.device("cpu")))
    assert not torch.equal(table, noise_table(6, torch.device("cpu")))
    assert len(table) == NOISE_VALUES
    assert stats.kstest(table[::16].numpy(), "norm").pvalue > 1e-4
    assert abs(table.mean()) < 3e-3
    assert abs(torch.corrcoef(torch.stack([table[:-1], table[1:]]))[0, 1]) < 3e-3


def test_noise_windows_stay_inside_the_table():
    table = noise_table(0, torch.device("cpu"))
    shape = torch.Size((3, 120, 12, 120))
    window = torch.tensor([0.0, 0.5, 1 - 2.0**-24])
    noise = noise_windows(table, window, shape)
    assert noise.shape == shape
    assert torch.equal(noise[0].flatten(), table[: shape[1:].numel()])
    assert not torch.equal(noise[1], noise[2])
