"""Pretrained encoders from a run's checkpoint, or from a weights file with torchvision's names.

``load_pretrained`` is for evaluation and export, ``load_encoder_file`` loads other encoders for an
evaluation, ``start_from`` initialises a pretraining. ``simclr.export.load`` loads an export.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simclr.checkpoint.manager import load_state, newest_valid
from simclr.checkpoint.manifest import (
    CHECKPOINTS,
    FOLDER_PATTERN,
    CheckpointManifest,
    folder_name,
    read_checkpoint_manifest,
    step_of,
    verify,
)
from simclr.config import EncoderName, ModelConfig, Stem, TrainConfig, from_plain, require
from simclr.model.simclr import build_encoder

_FIRST = "conv1.weight"
_RGB = ("B04", "B03", "B02")
_CONTAINERS = ("state_dict", "model", "encoder")  # keys under which files store the weights
_PREFIXES = re.compile(r"^((module|encoder|backbone|model|resnet)\.)+")  # added by wrappers
# blocks per stage, and convolutions per block
_ARCHITECTURES: dict[tuple[tuple[int, ...], int], EncoderName] = {
    ((2, 2, 2, 2), 2): EncoderName.resnet18,
    ((3, 4, 6, 3), 2): EncoderName.resnet34,
    ((3, 4, 6, 3), 3): EncoderName.resnet50,
    ((3, 4, 23, 3), 3): EncoderName.resnet101,
    ((3, 8, 36, 3), 3): EncoderName.resnet152,
}

_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class Pretrained:
    """An encoder in evaluation mode, with its origin."""

    encoder: nn.Module  # views (B, C, S, S) to h (B, width)
    config: TrainConfig  # settings of the run
    checkpoint: Path  # folder it was loaded from
    manifest: CheckpointManifest  # manifest of that checkpoint

    @property
    def step(self) -> int:
        """Number of training steps of these weights."""
        return self.manifest.step

    @property
    def normalisation(self) -> dict[str, dict[str, dict[str, float]]]:
        """Mean and std per source and band, in stored values."""
        table: dict[str, dict[str, dict[str, float]]] = self.manifest.dataset["normalisation"]
        return table

    @property
    def dataset(self) -> dict[str, Any]:
        """Origin of the training patches, as in the manifest."""
        return self.manifest.dataset

    @property
    def view_size_px(self) -> int:
        """Side of the views the encoder was trained on."""
        return int(self.manifest.dataset["view_size_px"])


def load_pretrained(run_dir: Path, device: torch.device, step: int = 0) -> Pretrained:
    """Load the encoder of the checkpoint at a step; 0 loads the newest valid one.

    Raises:
        ValueError: the folder has no such checkpoint, or it is damaged.
    """
    if step:
        folder = run_dir / CHECKPOINTS / folder_name(step)
        if not folder.is_dir():
            there = ", ".join(map(str, saved_steps(run_dir))) or "none"
            raise ValueError(f"{run_dir} has no checkpoint of step {step}; there are: {there}")
        verify(folder)
    elif newest := newest_valid(run_dir):
        folder = newest
    else:
        raise ValueError(f"{run_dir} holds no checkpoint; pretrain first, or correct run=")
    manifest = read_checkpoint_manifest(folder)
    config = from_plain(TrainConfig, manifest.config)
    encoder = build_encoder(config.model, len(config.data.bands))
    encoder.load_state_dict(load_state(folder, device)["encoder"])
    encoder.to(device).eval().requires_grad_(False)
    return Pretrained(encoder, config, folder, manifest)


def saved_steps(run_dir: Path) -> list[int]:
    """Return the steps of all checkpoints of a run, valid or not, in ascending order."""
    return sorted(map(step_of, (run_dir / CHECKPOINTS).glob(FOLDER_PATTERN)))


class BandSubset(nn.Module):
    """An encoder that uses only some channels of a view."""

    def __init__(self, encoder: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = list(channels)

    def forward(self, views: Tensor) -> Tensor:
        """Return h (B, width) of views (B, C, S, S)."""
        h: Tensor = self.encoder(views[:, self.channels])
        return h

    def get_submodule(self, target: str) -> nn.Module:
        """Return a submodule by its name in the encoder."""
        return self.encoder.get_submodule(target) if target else self


def start_from(
    encoder: nn.Module, path: Path, bands: Sequence[str], weights_bands: Sequence[str]
) -> None:
    """Initialise a torchvision ResNet without classifier from a file, adapted to ``bands``.

    ``path`` is a .safetensors file, or a torch file of nothing but tensors; ``weights_bands`` are
    its input channels. If empty, they are unknown unless the file is an export, which states them.

    Raises:
        ValueError: the file cannot be read, or has another architecture.
    """
    name = f"model.weights {path}"
    state = _read(path, name)
    require(_FIRST in state, f"{name} has no {_FIRST}; give a ResNet's weights")
    wanted, kernel = encoder.state_dict(), state[_FIRST]
    weights_bands = weights_bands or _bands_in(path)
    size, wanted_size = ("x".join(map(str, one.shape[2:])) for one in (kernel, wanted[_FIRST]))
    require(
        size == wanted_size,
        f"{name} has a first layer of {size}, model.stem asks for {wanted_size}; take the other "
        "model.stem",
    )
    if not weights_bands and kernel.shape[1] != len(bands):
        text = (
            "%s reads %d bands of unknown names, the run %d: every band starts from their mean "
            "kernel; name them with model.weights_bands to keep kernels of equal bands"
        )
        _log.warning(text, name, kernel.shape[1], len(bands))
    state[_FIRST] = adapt_kernel(kernel, bands, weights_bands)
    _load(encoder, state, name, "set model.encoder to the network of the file")


def load_encoder_file(path: Path, bands: Sequence[str], device: torch.device) -> nn.Module:
    """Build the ResNet of a weights file, in evaluation mode; timm's and torchgeo's work too.

    ``path`` is a .safetensors, .pt or .pth file, or the folder of an export. The encoder maps views
    (B, C, S, S) float32 of ``bands`` to h (B, width).

    Raises:
        ValueError: the file does not exist, contains no ResNet, or reads a band that the views
            lack. An export states its bands; of others, weights for three bands are assumed to be
            for B04, B03, B02 if the views have them, and all else for exactly ``bands``.
    """
    file = path / "encoder.safetensors" if path.is_dir() else path
    require(file.is_file(), f"{path} is not a run folder, export or file of weights")
    state = _read(file, str(file))
    stem = Stem.small if _FIRST in state and state[_FIRST].shape[-1] == 3 else Stem.standard
    model = ModelConfig(encoder=_architecture(file, state), stem=stem)
    num_bands = int(state[_FIRST].shape[1])
    encoder = build_encoder(model, num_bands)
    _load(encoder, state, str(file), "give weights of a plain ResNet")
    encoder.to(device).eval().requires_grad_(False)
    assumed = _RGB if num_bands == len(_RGB) and set(_RGB) <= set(bands) else bands
    read = _bands_in(file) or list(assumed)
    require(
        num_bands == len(read) and set(read) <= set(bands),
        f"{file} reads {', '.join(_bands_in(file)) or f'{num_bands} bands'}, the run "
        f"{len(bands)}: {', '.join(bands)}",
    )
    if read == list(bands):
        return encoder
    return BandSubset(encoder, [list(bands).index(band) for band in read]).eval()


def adapt_kernel(kernel: Tensor, bands: Sequence[str], weights_bands: Sequence[str]) -> Tensor:
    """Adapt the kernel of a first layer (F, C, k, k) to other bands: (F, len(bands), k, k).

    If the bands of the file are known, shared bands keep their kernels; all others get the mean
    kernel. All are scaled by (bands of the file) / (bands wanted), so that an input equal in all
    bands gives the same activation as before.

    Raises:
        ValueError: ``weights_bands`` does not name every channel of the kernel.
    """
    num = kernel.shape[1]
    require(
        not weights_bands or len(weights_bands) == num,
        f"model.weights_bands names {len(weights_bands)} bands, the file's first layer has {num}",
    )
    if list(weights_bands) == list(bands) or (not weights_bands and num == len(bands)):
        return kernel
    own = dict(zip(weights_bands, kernel.unbind(1), strict=False))
    mean = kernel.mean(1)
    return torch.stack([own.get(band, mean) for band in bands], dim=1) * (num / len(bands))


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without wrapper prefixes and without ``fc``."""
    require(path.is_file(), f"{name} is not a file")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content: object
    try:
        is_plain = path.suffix == ".safetensors"
        content = load_file(path) if is_plain else torch.load(path, "cpu", weights_only=True)
    # torch has no specific class for this, and its messages have many lines
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{name} cannot be read; give a .safetensors, or a .pt that holds nothing but tensors"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds no weights by name")
    for key in _CONTAINERS:
        content = content[key] if isinstance(content.get(key), Mapping) else content
    state = {}
    for full, tensor in content.items():
        short = _PREFIXES.sub("", full)
        if isinstance(tensor, Tensor) and not short.startswith("fc."):
            state[short] = tensor
    return state


