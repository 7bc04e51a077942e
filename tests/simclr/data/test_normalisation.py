"""One normalisation for views, cards and exports; constant bands stay finite."""

from __future__ import annotations

import torch
from batches import sequential_batches
from make_data import packed_arrays
from torch import nn

from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig
from simclr.data.dataset import open_dataset
from simclr.data.normalisation import Normalised, mean_and_std, usable

TABLE = {"B04": {"mean": 800.0, "std": 250.0}, "B10": {"mean": 12.0, "std": 0.0}}
CPU = torch.device("cpu")


def test_a_constant_band_is_divided_by_one_stored_unit():
    assert usable(TABLE)["B10"] == {"mean": 12.0, "std": 1.0}
    mean, std = mean_and_std(TABLE, ["B10", "B04"], scale=10_000)
    torch.testing.assert_close(mean, torch.tensor([0.0012, 0.08]))
    torch.testing.assert_close(std, torch.tensor([0.0001, 0.025]))


def test_an_encoder_behind_it_sees_what_the_views_of_an_evaluation_are(tmp_path):
    dataset = open_dataset([str(packed_arrays(tmp_path / "s", 8, native=False))], ["B04", "B8A"])
    views = ViewMaker(dataset, AugmentConfig(), 0, CPU)
    batch = next(iter(sequential_batches(dataset, 8, CPU)))
    (table,) = dataset.normalisation.values()
    plain = Normalised(nn.Identity(), *mean_and_std(table, dataset.bands))
    (group,) = dataset.layouts[0]
    chosen = [group.bands.index(band) for band in dataset.bands]
    (pixels,) = batch.groups.values()
    torch.testing.assert_close(views.eval_views(batch), plain(pixels[:, chosen].float()))


def test_nodata_becomes_the_mean_of_its_band():
    plain = Normalised(nn.Identity(), *mean_and_std(TABLE, ["B04", "B10"]))
    patches = torch.zeros(1, 2, 2, 2)
    assert not plain(patches).any()
