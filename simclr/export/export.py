"""A run folder comes in; a folder with its encoder and card goes out, checked before it appears."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preprocess.shards.atomic import fsync, publish, temporary_path
from preprocess.shards.checksums import sha256_of
from simclr.checkpoint.pretrained import load_pretrained
from simclr.config import require
from simclr.export.card import build_card, card_markdown
from simclr.export.config import ExportConfig
from simclr.export.graph import write_formats
from simclr.export.load import CARD_NAME, WEIGHTS_NAME, load_encoder, safetensors_torch

PAGE_NAME = "CARD.md"
_TOLERANCE = 1e-5

_log = logging.getLogger("simclr")


def export(config: ExportConfig) -> Path:
    """Write the encoder of a checkpoint of a run with its card, and return the folder.

    The folder is built beside its place, loaded again and compared with the checkpoint, and only
    then renamed. An export is never overwritten: a folder that holds exactly these files is left
    as it is, any other content stops.

    Raises:
        ValueError: the run has no such checkpoint, the output folder holds something else, or
            graphs are asked for and it is not clear whose statistics they carry.
        ImportError: a package that a format needs is missing.
        RuntimeError: a written file does not give the checkpoint's representations.
    """
    require(bool(config.run), "run is empty; give a run folder, run=RUN")
    require(bool(config.output), "output is empty; give a folder, output=DIR")
    output = Path(config.output)
    pretrained = load_pretrained(Path(config.run), torch.device("cpu"), config.step)
    encoder, formats = pretrained.encoder, sorted(set(config.formats), key=lambda kind: kind.name)
    card = build_card(pretrained, Path(config.run), config.licence)
    with _folder_beside(output) as folder:
        files = write_formats(folder, encoder, card, formats, config.source)
        _write(folder, encoder, {**card, "files": files})
        _compare(encoder, folder, card)
        if _holds_files(output):
            _require_equal(folder, output)
        else:
            publish(folder, output)
    _log.info("exported step %d of %s to %s", pretrained.step, config.run, output)
    return output


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
    weights.write_bytes(safetensors_torch().save(tensors, metadata={"card": json.dumps(card)}))
    num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    about = {"file": WEIGHTS_NAME, "sha256": sha256_of(weights), "num_parameters": num_parameters}
    card = {**card, "weights": about}
    (folder / CARD_NAME).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / PAGE_NAME).write_text(card_markdown(card), encoding="utf-8")
    for path in folder.iterdir():
        fsync(path)


def _compare(encoder: nn.Module, folder: Path, card: dict[str, Any]) -> None:
    """Load what was written, and hold its representations against the checkpoint's."""
    bands, size_px = [band["name"] for band in card["bands"]], card["size_px"]
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
