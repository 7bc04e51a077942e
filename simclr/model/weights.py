"""A file of encoder weights comes in, the encoder that starts from them goes out.

The first layer follows the bands by one rule. A kernel of the file belongs to a band if
``weights_bands`` says so; every other band takes the mean kernel of the file. All of them are
multiplied by (bands of the file) / (bands of the run), so that an input equal in all bands gives
the activation that it gave before. A file with the run's own bands in the same order is taken as
it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simclr.config import require

_FIRST = "conv1.weight"
_INSIDE = ("encoder", "state_dict", "model")  # keys under which files keep the weights


def start_from(
    encoder: nn.Module, path: Path, bands: Sequence[str], weights_bands: Sequence[str]
) -> None:
    """Load weights into a torchvision ResNet without a classifier.

    Args:
        encoder: takes the weights.
        path: .safetensors, or a .pt that holds tensors under torchvision's names, bare or under
            ``encoder``, ``state_dict`` or ``model``; ``module.`` before a name and ``fc.`` are
            dropped.
        bands: input channels of the encoder.
        weights_bands: input channels of the file; empty if unknown.

    Raises:
        ValueError: the file is no such file, or of another architecture.
    """
    state = _read(path)
    require(_FIRST in state, f"model.weights {path} has no {_FIRST}; give a ResNet's weights")
    wanted = encoder.state_dict()
    kernel = state[_FIRST]
    require(
        kernel.shape[2:] == wanted[_FIRST].shape[2:],
        f"model.weights {path} has a first layer of {_size(kernel)}, model.stem asks for "
        f"{_size(wanted[_FIRST])}; take the other model.stem",
    )
    state[_FIRST] = adapt_kernel(kernel, bands, weights_bands)
    # A count of batches that only averaging BatchNorms use; older files lack it.
    counts = {name: value for name, value in wanted.items() if name.endswith("batches_tracked")}
    _require_equal_shapes(path, state, wanted, set(counts))
    encoder.load_state_dict({**counts, **state})


def adapt_kernel(
    kernel: torch.Tensor, bands: Sequence[str], weights_bands: Sequence[str]
) -> torch.Tensor:
    """Return a first layer (F, len(bands), k, k) from one of other bands (F, C, k, k).

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


def _read(path: Path) -> dict[str, torch.Tensor]:
    require(path.is_file(), f"model.weights {path} is not a file")
    content = _content(path)
    require(isinstance(content, Mapping), f"model.weights {path} holds no weights by name")
    for name in _INSIDE:
        if isinstance(content.get(name), Mapping):
            content = content[name]
    named = {name.removeprefix("module."): value for name, value in content.items()}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, torch.Tensor) and not name.startswith("fc.")
    }


def _content(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # an extra that only such files need

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch has no class of its own for this, and words of many lines
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"model.weights {path} cannot be read; give a .safetensors, or a .pt that holds "
            "nothing but tensors"
        ) from error


def _require_equal_shapes(
    path: Path,
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    optional: set[str],
) -> None:
    missing = sorted(wanted.keys() - state.keys() - optional)
    unknown = sorted(state.keys() - wanted.keys())
    shared = sorted(state.keys() & wanted.keys())
    other = [name for name in shared if state[name].shape != wanted[name].shape]
    for what, names in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has another shape of", other),
    ):
        require(
            not names,
            f"model.weights {path} {what} {', '.join(names[:3])} ({len(names)} in all); set "
            "model.encoder to the network of the file",
        )


def _size(kernel: torch.Tensor) -> str:
    return f"{kernel.shape[2]}x{kernel.shape[3]}"
