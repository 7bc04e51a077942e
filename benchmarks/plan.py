"""Resource needs of a run, from its recipe, measured constants and assumed inputs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from constants import LOADED, MEASURED, OPENED, PATCH, SAVE, SENT, STATE, gathered_bytes, ring_bytes
from hydra import compose, initialize_config_module
from interruptions import Habits
from report import RESULTS
from startup import RESUMED, WHOLE

from jobs.cli.schema import register, to_settings
from jobs.commands.pretrain import Pretrain
from simclr.config import Precision, TrainConfig
from simclr.model.simclr import SimCLR

NUM_BANDS = 12


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was not measured here; give your own.

    Attributes:
        pairs_per_s: what one GPU trains: `patches_per_s` of metrics.jsonl on one rank.
        node_gb_s: between the GPUs of a node, for each.
        network_gb_s: between nodes, for each GPU; this is 400 Gbit/s for a node of eight.
        gpus_per_node: GPUs of a node.
        file_system_gb_s: what the shared file system gives to this job.
        gpu_days_between_failures: of hardware and system; Llama 3 (2024, table 5) met 419 in 54
            days on 16,384 GPUs.
        kills_a_day: of the whole job, for any other reason.
        stops_a_day: preemptions and time limits, announced.
        unnoticed_s: until a lost rank or node is noticed.
        price: of an hour of one GPU, in your currency.
    """

    pairs_per_s: float = 5000
    node_gb_s: float = 200
    network_gb_s: float = 6.25
    gpus_per_node: float = 8
    file_system_gb_s: float = 10
    gpu_days_between_failures: float = 2112
    kills_a_day: float = 1
    stops_a_day: float = 4
    unnoticed_s: float = 120
    price: float = 2


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants measured by ``constants.py`` and ``startup.py``."""

    patch_bytes: float
    save_mib_s: float
    state_share: dict[str, float]
    sent: float
    files: float
    loaded_mb: float
    start_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A run on a number of GPUs, with its settings and the cost of a step."""

    gpus: int
    config: TrainConfig
    weights: int
    inputs: Inputs
    known: Constants

    @property
    def pairs(self) -> int:
        """Pairs per GPU and step."""
        return self.config.data.global_batch_size // self.gpus

    @property
    def gradient_bytes(self) -> float:
        """Bytes of gradients sent by each GPU per step, in a ring."""
        half = self.config.gradient_precision is Precision.bfloat16
        return ring_bytes(self.gpus, self.weights * (2 if half else 4))

    @property
    def gathered_bytes(self) -> float:
        """Bytes sent by each GPU per step for the loss."""
        return gathered_bytes(self.gpus, self.pairs, self.config.model.projection_size)

    @property
    def compute_s(self) -> float:
        """Compute time of a step, assuming the same time per pair at all batch sizes."""
        return self.pairs / self.inputs.pairs_per_s

    @property
    def network_s(self) -> float:
        """Network time of a step, assuming no overlap with computation."""
        one_node = self.gpus <= self.inputs.gpus_per_node
        rate = self.inputs.node_gb_s if one_node else self.inputs.network_gb_s
        return (self.gradient_bytes + self.gathered_bytes) / (rate * 1e9)

    @property
    def step_s(self) -> float:
        """Wall-clock time of a step."""
        return self.compute_s + self.network_s

    @property
    def patches_s(self) -> float:
        """Patches per second read by all GPUs together."""
        return self.config.data.global_batch_size / self.step_s

    @property
    def checkpoint_bytes(self) -> float:
        """Size of one checkpoint."""
        return self.known.state_share[self.config.optim.name.value] * self.weights * 4

    @property
    def save_s(self) -> float:
        """Time in which rank 0 saves a checkpoint and all others wait."""
        return self.checkpoint_bytes / 2**20 / self.known.save_mib_s

    def habits(self, interval_s: float = 600) -> Habits:
        """Return checkpoint costs and interruptions of this run."""
        inputs = self.inputs
        return Habits(
            interval_s=interval_s,
            save_s=self.save_s,
            restart_s=self.known.start_s + inputs.unnoticed_s,
            kills_a_day=inputs.kills_a_day + self.gpus / inputs.gpu_days_between_failures,
            stops_a_day=inputs.stops_a_day,
        )

    def num_steps(self, patches: int) -> int:
        """Return the steps of an entire run; each epoch drops its last incomplete batch."""
        return self.config.epochs * (patches // self.config.data.global_batch_size)


def plan_of(gpus: int, settings: Sequence[str], inputs: Inputs) -> Plan:
    """Compose the settings like the command does, and return the plan of that run."""
    register(Pretrain)
    with initialize_config_module("jobs.conf", version_base="1.3"):
        config = to_settings(compose("pretrain", list(settings)))
    network = SimCLR(config.model, NUM_BANDS)
    weights = sum(weight.numel() for weight in network.parameters())
    return Plan(gpus, config, weights, inputs, read_constants())


def read_constants() -> Constants:
    """Read the constants from the benchmarks' files in ``results``."""
    report, startup = _results("constants"), _results("startup")
    claims = {claim["text"]: claim["value"] for claim in report["claims"] + startup["claims"]}
    (save,) = (timing for timing in report["timings"] if timing["name"] == SAVE)
    return Constants(
        patch_bytes=claims[PATCH],
        save_mib_s=save["amount"] / statistics.median(save["wall_s"]),
        state_share={one.value: claims[STATE.format(one.value)] for one in MEASURED},
        sent=claims[SENT],
        files=claims[OPENED],
        loaded_mb=claims[LOADED],
        start_s=claims[WHOLE.format(RESUMED)],
    )


def _results(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content
