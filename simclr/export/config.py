"""The settings of an export."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """An export of a run's encoder.

    Attributes:
        run: run folder; its newest valid checkpoint is exported.
        output: folder for encoder.safetensors, card.json and CARD.md.
        licence: licence of the weights, written into the card.
    """

    run: str = ""
    output: str = ""
    licence: str = "unspecified"