def _bands_in(file: Path) -> list[str]:
    """Return the input channels that an export's weights state; empty if the file states none."""
    if file.suffix != ".safetensors":
        return []
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        card = json.loads((content.metadata() or {}).get("card", "{}"))
    return [band["name"] for band in card.get("bands", ())]


def _load(encoder: nn.Module, state: Mapping[str, Tensor], name: str, fix: str) -> None:
    wanted = encoder.state_dict()
    # Batch counts are used only by BatchNorm without momentum; older files lack them.
    counts = {key: value for key, value in wanted.items() if key.endswith("batches_tracked")}
    found = {**counts, **state}
    other = sorted(key for key in wanted.keys() & found if wanted[key].shape != found[key].shape)
    for what, names in (
        ("lacks", sorted(wanted.keys() - found.keys())),
        ("has unknown", sorted(found.keys() - wanted.keys())),
        ("has another shape of", other),
    ):
        shown = ", ".join(names[:3])
        require(not names, f"{name} {what} {shown} ({len(names)} in all); {fix}")
    encoder.load_state_dict(found)


def _architecture(file: Path, state: Mapping[str, Tensor]) -> EncoderName:
    stages = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    found = _ARCHITECTURES.get((stages, convolutions))
    if found is None or _FIRST not in state:
        raise ValueError(
            f"{file} holds no ResNet-18, 34, 50, 101 or 152 with torchvision's names; its first "
            f"names are {', '.join(list(state)[:3])}"
        )
    return found
