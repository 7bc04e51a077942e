"""A planted truth: does ``simclr-study`` find the harmful and the helpful operation?

Usage: python benchmarks/planted.py [FOLDER]. About ten minutes on two cores; finished runs in the
folder are reused.

The class of a simulated patch is the direction of its stripes, north-south or east-west. A quarter
turn swaps the two, so ``rotation`` teaches the encoder to ignore the class. The position of the
stripes identifies a patch but says nothing about its class: ``shift`` removes this shortcut and
keeps the direction. The other two operations affect neither. Effects are relative to the mean of
the four operations, which the harmful one lowers for all. A second label set has random labels,
on which arms can differ only by chance.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from report import keep, origin

from jobs.commands.study import run_study
from jobs.config import ClusterConfig
from jobs.study.analysis import Findings, conclude, read_table
from jobs.study.arms import StudyConfig, StudyName, couplet_name
from jobs.study.report import conclusions
from preprocess.shards.format import GroupLayout, LabelSet, Patch, ShardLayout
from preprocess.shards.manifest import ShardOrigin, build_manifest
from preprocess.shards.writer import write_shard
from simclr.config import (
    DataConfig,
    Device,
    EncoderName,
    LossConfig,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    WorldConfig,
)

HARMFUL, HELPFUL = "rotation", "shift"
OPERATIONS = (HARMFUL, HELPFUL, "flip", "brightness")
CLASSES = ("north-south", "east-west")
TRUE, SHUFFLED = "direction", "shuffled"
BANDS = ("B04", "B08")
SIDE_PX = 16
COUNTS = {"": 512, "train": 192, "validation": 64, "test": 384}  # labels of "" are never used
SEEDS = (0, 1, 2, 3, 4)
STEPS = 40


def main() -> None:
    """Run the study, check it against the truth, and write ``results/planted.md`` and ``.json``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        config = study(Path(sys.argv[1] if sys.argv[1:] else temporary), list(SEEDS))
        run_study(config, ClusterConfig())
        found = {
            task: conclude(config, read_table(replace(config, tasks=[task])))
            for task in config.tasks
        }
    keep("planted", _page(found), {task: _effects(one) for task, one in found.items()})
    if not (_sees_the_truth(found[TRUE]) and _sees_nothing(found[SHUFFLED])):
        raise SystemExit("the study does not tell the planted truth")


def study(folder: Path, seeds: list[int]) -> StudyConfig:
    """Pack the patches and return the study: the six couplets of four operations."""
    write_shards(folder / "shards", seed=0)
    return StudyConfig(
        study=StudyName.augmentation,
        output=str(folder / "study"),
        arms=["none", *(couplet_name(*pair) for pair in combinations(OPERATIONS, 2))],
        shards=[str(folder / "shards")],
        tasks=[TRUE, SHUFFLED],
        score="accuracy",
        seeds=seeds,
        epochs=1000,
        max_steps=STEPS,
        log_every_steps=STEPS // 4,
        world=WorldConfig(device=Device.cpu, threads_per_rank=1),
        data=DataConfig(bands=list(BANDS), splits=[""], global_batch_size=64, num_threads=1),
        model=ModelConfig(encoder=EncoderName.resnet18),
        loss=LossConfig(temperature=0.2),
        optim=OptimConfig(name=OptimizerName.adam, learning_rate=1e-3, decay_steps=STEPS),
    )


def write_shards(folder: Path, seed: int) -> None:
    """Simulate all patches and pack them; patch i depends only on seed and i."""
    layout = ShardLayout(
        (GroupLayout("b10", BANDS, SIDE_PX, 10.0),),
        (LabelSet(TRUE, "single", CLASSES), LabelSet(SHUFFLED, "single", CLASSES)),
    )
    origin_of_shards = ShardOrigin("stripes", simulated=True)
    patches = list(_patches(seed))
    entry = write_shard(folder / "shard-00000.h5", layout, patches, len(patches), origin_of_shards)
    build_manifest(folder, origin_of_shards, layout, [entry] if entry else []).write(folder)


def _patches(seed: int) -> Iterator[Patch]:
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    for number, split in enumerate(splits):
        random = np.random.default_rng([seed, number])
        kind = number % 2
        yield Patch(
            id=f"SIM-{number:06d}",
            pixels={"b10": make_patch(random, turned=bool(kind))},
            labels={TRUE: (CLASSES[kind],), SHUFFLED: (CLASSES[random.integers(2)],)},
            split=split,
            place=f"SIM_{number}",
        )


def make_patch(random: np.random.Generator, *, turned: bool) -> npt.NDArray[np.uint16]:
    """Return one patch of stripes in noise: (2, SIDE_PX, SIDE_PX) uint16."""
    wave = random.uniform(5, 8)  # pixels
    phase = random.uniform(0, 2 * np.pi)
    along = np.sin(2 * np.pi * np.arange(SIDE_PX) / wave + phase)
    field = np.broadcast_to(along, (SIDE_PX, SIDE_PX))
    stripes = 250 * (field.T if turned else field)
    noise = 300 * random.standard_normal((2, SIDE_PX, SIDE_PX))
    level = np.array([1500.0, 3000.0])[:, None, None]
    return np.clip(np.rint(level + stripes + noise), 1, 10000).astype(np.uint16)


def _effects(found: Findings) -> dict[str, dict[str, float]]:
    return {
        one.name: {"mean": one.mean, "half_width": one.half_width, "p": one.p_value}
        for one in found.operations
    }


def _sees_the_truth(found: Findings) -> bool:
    effects = {one.name: one for one in found.operations}
    harmful, helpful = effects[HARMFUL], effects[HELPFUL]
    below = harmful.excludes_zero and harmful.mean + harmful.half_width < 0
    return below and helpful.excludes_zero and helpful.mean - helpful.half_width > 0


def _sees_nothing(found: Findings) -> bool:
    return not any(one.excludes_zero for one in found.operations)


def _page(found: dict[str, Findings]) -> str:
    lines = ["# A planted truth, and the same with shuffled labels", ""]
    lines += [f"`{HARMFUL}` harms and `{HELPFUL}` helps by construction.", ""]
    made = origin(("torch", "numpy", "scipy"))
    lines += [f"{key}: {value}  " for key, value in made.items()] + [""]
    for task, one in found.items():
        lines += [f"## {task}", "", "| operation | effect on accuracy | 95 % | p (Holm) |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {row.name} | {row.mean:+.3f} | ±{row.half_width:.3f} | {row.p_value:.4f} |"
            for row in one.operations
        ]
        lines += ["", *conclusions(one), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
