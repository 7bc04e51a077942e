"""ResNet weights with torchvision's names come in; an encoder in evaluation mode goes out."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from simclr.config import EncoderName, ModelConfig, Stem
from simclr.model.simclr import build_encoder

_RGB = ("B04", "B03", "B02")
_PREFIXES = ("module.", "encoder.", "backbone.", "model.", "resnet.")
# blocks of the four stages, and convolutions of a block
_ARCHITECTURES: dict[tuple[tuple[int, ...], int], EncoderName] = {
    ((2, 2, 2, 2), 2): EncoderName.resnet18,
    ((3, 4, 6, 3), 2): EncoderName.resnet34,
    ((3, 4, 6, 3), 3): EncoderName.resnet50,
    ((3, 4, 23, 3), 3): EncoderName.resnet101,
    ((3, 8, 36, 3), 3): EncoderName.resnet152,
}


class SomeBands(nn.Module):
    """An encoder that sees only some channels of a view."""

    def __init__(self, encoder: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = list(channels)

    def forward(self, views: Tensor) -> Tensor:
        """Return h (B, width) of views (B, C, S, S)."""
        seen: Tensor = self.encoder(views[:, self.channels])
        return seen

    def get_submodule(self, target: str) -> nn.Module:
        """Name the parts as the encoder does."""
        return self.encoder.get_submodule(target) if target else self


def load_weights(path: Path, bands: Sequence[str], device: torch.device) -> nn.Module:
    """Load a ResNet of torchvision's names; timm's and torchgeo's are the same.

    Args:
        path: .safetensors, .pt or .pth; or the folder of an export.
        bands: of the views that it shall embed.
        device: where it goes.

    Raises:
        ValueError: there is no such file, it holds no ResNet, or it reads another number of
            bands. Weights for three bands are taken to be for B04, B03, B02.
    """
    file = path / "encoder.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} is no run folder, export or file of weights")
    state = _stripped(_read(file, device))
    model = ModelConfig(encoder=_architecture(file, state), stem=_stem(state))
    num_bands = int(state["conv1.weight"].shape[1])
    encoder = build_encoder(model, num_bands)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(f"{file} does not fit: lacks {missing[:3]}, has besides {unexpected[:3]}")
    encoder.to(device).eval().requires_grad_(False)
    if num_bands == len(bands):
        return encoder
    if num_bands == len(_RGB) and set(_RGB) <= set(bands):
        chosen = SomeBands(encoder, [list(bands).index(band) for band in _RGB])
        return chosen.eval().requires_grad_(False)
    raise ValueError(f"{file} reads {num_bands} bands, the run {len(bands)}: {', '.join(bands)}")


def _read(file: Path, device: torch.device) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"reading {file} needs safetensors: pip install safetensors"
            ) from error
        loaded: Mapping[str, Tensor] = load_file(file, device=str(device))
        return loaded
    try:
        data = torch.load(file, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{file} is no file of weights that can be read safely") from error
    for key in ("state_dict", "model", "encoder"):
        data = data[key] if isinstance(data.get(key), Mapping) else data
    tensors: Mapping[str, Tensor] = data
    return tensors


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without wrappers' prefixes and without the classifier."""
    plain = {}
    for name, tensor in state.items():
        short = name
        while prefix := next((one for one in _PREFIXES if short.startswith(one)), ""):
            short = short.removeprefix(prefix)
        if not short.startswith("fc."):
            plain[short] = tensor
    return plain


def _architecture(file: Path, state: Mapping[str, Tensor]) -> EncoderName:
    stages = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    found = _ARCHITECTURES.get((stages, convolutions))
    if found is None or "conv1.weight" not in state:
        raise ValueError(
            f"{file} holds no ResNet-18, 34, 50, 101 or 152 with torchvision's names; its first "
            f"names are {', '.join(list(state)[:3])}"
        )
    return found


def _stem(state: Mapping[str, Tensor]) -> Stem:
    return Stem.small if state["conv1.weight"].shape[-1] == 3 else Stem.standard
