"""Controls are untrained, seeded, and what they are said to be."""

from __future__ import annotations

import numpy as np
import torch

from simclr.config import EncoderName, ModelConfig
from simclr.evaluation.features import RandomConvolutions, image_statistics, random_encoder

CPU = torch.device("cpu")
MODEL = ModelConfig(encoder=EncoderName.resnet18)


def make_views():
    return torch.randn(3, 5, 40, 40, generator=torch.Generator().manual_seed(1))


def test_a_random_encoder_follows_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (random_encoder(MODEL, 5, seed, CPU) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    with torch.inference_mode():
        outputs = [encoder(make_views()) for encoder in (first, again, other)]
    assert outputs[0].shape == (3, 512)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_random_convolutions_follow_their_seed():
    first, again, other = (RandomConvolutions(5, seed)(make_views()) for seed in (0, 0, 1))
    assert first.shape == (3, 512)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first >= 0).all()


def test_image_statistics_are_those_of_numpy():
    views = make_views()
    table = image_statistics(views).reshape(3, 5, 5).numpy()
    pixels = views.flatten(2).numpy()
    np.testing.assert_allclose(table[:, :, 0], pixels.mean(axis=2), atol=1e-6)
    np.testing.assert_allclose(table[:, :, 1], pixels.std(axis=2), rtol=1e-5)
    sparse = views[:, :, ::4, ::4].flatten(2).numpy()
    for column, share in ((2, 0.1), (3, 0.5), (4, 0.9)):
        nearest = np.quantile(sparse, share, axis=2, method="nearest")
        np.testing.assert_allclose(table[:, :, column], nearest, atol=1e-6)
