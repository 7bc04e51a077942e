"""Pretraining against encoders that learnt nothing, on simulated patches with known classes.

Usage: python benchmarks/quality.py [SEED ...]. About five minutes a seed on two cores.

The classes are arrangements of two covers: strips, checks, thickets, parcels, hedges. Every patch
is made of the same crop and the same soil in shares that do not depend on the class; the light
varies by a third from patch to patch and haze lifts the blue end, so that no mean, deviation or
percentile of a band tells a class (``image statistics`` stay near the fifth that guessing gives).
Scale, direction, contrast and noise vary within a class. Nothing here is a Sentinel-2 image.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from report import RESULTS, origin

from preprocess.bands import L2A_BANDS
from preprocess.shards.format import GroupLayout, LabelSet, Patch, ShardLayout
from preprocess.shards.manifest import ShardOrigin, build_manifest
from preprocess.shards.writer import write_shard
from preprocess.sources.simulated import ENDMEMBERS
from simclr.choices import Device, EncoderName, OptimizerName
from simclr.config import DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig, WorldConfig
from simclr.evaluation.config import EvaluateConfig
from simclr.evaluation.evaluate import evaluate
from simclr.train import train

Field = npt.NDArray[np.float64]

CLASSES = ("strips", "checks", "thickets", "parcels", "hedges")
BANDS = ("B02", "B03", "B04", "B08")
SIDE_PX = 48
COUNTS = {"": 3072, "train": 400, "validation": 200, "test": 1000}  # "" has labels, never used
EPOCHS = 14
SHARD_ROWS = 512
SOURCE = "arrangements"
TASK = "arrangement"
BEATEN = ("random encoder", "image statistics")

_CROP, _SOIL = (
    np.array([ENDMEMBERS[name][L2A_BANDS.index(band)] for band in BANDS], float)
    for name in ("crop", "soil")
)
_HAZE = np.array([120.0, 70, 50, 12])  # stored values, falling with wavelength


def main() -> None:
    """Train and score one encoder a seed; write ``results/quality.md`` and ``.json``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    seeds = [int(text) for text in sys.argv[1:]] or [0, 1, 2]
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, seed=0)
        found = {seed: _scores(shards, Path(folder) / f"run-{seed}", seed) for seed in seeds}
    text = _page(found)
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.md").write_text(text, encoding="utf-8")
    (RESULTS / "quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not all(_is_ahead(rows) for rows in found.values()):
        raise SystemExit("an interval of the pretrained encoder overlaps one that it should beat")


def write_shards(folder: Path, seed: int) -> None:
    """Simulate all patches and pack them; patch i depends on nothing but seed and i."""
    layout = ShardLayout(
        (GroupLayout("b10", BANDS, SIDE_PX, 10.0),), (LabelSet(TASK, "single", CLASSES),)
    )
    origin_of_shards = ShardOrigin(SOURCE, simulated=True)
    patches = list(_patches(seed))
    entries = []
    for number, start in enumerate(range(0, len(patches), SHARD_ROWS)):
        part = patches[start : start + SHARD_ROWS]
        path = folder / f"shard-{number:05d}.h5"
        entries.append(write_shard(path, layout, part, len(part), origin_of_shards))
    written = [entry for entry in entries if entry]
    build_manifest(folder, origin_of_shards, layout, written).write(folder)


def _patches(seed: int) -> Iterator[Patch]:
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    for number, split in enumerate(splits):
        name = CLASSES[number % len(CLASSES)]
        yield Patch(
            id=f"SIM-{number:06d}",
            pixels={"b10": make_patch(np.random.default_rng([seed, number]), name)},
            labels={TASK: (name,)},
            split=split,
            place=f"SIM_{number}",
        )


def make_patch(random: np.random.Generator, name: str) -> npt.NDArray[np.uint16]:
    """Return one patch of a class: (4, SIDE_PX, SIDE_PX) uint16."""
    field = _arrangement(random, name)
    # A threshold at a drawn quantile: the shares of the covers say nothing about the class.
    crop = field > np.quantile(field, random.uniform(0.35, 0.65))
    if random.random() < 0.5:
        crop = ~crop
    contrast = random.uniform(0.5, 1) * np.where(crop, 0.5, -0.5)
    middle, difference = (_CROP + _SOIL) / 2, _CROP - _SOIL
    pixels = middle[:, None, None] + difference[:, None, None] * contrast
    light = np.exp(random.normal(0, 0.25)) * np.exp(random.normal(0, 0.03, (4, 1, 1)))
    relief = 1 + 0.05 * _waves(random, SIDE_PX / 2)
    grain = 1 + random.uniform(0.02, 0.08) * random.standard_normal((SIDE_PX, SIDE_PX))
    pixels = pixels * light * relief * grain
    pixels += random.gamma(2, 0.5) * _HAZE[:, None, None]
    pixels += 20 * random.standard_normal(pixels.shape)
    return np.clip(np.rint(pixels), 1, 10000).astype(np.uint16)


def _arrangement(random: np.random.Generator, name: str) -> Field:
    """Return a field (SIDE_PX, SIDE_PX) whose level sets have the shape of the class."""
    wave = random.uniform(6, 12)  # pixels
    if name == "thickets":
        return _waves(random, wave)
    if name in ("parcels", "hedges"):
        return _cells(random, wave, borders=name == "hedges")
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX].astype(float)
    bend = random.uniform(0, 0.15) * wave * _waves(random, SIDE_PX / 2)
    angle, phases = random.uniform(0, np.pi), random.uniform(0, 2 * np.pi, 2)
    along = (x * np.cos(angle) + y * np.sin(angle) + bend) * 2 * np.pi / wave
    across = (y * np.cos(angle) - x * np.sin(angle) + bend) * 2 * np.pi / wave
    strips = np.sin(along + phases[0])
    return strips if name == "strips" else strips * np.sin(across + phases[1])


