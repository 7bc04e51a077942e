"""A run folder comes in; a folder with its encoder and card goes out, checked before it appears."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from preprocess.bands import canonical_names
from preprocess.shards.atomic import fsync, publish, temporary_path
from simclr.checkpoint.manifest import sha256_of
from simclr.checkpoint.pretrained import load_pretrained
from simclr.choices import EncoderName, Stem
from simclr.config import ModelConfig, require
from simclr.export.card import FORMAT, FORMAT_VERSION, build_card, card_markdown
from simclr.export.config import ExportConfig
from simclr.model.encoder import build_encoder

WEIGHTS_NAME, CARD_NAME, PAGE_NAME = "encoder.safetensors", "card.json", "CARD.md"
_TOLERANCE = 1e-5

_log = logging.getLogger("simclr")


def export(config: ExportConfig) -> Path:
    """Write the encoder of a run's newest checkpoint with its card, and return the folder.

    The folder is built beside its place, loaded again and compared with the checkpoint, and only
    then renamed. An export is never overwritten: a folder that holds exactly these files is left
    as it is, any other content stops.

    Raises:
        ValueError: the run has no valid checkpoint, or the output folder holds something else.
        RuntimeError: the written encoder does not give the checkpoint's representations.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.output), "output is empty; give a folder, output=DIR")
    output = Path(config.output)
    pretrained = load_pretrained(Path(config.run), torch.device("cpu"))
    card = build_card(pretrained, Path(config.run), config.licence)
    with _folder_beside(output) as folder:
        _write(folder, pretrained.encoder, card)
        _compare(pretrained.encoder, folder, pretrained.config.data.bands, card["size_px"])
        if _holds_files(output):
            _require_equal(folder, output)
        else:
            publish(folder, output)
    _log.info("exported step %d of %s to %s", pretrained.step, config.run, output)
    return output


def load_encoder(path: str | Path, bands: Sequence[str]) -> nn.Module:
    """Load an exported encoder, in evaluation mode, for patches with these bands.

    Args:
        path: folder with encoder.safetensors and card.json.
        bands: names of the channels of the patches, in order; any known spelling.

    Returns:
        A torchvision ResNet: views (B, C, S, S) float32, normalised as the card says, to
        h (B, width).

    Raises:
        ValueError: the folder is no export, its files do not belong together, or the bands or
            their order are not the encoder's.
    """
    folder = Path(path)
    card = read_card(folder)
    _refuse_other_bands([band["name"] for band in card["bands"]], canonical_names(bands))
    if sha256_of(folder / WEIGHTS_NAME) != card["weights"]["sha256"]:
        raise ValueError(
            f"{folder / WEIGHTS_NAME} is not the file that {CARD_NAME} describes; take both from "
            "one export"
        )
    model = ModelConfig(encoder=EncoderName(card["architecture"]), stem=Stem(card["stem"]))
    encoder = build_encoder(model, len(card["bands"]))
    encoder.load_state_dict(_safetensors().load_file(folder / WEIGHTS_NAME))
    return encoder.eval().requires_grad_(False)


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of an export.

    Raises:
        ValueError: there is none, or it is of another format version.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CARD_NAME}; give the folder of an export")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = (card.get("format"), card.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path} is of {found}, this program reads {(FORMAT, FORMAT_VERSION)}")
    return card


@contextmanager
def _folder_beside(output: Path) -> Iterator[Path]:
    """Yield a new hidden folder on the output's file system, gone at the end unless renamed."""
    folder = temporary_path(output.absolute())
    shutil.rmtree(
        folder, ignore_errors=True
    )  # a killed process of the same number may have left it
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, encoder: nn.Module, card: dict[str, Any]) -> None:
    """Write weights, card and page; the card also lies inside the weights file."""
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    weights = folder / WEIGHTS_NAME
    # One key: safetensors writes several in random order. Written here and not by save_file, which
    # makes a file that nobody else may read.
    weights.write_bytes(_safetensors().save(tensors, metadata={"card": json.dumps(card)}))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    about = {"file": WEIGHTS_NAME, "sha256": sha256_of(weights), "num_parameters": num_parameters}
    card = {**card, "weights": about}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE_NAME).write_text(card_markdown(card), encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)


def _compare(encoder: nn.Module, folder: Path, bands: Sequence[str], size_px: int) -> None:
    """Load what was written, and hold its representations against the checkpoint's."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, len(bands), size_px, size_px, generator=generator)
    with torch.inference_mode():
        expected: Tensor = encoder(views)
        found: Tensor = load_encoder(folder, bands)(views)
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        worst = float((found - expected).abs().max())
        raise RuntimeError(f"the written encoder differs from the checkpoint's by {worst:.2e}")


def _holds_files(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def _require_equal(folder: Path, output: Path) -> None:
    """Stop unless the output already holds exactly the files of the folder."""
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    theirs = (
        {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
        if output.is_dir()
        else {}
    )
    if ours != theirs:
        raise ValueError(
            f"{output} exists and holds other files than this export; give another output, or "
            "remove it"
        )


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
        + "no band is made up: pretrain on the bands at hand"
    )


def _safetensors() -> ModuleType:
    """Return safetensors.torch, which only exporting and loading need."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "writing and reading weights needs safetensors: pip install safetensors"
        ) from error
    return safetensors.torch
