"""The folder of an export comes in; its encoder goes out, for patches that it was told of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from preprocess.bands import canonical_names
from preprocess.shards.checksums import sha256_of
from simclr.checks import require
from simclr.choices import EncoderName, PatchUnit, Stem
from simclr.config import ModelConfig
from simclr.export.card import FORMAT, FORMAT_VERSION
from simclr.export.inputs import Guard, with_normalisation
from simclr.model.encoder import build_encoder
from simclr.model.weights import adapt_kernel

WEIGHTS_NAME, CARD_NAME = "encoder.safetensors", "card.json"


def load_encoder(
    path: str | Path,
    bands: Sequence[str],
    *,
    unit: str = PatchUnit.normalised.value,
    source: str = "",
    size_px: int = 0,
    subset: bool = False,
) -> nn.Module:
    """Load an exported encoder, in evaluation mode, for patches of these bands, unit and size.

    What it returns refuses patches of another shape, and a first batch whose values cannot be of
    the unit.

    Args:
        path: folder with encoder.safetensors and card.json.
        bands: names of the channels of the patches, in order; any known spelling.
        unit: of the patches: ``normalised`` as the card says; ``stored``, reflectance x 10000
            without offset; ``reflectance``. The last two are normalised inside.
        source: whose statistics normalise them; empty takes the only source of the card.
        size_px: side of the patches; 0 is the size the encoder was trained on.
        subset: accept some of the bands, in any order. The kernels of the others are left out,
            and the rest multiplied by (bands trained on) / (bands given), so that an input equal
            in all bands gives the activation that it gave before.

    Returns:
        A torchvision ResNet, with the normalisation in front of it where the unit asks for that:
        patches (B, C, S, S) float32 to h (B, width).

    Raises:
        ValueError: the folder is no export, its files do not belong together, the bands or their
            order are not the encoder's, or the unit or source is unknown.
    """
    folder = Path(path)
    card = read_card(folder)
    given, kind = canonical_names(bands), _unit(unit)
    trained = [band["name"] for band in card["bands"]]
    if subset:
        _refuse_unknown_bands(trained, given)
    else:
        _refuse_other_bands(trained, given)
    require(
        not source or kind is not PatchUnit.normalised,
        f"source={source!r} needs unit='stored' or 'reflectance': normalised patches stay as "
        "they are",
    )
    module = _load(folder, card, given)
    if kind is not PatchUnit.normalised:
        module = with_normalisation(module, card, given, source, kind)
    module.register_forward_pre_hook(Guard(len(given), size_px or card["size_px"], kind))
    return module.eval().requires_grad_(False)


def read_card(path: str | Path) -> dict[str, Any]:
    """Read the card of an export.

    Raises:
        ValueError: there is none, or it is of another format version.
    """
    file = Path(path, CARD_NAME)
    if not file.is_file():
        raise ValueError(f"{path} holds no {CARD_NAME}; give the folder of an export")
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found = (card.get("format"), card.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{file} is of {found}, this program reads {(FORMAT, FORMAT_VERSION)}")
    return card


def safetensors_torch() -> ModuleType:
    """Return safetensors.torch, which only exporting and loading need."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "writing and reading weights needs safetensors: pip install safetensors"
        ) from error
    return safetensors.torch


def _load(folder: Path, card: dict[str, Any], bands: Sequence[str]) -> nn.Module:
    weights = folder / WEIGHTS_NAME
    if sha256_of(weights) != card["weights"]["sha256"]:
        raise ValueError(
            f"{weights} is not the file that {CARD_NAME} describes; take both from one export"
        )
    state = safetensors_torch().load_file(weights)
    trained = [band["name"] for band in card["bands"]]
    state["conv1.weight"] = adapt_kernel(state["conv1.weight"], bands, trained)
    model = ModelConfig(encoder=EncoderName(card["architecture"]), stem=Stem(card["stem"]))
    encoder = build_encoder(model, len(bands))
    encoder.load_state_dict(state)
    return encoder


def _unit(name: str) -> PatchUnit:
    names = [unit.value for unit in PatchUnit]
    require(name in names, f"unit is {name!r}; choose one of {', '.join(names)}")
    return PatchUnit(name)


def _refuse_other_bands(expected: list[str], given: list[str]) -> None:
    if given == expected:
        return
    if sorted(given) == sorted(expected):
        order = [given.index(band) for band in expected]
        raise ValueError(
            f"the bands are the encoder's, but in another order; reorder the channels: "
            f"patches[:, {order}]"
        )
    missing = [band for band in expected if band not in given]
    unknown = [band for band in given if band not in expected]
    raise ValueError(
        f"the encoder reads {', '.join(expected)}, in this order; "
        + (f"the patches lack {', '.join(missing)}; " if missing else "")
        + (f"leave out {', '.join(unknown)}; " if unknown else "")
        + "no band is made up: pretrain on the bands at hand, or load it with subset=True for "
        "some of its bands"
    )


def _refuse_unknown_bands(expected: list[str], given: list[str]) -> None:
    unknown = [band for band in given if band not in expected]
    require(
        bool(given) and not unknown and len(set(given)) == len(given),
        f"a subset is some of {', '.join(expected)}, each once; the patches have "
        f"{', '.join(given) or 'none'}",
    )
