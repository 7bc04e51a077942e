"""Pretraining compared with untrained baselines: the demo's training on several seeds.

Usage: python benchmarks/quality.py [FOLDER [SEED ...]]. Three to four minutes per seed on two
cores; finished runs in the folder are reused. Patches are simulated: their classes are arrangements
of two covers that band statistics cannot distinguish (``preprocess/sources/simulated.py``). No
Sentinel-2 image is used, and the results do not transfer to any.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import keep, origin

from simclr.evaluation.report import read_report, verdict

NUM_PATCHES = 1600
TASK = "bigearthnet19"
SCORE = "average_precision_micro"
# The training of examples/demo.sh, on one rank instead of two.
TRAINING = (
    "recipe=laptop",
    "data.positives=season",
    "+augment.strengths.gain=1.25",
    "+augment.strengths.brightness=0.4",
    "+augment.strengths.contrast=0.4",
    "world.threads_per_rank=1",
    "log_every_steps=20",
)


def main() -> None:
    """Train and score one encoder per seed; write ``results/quality.md`` and ``.json``."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if sys.argv[1:] else temporary)
        seeds = [int(text) for text in sys.argv[2:]] or [0, 1, 2]
        found = {seed: _evaluation(folder, seed) for seed in seeds}
    rows = {
        seed: [
            {"protocol": row["protocol"], "encoder": row["encoder"], **row["scores"][SCORE]}
            for row in one["results"]
        ]
        for seed, one in found.items()
    }
    keep("quality", _page(found), rows)
    if not all(verdict(one).startswith("Pretraining beats") for one in found.values()):
        raise SystemExit("a pretrained encoder does not beat every control")


def _evaluation(folder: Path, seed: int) -> dict[str, Any]:
    """Return the evaluation of a seed's run on the test split."""
    shards, run_dir = folder / "shards", folder / f"run-{seed}"
    report = run_dir / "evaluation.json"
    if not report.exists():
        rasters = f"source.root={folder / 'rasters'}"
        _call("pack", "source=simulated", rasters, f"source.num_patches={NUM_PATCHES}",
              f"output={shards}", "shard_size_mib=16")  # fmt: skip
        _call("pretrain", f"shards=[{shards}]", f"run_dir={run_dir}", f"seed={seed}", *TRAINING)
        _call("evaluate", f"run={run_dir}", f"shards={shards}", f"task={TASK}", "seeds=[0]")
    return read_report(report)[0]


def _call(command: str, *arguments: str) -> None:
    subprocess.run([Path(sys.executable).parent / f"simclr-{command}", *arguments], check=True)


def _page(found: dict[int, dict[str, Any]]) -> str:
    title = "# Pretrained against untrained: micro average precision in percent, 95 % intervals"
    lines = [title, "", f"| | {' | '.join(f'seed {seed}' for seed in found)} |"]
    lines += [f"| --- |{' ---: |' * len(found)}"]
    for rows in zip(*(one["results"] for one in found.values()), strict=True):
        scores = [row["scores"][SCORE] for row in rows]
        shown = [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * one[key] for key in ("value", "low", "high")))
            for one in scores
        ]
        lines.append(f"| {rows[0]['protocol']}: {rows[0]['encoder']} | {' | '.join(shown)} |")
    counts = ", ".join(
        f"{count} {name}" for name, count in next(iter(found.values()))["split"]["counts"].items()
    )
    lines += ["", *(f"- seed {seed}: {verdict(one)}" for seed, one in found.items())]
    lines += [
        f"- {NUM_PATCHES} simulated patches: {counts}",
        "- a seed is one of pretraining; patches and splits are the same for all",
        "",
        *(f"{key}: {value}  " for key, value in origin(("torch", "torchvision", "numpy")).items()),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
