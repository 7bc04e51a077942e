"""The settings of the held-out monitors; checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from simclr.checks import require


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    """A labelled task on which the encoder is probed while it trains; it decides no weight.

    Attributes:
        shards: folder with labelled packed patches, held out from training; empty: no probing.
        task: name of a label set in those shards: eurosat, bigearthnet19, ...
        every_steps: steps between probes; the last step is always probed.
        max_samples: labelled patches used at most, the same ones every time.
        neighbours: neighbours of the k-NN classifier.
    """

    shards: str = ""
    task: str = ""
    every_steps: int = 500
    max_samples: int = 4000
    neighbours: int = 20

    def __post_init__(self) -> None:
        require(
            bool(self.shards) == bool(self.task),
            f"monitor.shards is {self.shards!r} and monitor.task is {self.task!r}; give both or "
            "neither",
        )
        require(self.every_steps >= 1, f"monitor.every_steps is {self.every_steps}; give >= 1")
        require(
            self.max_samples >= 10,
            f"monitor.max_samples is {self.max_samples}; a probe needs at least 10",
        )
        require(self.neighbours >= 1, f"monitor.neighbours is {self.neighbours}; give 1 or more")
