"""Features are taken once, each from its own patch alone, and stored ones are trusted on proof."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from simclr.config import EncoderName, ModelConfig, Stem
from simclr.distributed import DistributedContext
from simclr.evaluation import features
from simclr.evaluation.features import (
    NUM_SYMMETRIES,
    FeatureCache,
    apply_symmetry,
    averaged_over_symmetries,
    draw_symmetries,
    extract_features,
    image_statistics,
    random_encoder,
    store_features,
)
from simclr.model.pretrained import BandSubset
from simclr.model.simclr import joined_stages
from simclr.philox import Philox

CPU = torch.device("cpu")


def make_views(num_samples=7):
    return torch.randn(num_samples, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def small_encoder(seed=0, in_channels=4):
    config = ModelConfig(encoder=EncoderName.resnet18, stem=Stem.small)
    return random_encoder(config, in_channels, seed, CPU)


def take(embedder, views, batch_size):
    batches = torch.split(views, batch_size)
    return extract_features({"net": embedder}, batches, len(views), progress=False)["net"]


def test_a_feature_does_not_depend_on_the_batch_it_is_in():
    encoder, views = small_encoder(), make_views()
    together, alone = take(encoder, views, 7), take(encoder, views, 1)
    assert together.shape == (7, 512)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_network_in_training_mode_stops():
    encoder = small_encoder()
    encoder.layer1[0].bn1.train()
    with pytest.raises(ValueError, match="net is in training mode"):
        take(encoder, make_views(), 7)


def test_a_feature_that_is_not_finite_stops():
    views = make_views()
    views[3] = torch.nan
    with pytest.raises(ValueError, match="1 of 7 features of net are not finite"):
        take(lambda batch: batch.flatten(1), views, 2)


def test_one_pass_serves_all_networks():
    views = make_views()
    passes = []

    def once():
        passes.append(1)
        return iter(torch.split(views, 3))

    networks = {"sum": lambda batch: batch.sum((2, 3)), "flat": nn.Flatten().eval()}
    found = extract_features(networks, once(), 7, progress=False)
    np.testing.assert_array_equal(found["flat"], views.flatten(1).numpy())
    assert found["sum"].shape == (7, 4)
    assert passes == [1]


ALONE = DistributedContext(0, 0, 1, torch.device("cpu"), "here")


def cached(folder, weights="a", num_samples=7):
    """Load features through a cache; return them and how many passes that took."""
    passes = []

    def views(rows):
        passes.append(1)
        return torch.split(make_views(num_samples)[rows], 3)

    cache = FeatureCache(folder, {"bands": ("B02",)}, {"random encoder 0": weights})
    networks = {"random encoder 0": nn.Flatten().eval()}
    store_features(cache, networks, views, num_samples, ALONE, progress=False)
    return cache.stored("random encoder 0", num_samples), len(passes)


def test_features_of_the_same_origin_are_read_and_of_another_taken_again(tmp_path):
    first, passes = cached(tmp_path)
    assert passes == 1
    again, passes = cached(tmp_path)
    assert passes == 0
    np.testing.assert_array_equal(again, first)
    assert cached(tmp_path, weights="b")[1] == 1
    assert cached(tmp_path, weights="b", num_samples=6)[1] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_no_flipped_bit_of_a_small_file_is_more_than_damage(tmp_path):
    cache = FeatureCache(tmp_path, {})
    stored = np.arange(6, dtype=np.float32).reshape(3, 2)
    cache.write("net", stored)
    path = cache.path("net")
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 3):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        found = cache.read("net", 3)
        assert found is None or np.array_equal(found, stored)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_features_are_named_and_taken_again(tmp_path, caplog, damage):
    first, _ = cached(tmp_path)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncate": data[:-100], "flip": data, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again, passes = cached(tmp_path)
    assert passes == 1
    assert path.name in caplog.text
    np.testing.assert_array_equal(again, first)
    assert cached(tmp_path)[1] == 0


def test_networks_with_names_alike_share_no_file(tmp_path):
    cache = FeatureCache(tmp_path, {})
    names = ["x/run", "x-run", "x run", "ä" * 90, "ä" * 91, "step-000000001"]
    paths = [cache.path(name) for name in names]
    assert len(set(paths)) == len(names)
    assert max(len(path.name.encode()) for path in paths) < 200
    assert paths[-1].name == "step-000000001.npz"


def test_two_evaluations_at_once_do_not_take_each_others_parts(tmp_path, monkeypatch):
    def store(scale):
        cache = FeatureCache(tmp_path, {"scale": scale})
        networks = {"net": lambda views: scale * views.flatten(1)}
        store_features(cache, networks, all_views, 4, ALONE, progress=False)
        return cache

    def all_views(rows):
        return [make_views(4)[rows]]

    # the second one runs while the first waits for the parts of its ranks
    meanwhile = [lambda: store(2.0)]
    monkeypatch.setattr(features, "barrier", lambda _: meanwhile and meanwhile.pop()())
    found = store(1.0).stored("net", 4)
    np.testing.assert_array_equal(found, make_views(4).flatten(1).numpy())


def test_the_symmetries_are_the_turns_and_flips_of_the_square():
    view = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = {
        tuple(apply_symmetry(view, torch.tensor([k])).flatten().tolist())
        for k in range(NUM_SYMMETRIES)
    }
    expected = {
        tuple(torch.rot90(one, k, (2, 3)).flatten().tolist())
        for one in (view, view.flip(3))
        for k in range(4)
    }
    assert found == expected


def test_each_view_has_its_own_symmetry():
    views = torch.randn(8, 2, 4, 4)
    together = apply_symmetry(views, torch.arange(8))
    for k in range(8):
        torch.testing.assert_close(
            together[k : k + 1], apply_symmetry(views[k : k + 1], torch.tensor([k]))
        )


def test_draws_are_even_and_depend_on_epoch_seed_and_sample_alone():
    samples = torch.arange(8000)
    drawn = draw_symmetries(Philox(3), 1, samples)
    assert (torch.bincount(drawn, minlength=8) - 1000).abs().max() < 130
    torch.testing.assert_close(draw_symmetries(Philox(3), 1, samples[5:9]), drawn[5:9])
    assert not torch.equal(draw_symmetries(Philox(3), 2, samples), drawn)


def test_joined_stages_end_with_the_representation_and_leave_other_embedders_alone():
    encoder, views = small_encoder(), make_views(2)
    with torch.inference_mode():
        joined, last = joined_stages(encoder)(views), encoder(views)
    assert joined.shape == (2, 64 + 128 + 256 + 512)
    torch.testing.assert_close(joined[:, -512:], last)
    assert joined_stages(image_statistics) is image_statistics


def test_joined_stages_are_those_of_an_encoder_of_few_bands():
    encoder, views = small_encoder(in_channels=3), make_views(2)
    rgb = BandSubset(encoder, [2, 1, 0])
    with torch.inference_mode():
        joined, expected = joined_stages(rgb)(views), joined_stages(encoder)(views[:, [2, 1, 0]])
    assert joined.shape == (2, 64 + 128 + 256 + 512)
    torch.testing.assert_close(joined, expected)


def test_an_averaged_network_gives_the_same_for_a_turned_view():
    weight = torch.randn(5, 16)
    network = averaged_over_symmetries(lambda views: views.flatten(1) @ weight.T)
    view = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(network(torch.rot90(view, 1, (2, 3))), network(view))
