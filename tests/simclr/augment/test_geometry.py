"""The warp against torch's own operations on the same pixels."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from simclr.augment.parameters import ParameterSampler, Preset, ViewParameters
from simclr.augment.transforms import blur_matrix, frame_of, mean_of_view, trace_axes, warp
from simclr.config import Rotation

NOTHING = Preset("none", {})


def identity(num: int = 1) -> ViewParameters:
    ids = torch.arange(num)
    return ParameterSampler(NOTHING, 0, 2, torch.device("cpu")).draw(0, ids, ids)


def chain(*maps) -> ViewParameters:
    """Return one view's parameters with these maps, each ((extent y, x), (centre y, x))."""
    linear = torch.stack([torch.diag(torch.tensor(extent)) for extent, _ in maps])
    offset = torch.tensor([centre for _, centre in maps])
    return with_maps(torch.cat([linear, offset[:, :, None]], 2))


def with_maps(maps: torch.Tensor) -> ViewParameters:
    return dataclasses.replace(identity(), maps=maps[None])


def apply(patches: torch.Tensor, parameters: ViewParameters, view_px: int, preset=NOTHING):
    frame = frame_of(parameters, preset, view_px)
    laid, rows, columns = frame.lay_out(patches.permute(0, 2, 1, 3).clone())
    return warp(laid, rows, columns).permute(0, 3, 1, 2)


@pytest.fixture
def patches():
    return torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(0))


def test_identity_gives_the_patch_back_to_the_last_bit(patches):
    assert torch.equal(apply(patches, identity(), 24), patches)


@pytest.mark.parametrize("factor", [2, 6])
def test_coarse_bands_come_out_as_bilinear_interpolation(patches, factor):
    expected = F.interpolate(patches, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(apply(patches, identity(), 24 * factor), expected)


def test_a_smaller_view_is_antialiased(patches):
    expected = F.interpolate(patches, size=12, mode="bilinear", align_corners=False, antialias=True)
    actual = apply(patches, identity(), 12)
    # torch cuts its triangle at the edge, we reflect there: compare the inside.
    torch.testing.assert_close(actual[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_a_ramp_on_the_ground_is_the_same_ramp_in_every_band_group():
    def ramp(size: int) -> torch.Tensor:
        centres = (2 * torch.arange(size) + 1) / size - 1
        return (centres[:, None] + 2 * centres[None])[None, None]

    parameters = chain(((0.5, -0.6), (0.1, -0.2)))
    fine, middle, coarse = (apply(ramp(size), parameters, 120) for size in (120, 60, 20))
    torch.testing.assert_close(fine, middle, rtol=0, atol=1e-5)
    torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-5)


def test_mirrors_are_flips(patches):
    down = chain(((-1.0, 1.0), (0.0, 0.0)))
    right = chain(((1.0, -1.0), (0.0, 0.0)))
    torch.testing.assert_close(apply(patches, down, 24), patches.flip(2))
    torch.testing.assert_close(apply(patches, right, 24), patches.flip(3))


def test_the_three_drawn_quarter_turns_are_those_of_torch(patches):
    preset = Preset("rotation", {"rotation": 1.0})
    ids = torch.arange(60)
    parameters = ParameterSampler(preset, 0, 2, torch.device("cpu")).draw(0, ids, ids)
    turned = apply(patches.expand(60, -1, -1, -1), parameters, 24)
    kinds = set()
    for view in turned:
        matches = [k for k in range(4) if torch.equal(view, patches[0].rot90(k, (1, 2)))]
        assert len(matches) == 1
        kinds |= set(matches)
    assert kinds == {1, 2, 3}


@pytest.mark.parametrize(
    ("centre", "extent"),
    [((0.0, 0.0), (0.5, 0.5)), ((0.2, -0.1), (0.8, 0.7)), ((0.15, 0.2), (1.0, 1.0))],
)
def test_zoom_and_shift_equal_grid_sampling_with_reflection(patches, centre, extent):
    parameters = chain((extent, centre))
    theta = torch.tensor([[[extent[1], 0, centre[1]], [0, extent[0], centre[0]]]])
    grid = F.affine_grid(theta, [1, 2, 24, 24], align_corners=False)
    expected = F.grid_sample(
        patches, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    torch.testing.assert_close(apply(patches, parameters, 24), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_a_gaussian_convolution_with_reflection(patches, sigma):
    from scipy.ndimage import gaussian_filter

    matrix = blur_matrix(torch.tensor([sigma]), 24)
    actual = matrix @ patches[0, 0] @ matrix.transpose(1, 2)
    radius = int(-(-3 * sigma // 1))
    expected = gaussian_filter(patches[0, 0].double().numpy(), sigma, mode="reflect", radius=radius)
    torch.testing.assert_close(actual[0].double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_no_blur_is_the_identity_and_rows_add_up_to_one():
    matrix = blur_matrix(torch.tensor([0.0, 1.5]), 16)
    assert torch.equal(matrix[0], torch.eye(16))
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 16))


def test_a_chain_of_maps_folds_at_every_map():
    # What shift leaves is reflected before zoom looks at it, as if the two were done in turn.
    shift, zoom = ((1.0, 1.0), (0.2, 0.0)), ((1.25, 1.25), (0.0, 0.0))
    axes = trace_axes(chain(shift, zoom).maps, 20)

    def fold(place: float) -> float:
        return 2 - place if place > 1 else -2 - place if place < -1 else place

    for row in range(20):
        place = (2 * row + 1) / 20 - 1
        expected = fold(fold(1.25 * place) + 0.2)
        assert axes.positions[0, 0, row].item() / 20 == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(axes.scales, torch.full((2, 1), 1.25))


def test_the_mean_of_a_view_is_known_before_it_is_made(patches):
    parameters = chain(((0.7, -0.4), (0.2, 0.3)))
    laid, rows, columns = frame_of(parameters, NOTHING, 30).lay_out(
        patches.permute(0, 2, 1, 3).clone()
    )
    expected = apply(patches, parameters, 30).mean((2, 3))
    torch.testing.assert_close(mean_of_view(laid, rows.mean(1), columns.mean(1)), expected)


@pytest.mark.parametrize("degrees", [90.0, 180.0, 30.0])
def test_free_rotation_turns_about_the_centre(patches, degrees):
    from scipy.ndimage import rotate

    turn = math.radians(degrees)
    cosine, sine = math.cos(turn), math.sin(turn)
    parameters = with_maps(torch.tensor([[[cosine, sine, 0.0], [-sine, cosine, 0.0]]]))
    free = Preset("turn", {"rotation": 1.0}, rotation=Rotation.free)
    actual = apply(patches, parameters, 24, free)
    expected = rotate(
        patches.double().numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="reflect"
    )
    torch.testing.assert_close(actual.double(), torch.from_numpy(expected), rtol=0, atol=1e-4)
