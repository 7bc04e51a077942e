"""What an encoder expects of its patches: a module that normalises, and a guard that refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from preprocess.shards.layout import NODATA
from simclr.checks import require
from simclr.choices import PatchUnit

_STORED_PER_REFLECTANCE = 10_000
# Medians of absolute values that no patch of the other unit reaches: views have a deviation of
# about 1, reflectances end near 1, and water in the short-wave infrared is still stored as tens.
_HIGHEST_VIEW = 50.0
_HIGHEST_REFLECTANCE = 2.0


class Normalised(nn.Module):
    """An encoder with the normalisation of one source in front of it.

    Args:
        encoder: views (B, C, S, S) to h (B, width).
        mean: of each band (C,), in the unit of the patches.
        std: of each band (C,), in the unit of the patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Return h (B, width) of patches (B, C, S, S) float32; nodata counts as the mean."""
        views = torch.where(patches == NODATA, 0.0, (patches - self.mean) / self.std)
        h: Tensor = self.encoder(views)
        return h


def with_normalisation(
    encoder: nn.Module, card: dict[str, Any], bands: Sequence[str], source: str, unit: PatchUnit
) -> Normalised:
    """Put the statistics that a card has of a source before an encoder.

    Args:
        encoder: of that card.
        card: of an export.
        bands: channels of the patches.
        source: whose statistics; empty takes the only one.
        unit: of the patches.

    Raises:
        ValueError: the card has no such source, or several to choose from.
    """
    table = _statistics(card, source)
    scale = _STORED_PER_REFLECTANCE if unit is PatchUnit.reflectance else 1
    mean, std = (
        torch.tensor([table[band][key] / scale for band in bands]) for key in ("mean", "std")
    )
    return Normalised(encoder, mean, std)


def _statistics(card: dict[str, Any], source: str) -> dict[str, dict[str, float]]:
    tables: dict[str, dict[str, dict[str, float]]] = card["normalisation"]
    names = ", ".join(tables)
    require(
        bool(source) or len(tables) == 1,
        f"the encoder was trained on several sources; name the one whose statistics fit: {names}",
    )
    require(
        not source or source in tables,
        f"source is {source!r}, the card has statistics of: {names}",
    )
    return tables[source or next(iter(tables))]


class Guard:
    """A forward hook that refuses patches of another shape, and a first batch of another unit.

    Shapes are looked at in every call, as that costs nothing; values only in the first, as that
    makes the host wait for the device.
    """

    def __init__(self, num_bands: int, size_px: int, unit: PatchUnit) -> None:
        self._shape = (num_bands, size_px, size_px)
        self._unit = unit
        self._seen = False

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Check patches (B, C, S, S) before they reach the encoder.

        Raises:
            ValueError: they are not what the encoder was loaded for.
        """
        self._check_shape(inputs[0])
        if not self._seen and not torch.compiler.is_compiling():
            check_unit(inputs[0], self._unit)
            self._seen = True

    def _check_shape(self, patches: Tensor) -> None:
        found = tuple(patches.shape[1:])
        num_bands, size_px, _ = self._shape
        require(
            len(found) == 3 and found[0] == num_bands,
            f"the patches have the shape {tuple(patches.shape)}, the encoder reads "
            f"(batch, {num_bands}, {size_px}, {size_px})",
        )
        require(
            found == self._shape,
            f"the patches are {found[1]} x {found[2]} px, the encoder expects {size_px} x "
            f"{size_px}: resample them over the same ground, or load it with size_px={found[2]} "
            "if their pixels are as large as those it was trained on",
        )


def check_unit(patches: Tensor, unit: PatchUnit) -> None:
    """Refuse patches whose values cannot be of a unit.

    Values can contradict a unit and not prove one: a radiometric offset left in is not seen here.

    Args:
        patches: (B, C, S, S).
        unit: that they are said to be in.

    Raises:
        ValueError: they look like another unit, or hold values that are not finite.
    """
    values = patches[patches != NODATA]
    if not values.numel():
        return
    level, lowest = float(values.abs().median()), float(values.min())
    require(
        bool(torch.isfinite(values).all()),
        f"the patches hold NaN or infinity; set such pixels to nodata, {NODATA}",
    )
    require(
        unit is not PatchUnit.normalised or level <= _HIGHEST_VIEW,
        f"the patches are said to be normalised, but half of their values are beyond {level:.0f}: "
        "normalise them as the card says, or load the encoder with unit='stored'",
    )
    require(
        unit is not PatchUnit.stored or (level > _HIGHEST_REFLECTANCE and lowest >= 0),
        f"the patches are said to be reflectance x {_STORED_PER_REFLECTANCE}, but the median is "
        f"{level:.3g} and the lowest value {lowest:.3g}: load the encoder with "
        "unit='reflectance' or unit='normalised'",
    )
    require(
        unit is not PatchUnit.reflectance or level <= _HIGHEST_REFLECTANCE,
        f"the patches are said to be reflectance, but the median is {level:.3g}: divide them by "
        f"{_STORED_PER_REFLECTANCE}, or load the encoder with unit='stored'",
    )
