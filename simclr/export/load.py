"""Load an exported encoder, and refuse patches of bands, unit, size or level it does not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from preprocess.bands import canonical_names
from preprocess.shards.format import NODATA, sha256_of
from simclr.config import EncoderName, ModelConfig, Stem, require
from simclr.data.normalisation import Normalised, mean_and_std
from simclr.export import PatchUnit
from simclr.export.card import FORMAT, FORMAT_VERSION
from simclr.model.pretrained import adapt_kernel
from simclr.model.simclr import build_encoder

_STORED_PER_REFLECTANCE = 10_000
# Bounds on the median absolute value that separate the units: views have a deviation of about 1,
# reflectances end near 1, and even water in the short-wave infrared is stored as tens.
_HIGHEST_VIEW = 50.0
_HIGHEST_REFLECTANCE = 2.0
# An offset subtracted from nodata gives -0.1; the darkest pixels of most views are far lower.
_LOWEST_REFLECTANCE = -0.2


def with_normalisation(
    encoder: nn.Module, card: dict[str, Any], bands: Sequence[str], source: str, unit: PatchUnit
) -> Normalised:
    """Return an encoder preceded by normalisation with the card's statistics of a source.

    An empty ``source`` uses the only one of the card. ``bands`` and ``unit`` are those of the
    patches.

    Raises:
        ValueError: the card has no such source, or ``source`` is empty and it has several.
    """
    tables: dict[str, dict[str, dict[str, float]]] = card["normalisation"]
    names = ", ".join(tables)
    require(
        bool(source) or len(tables) == 1,
        f"the encoder was trained on several sources; name the one whose statistics fit: {names}",
    )
    require(
        not source or source in tables, f"source is {source!r}, the card has statistics of: {names}"
    )
    scale = _STORED_PER_REFLECTANCE if unit is PatchUnit.reflectance else 1
    return Normalised(encoder, *mean_and_std(tables[source or next(iter(tables))], bands, scale))


class Guard:
    """A forward pre-hook that refuses patches of another shape, and a first batch of another unit.

    Shapes are checked in every call, since that costs nothing; values only in the first, since
    that makes the host wait for the device.
    """

    def __init__(self, num_bands: int, size_px: int, unit: PatchUnit) -> None:
        self._shape = (num_bands, size_px, size_px)
        self._unit = unit
        self._seen = False

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Check patches (B, C, S, S) before they reach the encoder.

        Raises:
            ValueError: they do not have the shape or unit that the encoder was loaded for.
        """
        patches = inputs[0]
        found = tuple(patches.shape[1:])
        num_bands, size_px = self._shape[:2]
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
        if not self._seen and not torch.compiler.is_compiling():
            check_unit(patches, self._unit)
            self._seen = True


def check_unit(patches: Tensor, unit: PatchUnit) -> None:
    """Refuse patches whose values contradict their unit.

    Values can contradict a unit but not prove it: a remaining radiometric offset is not detected.

    Args:
        patches: (B, C, S, S).
        unit: claimed unit of the values.

    Raises:
        ValueError: the values suggest another unit, or are not all finite.
    """
    values = patches[patches != NODATA]
    if not values.numel():
        return
    level, lowest = float(values.abs().median()), float(values.min())
    require(
        bool(torch.isfinite(values).all()),
        f"the patches hold NaN or infinity; set such pixels to nodata, {NODATA}",
    )
    found = f"the median is {level:.3g} and the lowest value {lowest:.3g}"
    name, fits, fix = {
        PatchUnit.normalised: (
            "normalised",
            level <= _HIGHEST_VIEW,
            "normalise them as the card says, or load the encoder with unit='stored'",
        ),
        PatchUnit.stored: (
            f"reflectance x {_STORED_PER_REFLECTANCE}",
            level > _HIGHEST_REFLECTANCE and lowest >= 0,
            "load the encoder with unit='reflectance' or unit='normalised'",
        ),
        PatchUnit.reflectance: (
            "reflectance",
            level <= _HIGHEST_REFLECTANCE and lowest >= _LOWEST_REFLECTANCE,
            "load the encoder with unit='stored' or unit='normalised'",
        ),
    }[unit]
    require(fits, f"the patches are said to be {name}, but {found}: {fix}")


WEIGHTS_NAME, CARD_NAME = "encoder.safetensors", "card.json"


