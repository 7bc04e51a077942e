"""The settings of an inspection: what a person wants to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from simclr.config import AugmentConfig, require


class What(Enum):
    """``shards``: what was packed; ``augment``: what training makes of it."""

    shards = "shards"
    augment = "augment"


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    """Pictures of packed patches, or of the views that are made of them.

    Attributes:
        what: shards or augment.
        shards: packed folder.
        output: folder for pictures and page; empty takes ``SHARDS/inspection``.
        patches: how many patches are shown, evenly spread over the shards.
        seed: of the operations, for augment.
        augment: for augment: its preset is shown beside each single operation.
    """

    what: What = What.shards
    shards: str = ""
    output: str = ""
    patches: int = 24
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require(1 <= self.patches <= 400, f"patches is {self.patches}; give 1 to 400")
