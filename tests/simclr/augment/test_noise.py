"""Noise: what it does to reflectance, and that it is the same everywhere."""

import pytest
import torch
from scipy import stats

from simclr.augment.transforms import NOISE_VALUES, noise_table, noise_windows, speckled

MEAN, STD = 1200.0, 400.0


@pytest.fixture
def stored():
    return 200 + 3000 * torch.rand(1, 16, 2, 16, generator=torch.Generator().manual_seed(0))


def z(stored: torch.Tensor) -> torch.Tensor:
    return (stored - MEAN) / STD


def test_speckle_is_noise_in_proportion_to_the_reflectance(stored):
    noise = torch.randn(1, 16, 2, 16, generator=torch.Generator().manual_seed(1))
    actual = speckled(z(stored), torch.tensor(0.1), torch.tensor(MEAN / STD), noise)
    torch.testing.assert_close(actual, z(stored * (1 + 0.1 * noise)), rtol=1e-5, atol=1e-5)


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


def test_a_view_of_more_values_than_the_table_has_noise_everywhere():
    table = noise_table(0, torch.device("cpu"))
    noise = noise_windows(table, torch.tensor([0.0, 0.7]), torch.Size((2, 425, 12, 425)))
    assert torch.equal(noise[0].flatten()[:NOISE_VALUES], table)
    assert noise.std((1, 2, 3)) == pytest.approx([1, 1], abs=0.01)
    assert not torch.equal(noise[0], noise[1])
