"""What views are given: the same for any batch, device order or resume, and as the preset says."""

import math
from collections import Counter
from dataclasses import fields

import pytest
import torch
from scipy import stats

from simclr.augment.operations import OPERATIONS, Stage
from simclr.augment.parameters import (
    BANNED,
    ParameterSampler,
    Preset,
    ViewParameters,
    allowed_couplets,
    preset_of,
)
from simclr.config import AugmentConfig, Rotation

BANDS = 3


def sampler(preset: Preset, seed: int = 0) -> ParameterSampler:
    return ParameterSampler(preset, seed, BANDS, torch.device("cpu"))


def parameters(preset: str | Preset, num: int = 4000, epoch: int = 0, seed: int = 0, **settings):
    config = AugmentConfig(preset=preset, **settings) if isinstance(preset, str) else None
    rule = preset_of(config) if config else preset
    return sampler(rule, seed).draw(epoch, torch.arange(num), torch.zeros(num, dtype=torch.int64))


def line(drawn, preset: str | Preset, name: str) -> torch.Tensor:
    """Return the line (N, 4, C) of an operation of a preset without couplets."""
    rule = preset_of(AugmentConfig(preset=preset)) if isinstance(preset, str) else preset
    return drawn.lines[:, rule.of_stage(Stage.line).index(name)]


def total(drawn) -> torch.Tensor:
    """Return the linear part of the whole chain, (N, 2, 2)."""
    product = torch.eye(2).expand(len(drawn), 2, 2)
    for affine in drawn.maps.unbind(1):
        product = product @ affine[..., :2]
    return product


def extents(drawn) -> torch.Tensor:
    return total(drawn).diagonal(dim1=1, dim2=2)


def equal(first: ViewParameters, other: ViewParameters) -> bool:
    """True if every parameter is the same to the last bit."""
    pairs = [(getattr(first, one.name), getattr(other, one.name)) for one in fields(first)]
    return all(a is b is None or (a is not None and torch.equal(a, b)) for a, b in pairs)


def only(operation: str) -> Preset:
    return Preset(operation, {operation: 1.0})


def test_a_view_is_the_same_in_any_batch():
    preset = preset_of(AugmentConfig(preset="simclr"))
    ids, views = torch.arange(40), torch.ones(40, dtype=torch.int64)
    together = sampler(preset, 3).draw(5, ids, views)
    order = torch.randperm(40)
    shuffled = sampler(preset, 3).draw(5, ids[order], views)
    for name in ("maps", "lines", "blur", "noise", "noise_window"):
        assert torch.equal(getattr(together, name)[order], getattr(shuffled, name))


def test_epoch_seed_and_view_change_the_parameters():
    first = parameters("simclr")
    assert equal(first, parameters("simclr"))
    assert not equal(first, parameters("simclr", epoch=1))
    assert not equal(first, parameters("simclr", seed=1))


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
    drawn = parameters("paper", num=27_000)
    shares = {
        "blur": drawn.blur > 0,
        "speckle": drawn.noise > 0,
        "contrast": (drawn.lines[:, :, 3] != 0).any((1, 2)),
        "gain": (drawn.lines[:, :, 2] != 0).any((1, 2)),
        "brightness": (drawn.lines[:, :, 1] != 0).any((1, 2)),
    }
    expected = {"blur": 4, "contrast": 7, "speckle": 8, "brightness": 4, "gain": 6}
    for name, mask in shares.items():
        test = stats.binomtest(int(mask.sum()), 27_000, expected[name] / 27)
        assert test.pvalue > 1e-4, name


def test_only_a_half_turn_with_both_mirrors_leaves_a_view_as_it_was():
    drawn = parameters("paper")
    geometric = (total(drawn) != torch.eye(2)).flatten(1).any(1)
    geometric |= (drawn.maps[..., 2] != 0).any((1, 2))
    changed = (drawn.lines != torch.tensor([1.0, 0, 0, 0])[:, None]).flatten(1).any(1)
    pixel = (drawn.blur > 0) | (drawn.noise > 0) | changed
    untouched = (~geometric & ~pixel).float().mean()
    assert 0 < untouched < 2 / (27 * 9)
    # Five of the 27 couplets are of geometric operations alone, seven of pixel operations alone.
    assert 0.21 < (~geometric).float().mean() < 0.31


