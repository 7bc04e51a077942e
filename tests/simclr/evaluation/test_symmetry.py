"""The 8 symmetries are different, are drawn evenly, and their mean has no upper side."""

from __future__ import annotations

import torch

from simclr.evaluation.features import (
    NUM_SYMMETRIES,
    apply_symmetry,
    averaged_over_symmetries,
    draw_symmetries,
)


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
    drawn = draw_symmetries(3, 1, samples)
    assert (torch.bincount(drawn, minlength=8) - 1000).abs().max() < 130
    torch.testing.assert_close(draw_symmetries(3, 1, samples[5:9]), drawn[5:9])
    assert not torch.equal(draw_symmetries(3, 2, samples), drawn)


def test_an_averaged_network_gives_the_same_for_a_turned_view():
    weight = torch.randn(5, 16)
    network = averaged_over_symmetries(lambda views: views.flatten(1) @ weight.T)
    view = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(network(torch.rot90(view, 1, (2, 3))), network(view))
