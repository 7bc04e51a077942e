"""Export a pretrained encoder with its card, and load it again.

The settings are defined here, without importing torch, for commands that only submit jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from simclr.config import parse_choices


class ExportFormat(Enum):
    """Additional files: graphs with built-in normalisation, or a torch file for hub loaders."""

    onnx = "onnx"
    pt2 = "pt2"
    pth = "pth"


class PatchUnit(Enum):
    """Unit of patch values: normalised for the encoder; reflectance x 10000; reflectance."""

    normalised = "normalised"
    stored = "stored"
    reflectance = "reflectance"


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """An export of a run's encoder.

    Attributes:
        run: run folder.
        output: folder for encoder.safetensors, card.json and CARD.md.
        step: of the checkpoint that is exported; 0 takes the newest valid one.
        formats: further files: ``onnx`` and ``pt2`` (torch.export) are graphs with the
            normalisation inside, ``pth`` holds the weights for loaders of torch
            files, in a file named by its checksum.
        source: whose statistics the graphs carry; empty takes the only source of the run.
        licence: licence of the weights, written into the card.
    """

    run: str = ""
    output: str = ""
    step: int = 0
    formats: list[ExportFormat] = field(default_factory=list)
    source: str = ""
    licence: str = "unspecified"

    def __post_init__(self) -> None:
        parse_choices(self)