def test_every_operation_stays_within_its_default_strength():
    drawn = parameters("all")
    gain = line(drawn, "all", "gain")[:, 0]
    assert 0.75 < gain.min() < gain.max() < 1.33
    scale = total(drawn).det().abs().sqrt()
    assert 0.8 - 1e-6 <= scale.min() <= scale.max() <= 1.25 + 1e-6
    assert 0 < drawn.maps[..., 2].abs().max() <= 0.2
    contrast = line(drawn, "all", "contrast")[:, 0]
    assert 0.6 <= contrast.min() < contrast.max() <= 1.4
    assert 0.3 < line(drawn, "all", "brightness")[:, 1].abs().max() <= 0.4
    assert 0.1 <= drawn.blur.min() <= drawn.blur.max() <= 2.0
    assert 0.05 < drawn.noise.max() <= 0.1


def test_strengths_are_settings():
    mild = {"gain": 1.05, "gain_per_band": 0.0, "zoom": 1.0, "shift": 0.0, "speckle": 0.01}
    mild |= {"contrast": 0.1, "brightness": 0.0, "blur": 0.5, "blur_min": 0.2}
    drawn = parameters("all", strengths=mild)
    gain = line(drawn, "all", "gain")[:, 0]
    assert 1.04 < gain.max() <= 1.05 + 1e-6
    assert (gain == gain[:, :1]).all()
    torch.testing.assert_close(total(drawn).det().abs(), torch.ones(len(drawn)))
    assert drawn.maps[..., 2].abs().max() == 0
    assert 0.2 <= drawn.blur.min() < drawn.blur.max() <= 0.5
    assert drawn.noise.max() <= 0.01
    area = total(parameters("geometric_standard", strengths={"crop_area": 0.9})).det().abs()
    assert area.min() > 0.7


def test_chances_are_settings():
    drawn = parameters("simclr", probabilities={"blur": 0.1, "speckle": 0.0, "zoom": 0.3})
    assert stats.binomtest(int((drawn.blur > 0).sum()), len(drawn), 0.1).pvalue > 1e-4
    assert (drawn.noise == 0).all()
    zoomed = (drawn.maps[:, 1, 0, 0] != 1).sum()  # behind the crop, as usual
    assert stats.binomtest(int(zoomed), len(drawn), 0.3).pvalue > 1e-4


def test_other_chances_leave_the_draws_of_other_operations_alone():
    assert torch.equal(
        parameters("simclr", probabilities={"blur": 0.0}).lines, parameters("simclr").lines
    )


def test_standard_is_simclr_with_half_the_photometry_and_no_loss_of_texture():
    strengths = {"gain": 1.1, "brightness": 0.2, "contrast": 0.2}
    same = parameters("simclr", probabilities={"blur": 0, "speckle": 0}, strengths=strengths)
    assert equal(parameters("standard"), same)
    stronger = parameters("standard", strengths={"gain": 1.25})
    assert not equal(stronger, same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": {"hue": 1.0}}, "has 'hue'; valid names: blur, blur_min, brightness"),
        ({"strengths": {"gain": 0.5}}, "strengths.gain is 0.5; give a number from 1 to 4"),
        ({"probabilities": {"hue": 1.0}}, "probabilities holds 'hue'; valid names: blur"),
        ({"probabilities": {"blur": 2.0}}, "probabilities.blur is 2.0; give a chance from 0 to 1"),
        ({"preset": "paper", "probabilities": {"blur": 0.2}}, "every view gets one couplet"),
        ({"preset": "list", "operations": ["flip", "gain", "flip"]}, "operations repeats one of"),
        (
            {"preset": "list", "operations": ["flip"], "probabilities": {"blur": 0.2}},
            "has blur, which is not in augment.operations",
        ),
    ],
)
def test_a_strength_or_chance_that_is_none_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        preset_of(AugmentConfig(**settings))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_returns_what_its_stage_says(name):
    operation = OPERATIONS[name]
    strengths = {key: one.default for key, one in operation.strengths.items()}
    u = torch.rand(5, operation.num_uniforms + BANDS * operation.num_per_band)
    shape = operation.function(strengths, u).shape
    expected = {Stage.geometry: [(5, 2, 3)], Stage.line: [(5, 4, 1), (5, 4, BANDS)]}
    assert shape in expected.get(operation.stage, [(5,)])