def load_encoder(  # noqa: PLR0913 - properties of the patches
    path: str | Path,
    bands: Sequence[str],
    *,
    unit: str = PatchUnit.normalised.value,
    source: str = "",
    size_px: int = 0,
    subset: bool = False,
    processing_level: str = "",
) -> nn.Module:
    """Load an exported encoder, in evaluation mode, for patches of these bands, unit and size.

    The returned module refuses patches of another shape, and a first batch whose values contradict
    the unit.

    Args:
        path: folder with encoder.safetensors and card.json.
        bands: channel names of the patches, in order, in any known spelling.
        unit: unit of the patches: ``normalised`` as the card describes; ``stored``, reflectance x
            10000 without offset; ``reflectance``. The last two are normalised by the module.
        source: source whose statistics normalise them; empty uses the only one of the card.
        size_px: side of the patches; 0 is the size the encoder was trained on.
        subset: accept a subset of the bands, in any order. The kernels of the others are dropped,
            and the rest scaled by (bands trained on) / (bands given), so that an input equal in
            all bands gives the same activation as before.
        processing_level: level of the patches, ``L1C`` (top of the atmosphere) or ``L2A``
            (surface); empty if unknown, which skips the comparison with the card.

    Returns:
        A torchvision ResNet, preceded by the normalisation if the unit requires it: patches
        (B, C, S, S) float32 to h (B, width).

    Raises:
        ValueError: the folder is no export, its files do not belong together, the bands, their
            order or processing level are not the encoder's, or the unit or source is unknown.
    """
    folder = Path(path)
    card = read_card(folder)
    given, units = canonical_names(bands), [one.value for one in PatchUnit]
    require(unit in units, f"unit is {unit!r}; choose one of {', '.join(units)}")
    kind, trained = PatchUnit(unit), [band["name"] for band in card["bands"]]
    _refuse_other_bands(trained, given, subset=subset)
    require(
        not source or kind is not PatchUnit.normalised,
        f"source={source!r} needs unit='stored' or 'reflectance': normalised patches stay as "
        "they are",
    )
    _refuse_other_level(card, processing_level)
    weights = folder / WEIGHTS_NAME
    require(
        sha256_of(weights) == card["weights"]["sha256"],
        f"{weights} is not the file that {CARD_NAME} describes; take both from one export",
    )
    state = load_file(weights)
    state["conv1.weight"] = adapt_kernel(state["conv1.weight"], given, trained)
    model = ModelConfig(encoder=EncoderName(card["architecture"]), stem=Stem(card["stem"]))
    module: nn.Module = build_encoder(model, len(given))
    module.load_state_dict(state)
    if kind is not PatchUnit.normalised:
        module = with_normalisation(module, card, given, source, kind)
    module.register_forward_pre_hook(Guard(len(given), size_px or card["size_px"], kind))
    return module.eval().requires_grad_(False)


def read_card(path: str | Path) -> dict[str, Any]:
    """Read the card of an export.

    Raises:
        ValueError: there is none, or it has another format or format version.
    """
    file = Path(path, CARD_NAME)
    if not file.is_file():
        raise ValueError(f"{path} holds no {CARD_NAME}; give the folder of an export")
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found = (card.get("format"), card.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{file} is of {found}, this program reads {(FORMAT, FORMAT_VERSION)}")
    return card


def _refuse_other_level(card: dict[str, Any], given: str) -> None:
    trained = sorted({level for level in card["processing_level"].values() if level})
    require(
        given in ("", "L1C", "L2A"),
        f"processing_level is {given!r}; give L1C, L2A, or leave it out",
    )
    require(
        not given or not trained or given in trained,
        f"the patches are {given}, the encoder was trained on {', '.join(trained)}: reflectances "
        "of the two differ by the atmosphere; give patches of that level, or pretrain on this one",
    )


def _refuse_other_bands(expected: list[str], given: list[str], *, subset: bool) -> None:
    unknown = [band for band in given if band not in expected]
    if subset:
        require(
            bool(given) and not unknown and len(set(given)) == len(given),
            f"a subset is some of {', '.join(expected)}, each once; the patches have "
            f"{', '.join(given) or 'none'}",
        )
        return
    order = [given.index(band) for band in expected if band in given]
    require(
        given == expected or sorted(given) != sorted(expected),
        f"the bands are the encoder's, but in another order; reorder the channels: "
        f"patches[:, {order}]",
    )
    missing = [band for band in expected if band not in given]
    require(
        given == expected,
        f"the encoder reads {', '.join(expected)}, in this order; "
        + (f"the patches lack {', '.join(missing)}; " if missing else "")
        + (f"leave out {', '.join(unknown)}; " if unknown else "")
        + "missing bands are never invented: pretrain on the bands you have, or load it with "
        "subset=True for some of its bands",
    )
