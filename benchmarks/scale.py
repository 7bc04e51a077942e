"""What a run costs on 1 to 512 GPUs: arithmetic from a measured rate, no measurement itself.

Usage: python benchmarks/scale.py PAIRS_PER_S [ENCODER]. ``PAIRS_PER_S`` is what one GPU trains, the
``patches_per_s`` of metrics.jsonl on one rank; the table takes it as constant over GPUs, so that
times are lower bounds, and says what network and file system would have to deliver for that.
"""

from __future__ import annotations

import math
import sys

import torch
from report import RESULTS, origin

from preprocess.bands import L2A_BANDS
from simclr.choices import EncoderName
from simclr.config import ModelConfig
from simclr.model.encoder import build_encoder

GPUS = (1, 8, 64, 512)
PATCH_BYTES = 160_000  # 12 native bands of 1.2 km, uncompressed
PROJECTION = 128
PAIRS_PER_GPU = 256
DATA_SETS = {"BigEarthNet v2, clean": 480_038, "California, one date of the study of 2021": 50_194}
EPOCHS = 100
KILLS_PER_DAY = 2  # without warning, of the whole job: nodes fail more often the more there are
FLOAT = 4


def main() -> None:
    """Print the tables, and keep them."""
    if len(sys.argv) < 2:
        raise SystemExit("give the pairs a second that one GPU trains: benchmarks/scale.py 1000")
    rate = float(sys.argv[1])
    name = EncoderName(sys.argv[2] if len(sys.argv) > 2 else "resnet50")
    encoder = build_encoder(ModelConfig(encoder=name), len(L2A_BANDS))
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    lines = [
        f"# A run of {EPOCHS} epochs, {name.value}, {rate:g} pairs/s a GPU, bfloat16 gradients",
        "",
        *network(rate, weights),
        "",
        *times(rate),
        "",
        *losses(weights),
        "",
        *(f"{key}: {value}  " for key, value in origin(("torch",)).items()),
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    (RESULTS / "scale.md").write_text(text, encoding="utf-8")


def network(rate: float, weights: int) -> list[str]:
    """Return what each GPU sends and reads, for each number of GPUs.

    A ring sends 2 (W - 1) / W times the gradient; the gather brings both views of all pairs.
    """
    rows = [
        "| GPUs | steps/s | gradients, MB a step | gathered, MB a step | network, GB/s a GPU |"
        " file system, GB/s |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for gpus in GPUS:
        steps = rate / PAIRS_PER_GPU
        ring = 2 * (gpus - 1) / gpus * weights * 2
        gathered = 2 * (gpus - 1) * PAIRS_PER_GPU * PROJECTION * FLOAT
        load = gpus * rate * PATCH_BYTES
        rows.append(
            f"| {gpus} | {steps:.2f} | {ring / 1e6:.0f} | {gathered / 1e6:.1f} | "
            f"{(ring + gathered) * steps / 1e9:.2f} | {load / 1e9:.2f} |"
        )
    return rows


def times(rate: float) -> list[str]:
    """Return hours of clock and GPU for whole data sets, by number of GPUs."""
    rows = [
        f"| {EPOCHS} epochs, hours | "
        + " | ".join(f"{gpus} GPUs" for gpus in GPUS)
        + " | GPU hours |",
        "|---|" + "---:|" * (len(GPUS) + 1),
    ]
    for name, patches in DATA_SETS.items():
        alone = patches * EPOCHS / rate / 3600
        cells = " | ".join(f"{alone / gpus:.2f}" for gpus in GPUS)
        rows.append(f"| {name} | {cells} | {alone:.1f} |")
    return rows


def losses(weights: int) -> list[str]:
    """Return the share of time lost to kills without warning, by the time between checkpoints.

    A kill loses half an interval on average; announced stops lose nothing. Young (1974): the best
    interval is sqrt(2 x time of a save x time between kills).
    """
    gigabytes = 3 * weights * FLOAT / 1e9
    save_s = gigabytes / 0.2  # at 200 MB/s, a slow share of a busy file system
    between_s = 86_400 / KILLS_PER_DAY
    best = math.sqrt(2 * save_s * between_s)
    rows = [
        "| checkpoint every | lost to kills | spent on saving, if training waits |",
        "|---|---:|---:|",
    ]
    for seconds in (60, 300, 600, 1800, 3600):
        rows.append(
            f"| {seconds / 60:g} min | {seconds / 2 / between_s:.2%} | {save_s / seconds:.2%} |"
        )
    return [
        *rows,
        "",
        f"A checkpoint has {gigabytes:.2f} GB; with {KILLS_PER_DAY} kills a day and "
        f"{save_s:.1f} s a save, the best interval is {best / 60:.0f} min (Young 1974).",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