@pytest.mark.parametrize("operation", ["rotation", "flip"])
def test_turns_and_mirrors_are_never_the_identity(operation):
    drawn = parameters(only(operation))
    assert (total(drawn) != torch.eye(2)).flatten(1).any(1).all()


def test_the_eight_symmetries_of_the_square_are_equally_likely():
    drawn = parameters(only("symmetry"), num=8000)
    kinds = Counter(tuple(kind.flatten().tolist()) for kind in total(drawn) + 0.0)
    assert len(kinds) == 8
    assert stats.chisquare(list(kinds.values())).pvalue > 1e-4


def test_crops_stay_inside_the_patch_with_the_area_asked_for():
    drawn = parameters(only("crop"))
    extent = extents(drawn)
    assert (drawn.maps[:, 0, :, 2].abs() + extent <= 1 + 1e-6).all()
    area = extent.prod(1)
    assert area.min() > 0.15
    assert area.max() <= 1
    aspect = (extent[:, 0] / extent[:, 1]).log().abs()
    assert aspect.max() <= math.log(4 / 3) + 1e-5


def test_an_unknown_preset_or_operation_lists_the_valid_ones():
    with pytest.raises(ValueError, match="is 'strong'; give one of paper, standard"):
        preset_of(AugmentConfig(preset="strong"))
    with pytest.raises(ValueError, match="holds 'hue'; valid names: blur, brightness"):
        preset_of(AugmentConfig(preset="list", operations=["hue"]))


def test_a_list_of_operations_is_always_applied():
    preset = preset_of(AugmentConfig(preset="list", operations=["blur", "flip"]))
    drawn = parameters(preset)
    assert (drawn.blur > 0).all()
    assert drawn.lines.shape[1] == 0
    with pytest.raises(ValueError, match="preset=list"):
        AugmentConfig(preset="list")


def test_either_order_of_a_couplet_is_equally_likely():
    preset = preset_of(AugmentConfig(preset="couplets", couplets=["contrast+zoom"]))
    first = parameters(preset).line_of_patch[:, 0]
    assert stats.binomtest(int(first.sum()), len(first), 0.5).pvalue > 1e-4


def test_listed_operations_keep_the_order_of_the_list():
    forth = parameters(preset_of(AugmentConfig(preset="list", operations=["shift", "rotation"])))
    back = parameters(preset_of(AugmentConfig(preset="list", operations=["rotation", "shift"])))
    assert torch.equal(forth.maps[:, 0], back.maps[:, 1])
    assert (forth.maps[:, 1, :, 2] == 0).all()


def test_free_rotation_takes_any_angle_and_no_scale():
    preset = Preset("turn", {"rotation": 1.0}, rotation=Rotation.free)
    turn = parameters(preset).maps[:, 0, :, :2]
    torch.testing.assert_close(turn.det(), torch.ones(len(turn)))
    angle = torch.atan2(turn[:, 0, 1], turn[:, 0, 0]).numpy()
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-4


def test_bands_are_dropped_as_often_as_asked():
    drawn = parameters(preset_of(AugmentConfig(preset="geometric_standard", band_drop=0.1)))
    dropped = int((drawn.keep == 0).sum())
    assert stats.binomtest(dropped, drawn.keep.numel(), 0.1).pvalue > 1e-4
    assert parameters("standard").keep is None


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
