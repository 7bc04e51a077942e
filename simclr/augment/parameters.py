"""Parameters of every view of a batch, drawn from (seed, epoch, sample, view) alone.

An operation that a view did not get has its identity parameter, so that nothing later branches on
what was drawn. The draw of each parameter stands at a fixed place in the stream: a preset can
change without moving the draws of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from simclr.augment.operations import MOTIONS, OPERATIONS, Preset
from simclr.config import Rotation, Variant
from simclr.philox import Epoch, uniforms

SHIFT_PX_2021 = 12  # the 2021 code rolled by 0 to 11 pixels of 120
SIDE_PX_2021 = 120

Uniforms = dict[str, torch.Tensor]
Map = tuple[torch.Tensor, torch.Tensor]


def motion(name: str, preset: Preset, u: Uniforms) -> Map:
    """Return the (N, 2, 2) linear part and (N, 2) offset of an operation, axes in order y, x."""
    return _MOTIONS[name](preset, u)


def wraps(name: str, variant: Variant) -> bool:
    """Say whether an operation shows the other side of the patch beyond an edge."""
    return name == "shift" and variant is not Variant.corrected


def _crop(_: Preset, u: Uniforms) -> Map:
    # Area U(0.2, 1) and log-uniform aspect in [3/4, 4/3], as in Szegedy et al. 2015; a side that
    # would leave the patch is cut to it instead of drawn again.
    side = (0.2 + 0.8 * u["crop_area"]).sqrt()
    ratio = torch.exp((u["crop_aspect"] - 0.5) * math.log(4 / 3))  # root of the aspect
    extent = torch.stack([side * ratio, side / ratio], 1).clamp(max=1)
    centre = (2 * torch.stack([u["crop_y"], u["crop_x"]], 1) - 1) * (1 - extent)
    return torch.diag_embed(extent), centre


def _zoom(preset: Preset, u: Uniforms) -> Map:
    if preset.variant is Variant.corrected:
        extent = torch.exp(-(2 * u["zoom"] - 1) * math.log(1.25))
        return torch.diag_embed(torch.stack([extent, extent], 1)), _still(extent)
    low = torch.stack([u["zoom_y0"], u["zoom_x0"]], 1)
    high = torch.stack([u["zoom_y1"], u["zoom_x1"]], 1)
    if preset.variant is Variant.paper:
        # Ordered corners with an area in [0.64, 1]: each side at least 0.8 of the patch.
        side = 0.8 + 0.2 * high
        return torch.diag_embed(side), 2 * low * (1 - side) + side - 1
    # The crop box of 2021: four unordered uniforms, so that the patch shrinks and mirrors.
    return torch.diag_embed(high - low), low + high - 1


def _shift(preset: Preset, u: Uniforms) -> Map:
    shift = torch.stack([u["shift_y"], u["shift_x"]], 1)
    same = torch.ones_like(shift)
    if preset.variant is Variant.corrected:
        return torch.diag_embed(same), 2 * 0.1 * (2 * shift - 1)
    return torch.diag_embed(same), -2 * (shift * SHIFT_PX_2021).floor() / SIDE_PX_2021


def _rotation(preset: Preset, u: Uniforms) -> Map:
    if preset.rotation is Rotation.free:
        angle = math.pi * (2 * u["rotation"] - 1)
        cosine, sine = angle.cos(), angle.sin()
    else:
        # In 2021 a turn by nothing was one of four; it would leave the view as it was.
        corrected = preset.variant is Variant.corrected
        quarters = 1 + (3 * u["rotation"]).long() if corrected else (4 * u["rotation"]).long()
        cosine, sine = _quarter_turns(quarters)
    return _turn(cosine, sine), _still(cosine)


def _flip(preset: Preset, u: Uniforms) -> Map:
    if preset.variant is Variant.corrected:
        kind = 1 + (3 * u["flip"]).long()  # up-down, left-right, both: never none
        down, right = kind % 2 == 1, kind >= 2
    else:
        down, right = u["flip_vertical"] < 0.5, u["flip"] < 0.5
    return torch.diag_embed(_signs(down, right)), _still(u["flip"])


def _symmetry(_: Preset, u: Uniforms) -> Map:
    kind = (8 * u["symmetry"]).long()
    mirrored = _signs(kind >= 4, torch.zeros_like(kind, dtype=torch.bool))
    return _turn(*_quarter_turns(kind % 4)) * mirrored[:, :, None], _still(mirrored[:, 0])


def _quarter_turns(quarters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact cosine and sine of k quarter turns: an angle in floats would smear pixels."""
    odd = quarters % 2
    return (1.0 - odd) * (1 - quarters), 1.0 * odd * (2 - quarters)


