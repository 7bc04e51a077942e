"""The runs of a study come in; what they will cost, told before anything starts, goes out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import ClusterConfig
from jobs.done import is_done
from jobs.studies.arms import Member
from jobs.studies.config import StudyConfig
from jobs.studies.length import count_patches, most_steps
from jobs.tasks.pretraining import Pretrain
from simclr.config import require
from simclr.metrics import METRICS_NAME, read_metrics


@dataclass(frozen=True, slots=True)
class Budget:
    """What the runs that are left will take.

    Attributes:
        runs: how many are left.
        pairs: patches that they train on, each seen twice.
        rate: pairs a second of one job.
        measured: whether runs of this study have shown the rate; else it is ``expected_rate``.
        hours: of one device, over all runs.
    """

    runs: int
    pairs: int
    rate: float
    measured: bool
    hours: float

    def __str__(self) -> str:
        """Say it in a line."""
        known = "measured" if self.measured else "expected_rate; a first run will measure it"
        return (
            f"{self.runs} runs of {self.pairs:,} pairs together are left: about {self.hours:.2g} "
            f"device hours at {self.rate:,.0f} pairs/s ({known})"
        )


def budget(config: StudyConfig, members: Sequence[Member], cluster: ClusterConfig) -> Budget:
    """Return what is left to pay of some runs of a study."""
    left = [member.run for member in members if not is_done(Pretrain(member.run))]
    patches = count_patches(config.shards)
    pairs = sum(most_steps(run, patches) * run.data.global_batch_size for run in left)
    shown = _rates(members)
    rate = statistics.median(shown) if shown else config.expected_rate
    hours = pairs / rate / 3600 * cluster.num_ranks
    return Budget(len(left), pairs, rate, bool(shown), hours)


def check_budget(config: StudyConfig, cost: Budget) -> None:
    """Ask before a study costs more than ``max_hours``.

    Raises:
        ValueError: it would; the message names the ways out.
    """
    require(
        cost.hours <= config.max_hours,
        f"{cost}; more than max_hours={config.max_hours:g}. If that is wanted, say "
        f"max_hours={cost.hours * 1.1:.2g}; cheaper are fewer arms=[...], seeds=[...], "
        "data.fraction or halving=true",
    )


def _rates(members: Sequence[Member]) -> list[float]:
    """Return the pairs a second of each run at its latest record; the first ones warm up."""
    paths = [Path(member.run.run_dir, METRICS_NAME) for member in members]
    records = [read_metrics(path) for path in paths if path.is_file()]
    return [float(lines[-1]["patches_per_s"]) for lines in records if lines]
