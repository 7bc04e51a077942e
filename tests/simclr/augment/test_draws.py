"""What views are given: the same for any batch, device order or resume, and as the preset says."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats

from simclr.augment.operations import BANNED, NINE, Preset, allowed_couplets, preset_of
from simclr.augment.parameters import draw
from simclr.config import AugmentConfig, Rotation, Variant

BANDS = 3


def parameters(preset: str | Preset, num: int = 4000, epoch: int = 0, seed: int = 0):
    rule = preset_of(AugmentConfig(preset=preset)) if isinstance(preset, str) else preset
    return draw(rule, seed, epoch, torch.arange(num), torch.zeros(num, dtype=torch.int64), BANDS)


def total(drawn) -> torch.Tensor:
    """Return the linear part of the whole chain, (N, 2, 2)."""
    product = torch.eye(2).expand(len(drawn), 2, 2)
    for place in range(drawn.linear.shape[1]):
        product = product @ drawn.linear[:, place]
    return product


def extents(drawn) -> torch.Tensor:
    return total(drawn).diagonal(dim1=1, dim2=2)


def only(operation: str, variant: Variant) -> Preset:
    return Preset(operation, variant, {operation: 1.0})


def test_a_view_is_the_same_in_any_batch():
    preset = preset_of(AugmentConfig(preset="standard"))
    ids, views = torch.arange(40), torch.ones(40, dtype=torch.int64)
    together = draw(preset, 3, 5, ids, views, BANDS)
    order = torch.randperm(40)
    shuffled = draw(preset, 3, 5, ids[order], views, BANDS)
    for name in ("linear", "offset", "gain", "blur", "contrast", "noise_window"):
        assert torch.equal(getattr(together, name)[order], getattr(shuffled, name))


def test_epoch_seed_and_view_change_the_parameters():
    first = parameters("standard")
    assert first.equals(parameters("standard"))
    assert not first.equals(parameters("standard", epoch=1))
    assert not first.equals(parameters("standard", seed=1))


def test_twenty_seven_couplets_are_allowed_and_nine_are_not():
    couplets = allowed_couplets()
    assert len(couplets) == 27
    assert len(BANNED) == 9
    degree = Counter(name for couplet in couplets for name in couplet)
    assert degree == {
        "speckle": 8, "contrast": 7, "shift": 7, "zoom": 7, "rotation": 6, "gain": 6,
        "flip": 5, "brightness": 4, "blur": 4,
    }  # fmt: skip


def test_couplets_are_drawn_equally_often():
    drawn = parameters("corrected", num=27_000)
    shares = {
        "blur": drawn.blur > 0,
        "contrast": drawn.contrast != 1,
        "speckle": drawn.speckle > 0,
        "brightness": drawn.brightness != 0,
        "gain": (drawn.gain != 1).all(1),
    }
    expected = {"blur": 4, "contrast": 7, "speckle": 8, "brightness": 4, "gain": 6}
    for name, mask in shares.items():
        test = stats.binomtest(int(mask.sum()), 27_000, expected[name] / 27)
        assert test.pvalue > 1e-4, name


def test_only_a_half_turn_with_both_mirrors_leaves_a_view_as_it_was():
    drawn = parameters("corrected")
    geometric = (total(drawn) != torch.eye(2)).flatten(1).any(1) | (drawn.offset != 0).any((1, 2))
    pixel = (drawn.blur > 0) | (drawn.contrast != 1) | (drawn.speckle > 0)
    pixel |= (drawn.brightness != 0) | (drawn.gain != 1).any(1)
    untouched = (~geometric & ~pixel).float().mean()
    assert 0 < untouched < 2 / (27 * 9)
    # Five of the 27 couplets are of geometric operations alone, seven of pixel operations alone.
    assert 0.21 < (~geometric).float().mean() < 0.31


def test_corrected_ranges_are_physical():
    drawn = parameters(Preset("all", Variant.corrected, dict.fromkeys(NINE, 1.0)))
    assert drawn.gain.min() > 0.75
    assert drawn.gain.max() < 1.33
    scale = total(drawn).det().abs().sqrt()
    assert 0.8 - 1e-6 <= scale.min() <= scale.max() <= 1.25 + 1e-6
    assert 0 < drawn.offset.abs().max() <= 0.2
    assert drawn.contrast.min() >= 0.6
    assert drawn.contrast.max() <= 1.4
    assert drawn.brightness.abs().max() <= 0.4
    assert 0.1 <= drawn.blur.min() <= drawn.blur.max() <= 2.0
    assert drawn.speckle.max() <= 0.1


@pytest.mark.parametrize("operation", ["rotation", "flip"])
def test_corrected_turns_and_mirrors_are_never_the_identity(operation):
    drawn = parameters(only(operation, Variant.corrected))
    assert (total(drawn) != torch.eye(2)).flatten(1).any(1).all()


@pytest.mark.parametrize("operation", ["rotation", "flip"])
def test_turns_and_mirrors_of_2021_are_the_identity_one_time_in_four(operation):
    drawn = parameters(only(operation, Variant.paper))
    identity = (total(drawn) == torch.eye(2)).flatten(1).all(1)
    assert 0.21 < identity.float().mean() < 0.29


def test_the_eight_symmetries_of_the_square_are_equally_likely():
    drawn = parameters(only("symmetry", Variant.corrected), num=8000)
    kinds = Counter(tuple(kind.flatten().tolist()) for kind in total(drawn) + 0.0)
    assert len(kinds) == 8
    assert stats.chisquare(list(kinds.values())).pvalue > 1e-4


def test_paper_zoom_keeps_most_of_the_patch_and_the_literal_one_does_not():
    paper = parameters(only("zoom", Variant.paper))
    extent = extents(paper)
    assert extent.prod(1).min() >= 0.64 - 1e-6
    assert (extent > 0).all()
    assert ((paper.offset[:, 0].abs() + extent) <= 1 + 1e-6).all()
    extent = extents(parameters(only("zoom", Variant.literal)))
    # Two independent distances of two uniforms each.
    assert abs(extent.abs().prod(1).mean() - 1 / 9) < 0.01
    mirrored = (extent < 0).any(1)
    assert 0.7 < mirrored.float().mean() < 0.8


def test_literal_gain_inverts_half_the_views_and_paper_gain_none():
    literal = parameters(only("gain", Variant.literal)).gain[:, 0]
    assert 0.45 < (literal < 0).float().mean() < 0.55
    assert literal.abs().max() <= 0.5
    paper = parameters(only("gain", Variant.paper)).gain
    assert 0.5 <= paper.min() <= paper.max() <= 1.5


def test_crops_stay_inside_the_patch_with_the_area_asked_for():
    drawn = parameters(only("crop", Variant.corrected))
    extent = extents(drawn)
    assert (drawn.offset[:, 0].abs() + extent <= 1 + 1e-6).all()
    area = extent.prod(1)
    assert area.min() > 0.15
    assert area.max() <= 1
    aspect = (extent[:, 0] / extent[:, 1]).log().abs()
    assert aspect.max() <= math.log(4 / 3) + 1e-5


def test_an_unknown_preset_or_operation_lists_the_valid_ones():
    with pytest.raises(ValueError, match="is 'strong'; valid names: paper_literal, paper"):
        preset_of(AugmentConfig(preset="strong"))
    with pytest.raises(ValueError, match="holds 'hue'; valid names: blur, brightness"):
        preset_of(AugmentConfig(preset="list", operations=["hue"]))


def test_a_list_of_operations_is_always_applied():
    preset = preset_of(AugmentConfig(preset="list", operations=["blur", "flip"]))
    drawn = parameters(preset)
    assert (drawn.blur > 0).all()
    assert (drawn.contrast == 1).all()
    with pytest.raises(ValueError, match="preset=list"):
        AugmentConfig(preset="list")


def test_either_order_of_a_couplet_is_equally_likely():
    preset = preset_of(AugmentConfig(preset="couplets", couplets=["contrast+zoom"]))
    first = parameters(preset).contrast_of_patch
    assert stats.binomtest(int(first.sum()), len(first), 0.5).pvalue > 1e-4


def test_listed_operations_keep_the_order_of_the_list():
    forth = parameters(preset_of(AugmentConfig(preset="list", operations=["shift", "rotation"])))
    back = parameters(preset_of(AugmentConfig(preset="list", operations=["rotation", "shift"])))
    assert torch.equal(forth.linear[:, 0], back.linear[:, 1])
    assert torch.equal(forth.offset[:, 0], back.offset[:, 1])
    assert (forth.offset[:, 1] == 0).all()


def test_free_rotation_takes_any_angle_and_no_scale():
    preset = Preset("turn", Variant.corrected, {"rotation": 1.0}, rotation=Rotation.free)
    turn = parameters(preset).linear[:, 0]
    torch.testing.assert_close(turn.det(), torch.ones(len(turn)))
    angle = torch.atan2(turn[:, 0, 1], turn[:, 0, 0]).numpy()
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4


def test_bands_are_dropped_as_often_as_asked():
    drawn = parameters(preset_of(AugmentConfig(preset="geometric_standard", band_drop=0.1)))
    dropped = int((drawn.keep == 0).sum())
    assert stats.binomtest(dropped, drawn.keep.numel(), 0.1).pvalue > 1e-4
    assert (parameters("standard").keep == 1).all()


@pytest.mark.parametrize(
    ("couplets", "message"),
    [
        (["blur"], "holds 'blur'; write two different operations"),
        (["blur+blur"], "holds 'blur.blur'; write two different operations"),
        (["blur+hue"], "holds 'hue'; valid names: blur"),
    ],
)
def test_a_couplet_that_is_none_is_refused(couplets, message):
    with pytest.raises(ValueError, match=message):
        preset_of(AugmentConfig(preset="couplets", couplets=couplets))


def test_free_rotation_of_a_preset_that_never_rotates_is_refused():
    with pytest.raises(ValueError, match="preset=standard never rotates"):
        preset_of(AugmentConfig(preset="standard", rotation=Rotation.free))
