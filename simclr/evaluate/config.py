"""The settings of an evaluation, each value with its unit; checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field

from simclr.config import require


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """An evaluation of a run's encoder on labelled shards.

    Attributes:
        run: run folder; its newest valid checkpoint is evaluated.
        shards: folder with labelled packed patches.
        task: name of a label set in the shards: eurosat, bigearthnet19, irrigation_regular, ...
        seeds: seeds of the random split and of the random-initialised control.
        batch_size: patches per forward pass.
        neighbours: neighbours of the k-NN classifier.
        bootstrap: resamples for the 95 % intervals.
    """

    run: str = ""
    shards: str = ""
    task: str = ""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    batch_size: int = 256
    neighbours: int = 20
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        require(bool(self.seeds), "seeds is empty; give at least one, seeds=[0]")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; give 1 or more")
        require(self.neighbours >= 1, f"neighbours is {self.neighbours}; give 1 or more")
        require(self.bootstrap >= 100, f"bootstrap is {self.bootstrap}; give 100 or more")