def _cells(random: np.random.Generator, wave: float, *, borders: bool) -> Field:
    """Return cells around random points, each of one value, or high where cells meet."""
    count = max(16, int((SIDE_PX / wave) ** 2 * 1.6) * 4)
    points = random.uniform(-SIDE_PX / 2, SIDE_PX * 1.5, (count, 2))
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX, :1][:2].astype(float)
    distance = np.hypot(x - points[:, 0], y - points[:, 1])  # (SIDE_PX, SIDE_PX, count)
    if not borders:
        return random.random(count)[distance.argmin(-1)]
    nearest = np.partition(distance, 1, axis=-1)
    return np.asarray(nearest[..., 0] - nearest[..., 1])


def _waves(random: np.random.Generator, wave: float) -> Field:
    """Return noise of one wavelength in all directions, of unit deviation."""
    frequency = np.fft.fftfreq(SIDE_PX)
    radius = np.hypot(frequency[:, None], frequency)
    band = np.exp(-0.5 * ((radius - 1 / wave) / (0.35 / wave)) ** 2)
    noise = random.standard_normal((SIDE_PX, SIDE_PX))
    field = np.fft.ifft2(np.fft.fft2(noise) * band).real
    return np.asarray(field / field.std())


def _scores(shards: Path, run_dir: Path, seed: int) -> list[dict[str, object]]:
    """Pretrain on the patches without a split, and return accuracy with its interval by row."""
    train(
        TrainConfig(
            shards=[str(shards)],
            run_dir=str(run_dir),
            seed=seed,
            epochs=EPOCHS,
            log_every_steps=24,
            world=WorldConfig(device=Device.cpu),
            data=DataConfig(bands=list(BANDS), splits=[""], global_batch_size=128, num_threads=1),
            model=ModelConfig(encoder=EncoderName.resnet18),
            loss=LossConfig(temperature=0.2),
            optim=OptimConfig(
                name=OptimizerName.adamw, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=1.0
            ),
        )
    )
    evaluate(EvaluateConfig(run=str(run_dir), shards=str(shards), task=TASK))
    report = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))
    return [
        {"protocol": row["protocol"], "encoder": row["encoder"], **row["scores"]["accuracy"]}
        for row in report["evaluations"][0]["results"]
    ]


def _is_ahead(rows: list[dict[str, object]]) -> bool:
    """True if both pretrained intervals lie above those of the controls to be beaten."""
    bounds = {(row["protocol"], row["encoder"]): row for row in rows}
    return all(
        float(str(bounds[protocol, "pretrained"]["low"])) > float(str(row["high"]))
        for (protocol, encoder), row in bounds.items()
        if encoder in BEATEN
    )


def _page(found: dict[int, list[dict[str, object]]]) -> str:
    lines = ["# Pretrained against untrained: accuracy in percent, 95 % intervals", ""]
    lines += [f"| | {' | '.join(f'seed {seed}' for seed in found)} |"]
    lines += [f"| --- |{' ---: |' * len(found)}"]
    for cells in zip(*found.values(), strict=True):
        shown = [
            "{:.1f} [{:.1f}, {:.1f}]".format(
                *(100 * float(str(cell[key])) for key in ("value", "low", "high"))
            )
            for cell in cells
        ]
        lines.append(f"| {cells[0]['protocol']}: {cells[0]['encoder']} | {' | '.join(shown)} |")
    verdict = all(_is_ahead(rows) for rows in found.values())
    lines += [
        "",
        f"- pretrained above {' and '.join(BEATEN)} with intervals that do not overlap, for probe "
        f"and k-NN and every seed: {'holds' if verdict else 'FALLS SHORT'}",
        f"- {COUNTS['']} patches without labels, {EPOCHS} epochs, ResNet-18 at {SIDE_PX} px; "
        f"{COUNTS['train']} labelled for training, {COUNTS['test']} for testing; simulated",
        "- a seed is one of pretraining; patches and splits are the same for all",
        "",
        *(f"{key}: {value}  " for key, value in origin(("torch", "torchvision", "numpy")).items()),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