def _turn(cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return the map of a counterclockwise turn, with y pointing down as rows do."""
    return torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)


def _signs(down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return 1.0 - 2.0 * torch.stack([down, right], 1).to(torch.float32)


def _still(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(like), 2, device=like.device)


_MOTIONS: dict[str, Callable[[Preset, Uniforms], Map]] = {
    "crop": _crop,
    "zoom": _zoom,
    "shift": _shift,
    "rotation": _rotation,
    "flip": _flip,
    "symmetry": _symmetry,
}

_SCALARS = (
    "couplet",
    "order",
    "rotation",
    "flip",
    "flip_vertical",
    "shift_y",
    "shift_x",
    "zoom",
    "zoom_y0",
    "zoom_y1",
    "zoom_x0",
    "zoom_x1",
    "crop_area",
    "crop_aspect",
    "crop_y",
    "crop_x",
    "symmetry",
    "blur",
    "brightness",
    "contrast",
    "gain",
    "noise",
    "noise_window",
)

_Masks = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """What is done to N views; every field is a tensor on the device.

    Geometry is a chain of K maps in order of application (see ``simclr.augment.parameters``).

    Attributes:
        linear: (N, K, 2, 2) from the axes y, x of a result to those of its operand.
        offset: (N, K, 2) added; the operand spans [-1, 1].
        wrap: (N, K) bool, beyond an edge comes the opposite side instead of the reflection.
        blur: (N,) sigma of a Gaussian in pixels of the view, 0 for none.
        blurred_after: (N,) number of maps that are applied before the blur.
        contrast: (N,) factor about each band's mean, 1 for none.
        contrast_of_patch: (N,) bool, about the mean of the whole patch instead of the view's.
        gain: (N, C) factor of the reflectance, 1 for none.
        brightness: (N,) added, in standard deviations of the band, 0 for none.
        brightness_first: (N,) bool, before the gain.
        speckle: (N,) standard deviation of multiplicative noise, 0 for none.
        impulse: (N,) share of pixels set to each extreme, 0 for none.
        noise_first: (N,) bool, on the patch's own pixels before anything else.
        noise_window: (N,) uniform in [0, 1): which noise is used.
        keep: (N, C) 0 where a band is blanked, else 1.
    """

    linear: torch.Tensor
    offset: torch.Tensor
    wrap: torch.Tensor
    blur: torch.Tensor
    blurred_after: torch.Tensor
    contrast: torch.Tensor
    contrast_of_patch: torch.Tensor
    gain: torch.Tensor
    brightness: torch.Tensor
    brightness_first: torch.Tensor
    speckle: torch.Tensor
    impulse: torch.Tensor
    noise_first: torch.Tensor
    noise_window: torch.Tensor
    keep: torch.Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.blur)

    def part(self, views: slice) -> ViewParameters:
        """Return the parameters of some of the views, without copying."""
        return ViewParameters(**{one.name: getattr(self, one.name)[views] for one in fields(self)})

    def equals(self, other: ViewParameters) -> bool:
        """True if every parameter is the same to the last bit."""
        return all(
            torch.equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        )


def draw(
    preset: Preset,
    seed: int,
    epoch: Epoch,
    sample_id: torch.Tensor,
    view: torch.Tensor,
    bands: int,
) -> ViewParameters:
    """Draw the parameters of N views: ``sample_id`` and ``view`` are (N,) int64."""
    counts = [len(_SCALARS), len(OPERATIONS), bands, bands]
    table = uniforms(seed, epoch, sample_id, view, sum(counts))
    scalars, chances, jitter, drops = torch.split(table, counts, dim=1)
    u = dict(zip(_SCALARS, scalars.T, strict=True))
    chosen, rank = _choose(preset, u, chances)
    return ViewParameters(
        **_geometry(preset, chosen, rank, u),
        **_radiometry(preset.variant, chosen, u, jitter),
        **_order(preset, chosen, rank),
        noise_window=u["noise_window"],
        keep=(drops >= preset.band_drop).to(torch.float32),
    )


def _choose(preset: Preset, u: Uniforms, chances: torch.Tensor) -> tuple[_Masks, _Masks]:
    """Return which views get each operation, and as the how manieth: {name: (N,)} twice."""
    if preset.couplets:
        chosen, rank = _choose_couplet(preset, u)
    else:
        limits = torch.tensor([preset.probabilities.get(name, 0.0) for name in OPERATIONS])
        chosen = chances < limits.to(chances.device)
        order = list(preset.probabilities)
        ranks = [order.index(name) if name in order else len(order) for name in OPERATIONS]
        rank = torch.tensor(ranks, device=chances.device).expand(len(chances), -1)
    names = OPERATIONS
    return dict(zip(names, chosen.T, strict=True)), dict(zip(names, rank.T, strict=True))


def _choose_couplet(preset: Preset, u: Uniforms) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.full((len(preset.couplets), len(OPERATIONS)), 2)
    for row, couplet in enumerate(preset.couplets):
        for place, name in enumerate(couplet):
            table[row, OPERATIONS.index(name)] = place
    number = (u["couplet"] * len(table)).long()
    rank = table.to(number.device)[number]
    chosen = rank < 2
    turned = chosen & (u["order"] < 0.5)[:, None]
    return chosen, torch.where(turned, 1 - rank, rank)


def _geometry(preset: Preset, chosen: _Masks, rank: _Masks, u: Uniforms) -> dict[str, torch.Tensor]:
    """Return the chain of maps, sorted by when they are applied; K is what the preset may draw."""
    num, device = len(u["order"]), u["order"].device
    linear = torch.empty(num, len(preset.motions), 2, 2, device=device)
    offset = torch.empty(num, len(preset.motions), 2, device=device)
    if not preset.motions:
        return {"linear": linear, "offset": offset, "wrap": offset[..., 0] > 0}
    identity = torch.eye(2, device=device)
    for place, name in enumerate(preset.motions):
        turn, move = motion(name, preset, u)
        linear[:, place] = torch.where(chosen[name][:, None, None], turn, identity)
        offset[:, place] = torch.where(chosen[name][:, None], move, 0.0)
    first = torch.stack([rank[name] for name in preset.motions], 1).argsort(stable=True, dim=1)
    fold = torch.tensor([wraps(name, preset.variant) for name in preset.motions], device=device)
    return {
        "linear": linear.take_along_dim(first[:, :, None, None], 1),
        "offset": offset.take_along_dim(first[:, :, None], 1),
        "wrap": fold[first],
    }


def _order(preset: Preset, chosen: _Masks, rank: _Masks) -> dict[str, torch.Tensor]:
    """Return what depends on the order of application, besides the chain of maps itself."""
    none = torch.zeros_like(rank["blur"])

    def opens(name: str, others: tuple[str, ...]) -> torch.Tensor:
        """Say which views get an operation before any of the others, and one of those at all."""
        present = sum((chosen[other].long() for other in others), none)
        earlier = sum(
            ((chosen[other] & (rank[other] < rank[name])).long() for other in others), none
        )
        return chosen[name] & (earlier == 0) & (present > 0)

    return {
        # A map that a view did not get is an identity: it may stand on either side of the blur.
        "blurred_after": sum(((rank[name] < rank["blur"]).long() for name in preset.motions), none),
        "contrast_of_patch": opens("contrast", MOTIONS),
        "brightness_first": rank["brightness"] < rank["gain"],
        "noise_first": opens("speckle", tuple(set(OPERATIONS) - {"speckle"})),
    }


def _radiometry(
    variant: Variant, chosen: _Masks, u: Uniforms, jitter: torch.Tensor
) -> dict[str, torch.Tensor]:
    speckle, impulse = _noise(variant, u["noise"])
    return {
        "blur": torch.where(chosen["blur"], 0.1 + 1.9 * u["blur"], 0.0),
        "contrast": torch.where(chosen["contrast"], 0.6 + 0.8 * u["contrast"], 1.0),
        "gain": torch.where(chosen["gain"][:, None], _gain(variant, u["gain"], jitter), 1.0),
        "brightness": torch.where(chosen["brightness"], 0.8 * u["brightness"] - 0.4, 0.0),
        "speckle": torch.where(chosen["speckle"], speckle, 0.0),
        "impulse": torch.where(chosen["speckle"], impulse, 0.0),
    }


def _gain(variant: Variant, u: torch.Tensor, jitter: torch.Tensor) -> torch.Tensor:
    if variant is Variant.corrected:
        # Log-uniform in [0.8, 1.25], with 3 % per band: calibration differs between bands. A
        # uniform of the same standard deviation stands for the normal: nothing hangs on tails.
        common = torch.exp((2 * u - 1) * math.log(1.25))
        return common[:, None] * torch.exp(0.03 * math.sqrt(3) * (2 * jitter - 1))
    low = 0.5 if variant is Variant.paper else -0.5
    return (low + u)[:, None].expand(jitter.shape)


def _noise(variant: Variant, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return speckle and impulse: multiplicative noise, or the salt and pepper of 2021."""
    nothing = torch.zeros_like(u)
    return (0.1 * u, nothing) if variant is Variant.corrected else (nothing, 0.02 * u)
