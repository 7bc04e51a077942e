"""Pretraining on real images beside lightly's SimCLR and encoders that learnt nothing.

Usage: python benchmarks/real.py [--data DIR] [--work DIR] [--seeds 0 1 2] [--epochs 30]
           [--view 64] [--finetune 0.01 0.1]

EuroSAT RGB (``eurosat_rgb_dev.tar`` and ``index.csv``) is split by cells of 0.25 degrees: images of
70 % of them are pretrained on without labels, those of the others are probed, on splits that keep
cells whole. What --work holds is not made again, so that the same command goes on after a stop.
lightly is optional: without it its rows are left out. Images, steps, batch, backbone, size of the
views and precision are the same; augmentations, loss, head, optimiser and rate are each one's own.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, origin
from torch import nn
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import images_to_geotiff

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards import Manifest, read_manifest
from preprocess.sources.geotiff_files import GeotiffConfig
from simclr.choices import EncoderName, OptimizerName, Precision
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    WorldConfig,
)
from simclr.distributed import is_fast_in_bfloat16
from simclr.evaluation.config import PRETRAINED, EvaluateConfig, FinetuneConfig, Protocol
from simclr.evaluation.evaluate import evaluate
from simclr.train import train

BANDS = ("B04", "B03", "B02")
SIDE_PX = 64
BATCH = 128
NAME = "eurosat_rgb"
POOL_SHARE = 0.7  # of the images, by whole cells
CELL_SEED = 0  # never another: the cells that are tested must stay those that nobody chose by
SPLITS = [0, 1, 2, 3, 4]  # seeds of the splits of the labelled cells
PEER = "lightly"


def main() -> None:
    """Pack, pretrain, score; write ``results/real.md`` and ``.json``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        pool, labelled = prepare(options.data / NAME, work)
        found = {}
        for seed in options.seeds:
            run = work / f"ours-{options.view}px-{options.epochs}-{seed}"
            train(ours(pool, run, options, seed))
            others = peer(pool, work, options, seed)
            found[seed] = score(run, labelled, others, options.finetune)
    text = page(found, options, read_manifest(pool), read_manifest(labelled))
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "real.md").write_text(text, encoding="utf-8")
    (RESULTS / "real.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("S2_REAL_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=data, help="folder that holds eurosat_rgb")
    parser.add_argument("--work", type=Path, help="keeps shards, runs and features; else nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of pretraining")
    parser.add_argument("--epochs", type=int, default=30, help="of both pretrainings")
    parser.add_argument("--view", type=int, default=SIDE_PX, help="side of a view, in pixels")
    parser.add_argument(
        "--finetune", type=float, nargs="*", default=[], help="label shares for fine-tuning too"
    )
    return parser.parse_args()


def prepare(source: Path, work: Path) -> tuple[Path, Path]:
    """Convert and pack the images of the two kinds of cells; return the folders of shards."""
    rasters, index = work / "rasters", source / "index.csv"
    folders = work / "pool", work / "labelled"
    if not all((folder / "manifest.json").exists() for folder in folders):
        words = [source / "eurosat_rgb_dev.tar", rasters, "--bands", ",".join(BANDS)]
        words += ["--table", index, "--folder", "cell"]
        if images_to_geotiff.main(list(map(str, words))):
            raise SystemExit(2)
    for folder, ids in zip(folders, _ids_by_kind(index), strict=True):
        if not (folder / "manifest.json").exists():
            others = work / f"not-{folder.name}.txt"
            others.write_text("\n".join(ids) + "\n", encoding="utf-8")
            pack(PackConfig(source=_source(rasters, others), output=str(folder)))
    return folders


def _ids_by_kind(index: Path) -> tuple[list[str], list[str]]:
    """Return the ids that the pool leaves out, and those that the labelled cells leave out."""
    rows = images_to_geotiff.read_table(index, "cell").values()
    cells = np.array([row["cell"] for row in rows])
    ids = np.array([f"{row['cell']}/{row['label']}/{row['name']}" for row in rows])
    names, sizes = np.unique(cells, return_counts=True)
    order = np.random.default_rng(CELL_SEED).permutation(len(names))
    pooled = names[order][np.cumsum(sizes[order]) <= POOL_SHARE * len(ids)]
    inside = np.isin(cells, pooled)
    return ids[~inside].tolist(), ids[inside].tolist()


def _source(rasters: Path, left_out: Path) -> GeotiffConfig:
    return GeotiffConfig(
        name=NAME,
        root=str(rasters),
        file_bands=list(BANDS),
        size_px=SIDE_PX,
        boa_offset=0,
        path_pattern="^(?P<place>[^/]+)/",  # the cell: splits and resamples keep it whole
        exclude_lists=[str(left_out)],
    )


def ours(pool: Path, run: Path, options: argparse.Namespace, seed: int) -> TrainConfig:
    """Return the settings of our run; none of them was chosen on the labelled cells."""
    return TrainConfig(
        shards=[str(pool)],
        run_dir=str(run),
        seed=seed,
        epochs=options.epochs,
        precision=Precision.auto,
        world=WorldConfig(),
        data=DataConfig(bands=list(BANDS), global_batch_size=BATCH),
        augment=AugmentConfig(view_size_px=options.view),
        model=ModelConfig(encoder=EncoderName.resnet18),
        loss=LossConfig(temperature=0.2),
        optim=OptimConfig(
            name=OptimizerName.adamw, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=1.0
        ),
        checkpoint=CheckpointConfig(every_steps=50),
    )


def peer(pool: Path, work: Path, options: argparse.Namespace, seed: int) -> list[str]:
    """Return the file of lightly's encoder in a list, which is empty without lightly."""
    try:
        import lightly  # noqa: F401
    except ImportError:
        logging.warning("lightly is not installed: its rows are left out (pip install lightly)")
        return []
    target = work / f"{PEER}-{options.view}px-{options.epochs}-{seed}" / f"{PEER}.pt"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        _train_peer(_images(options.data / NAME, work), read_manifest(pool), target, options, seed)
    return [str(target)]


def _images(source: Path, work: Path) -> list[Any]:
    """Return the images of the pool as lightly takes them."""
    from PIL import Image

    left_out = (work / "not-pool.txt").read_text(encoding="utf-8").split()
    names = {name.partition("/")[2] for name in left_out}
    with tarfile.open(source / "eurosat_rgb_dev.tar") as archive:
        return [
            Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]
            for member in archive
            if member.name.removesuffix(".jpg") not in names
        ]


def _train_peer(
    images: list[Any], manifest: Manifest, target: Path, options: argparse.Namespace, seed: int
) -> None:
    """Train lightly's SimCLR by its own benchmark of ResNet-18 on small images (Imagenette).

    From there come head, loss with its default temperature, optimiser and rate by batch size; the
    augmentations are the defaults of ``SimCLRTransform``. Only the normalisation is not ImageNet's
    but that of the pool, by which images are normalised when they are probed.
    """
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    torch.manual_seed(seed)
    epochs = options.epochs
    scale = {
        key: [getattr(manifest.statistics[band], key) / 255 for band in BANDS]
        for key in ("mean", "std")
    }
    transform = SimCLRTransform(input_size=options.view, normalize=scale)
    backbone = resnet18()
    backbone.fc = nn.Identity()
    head, criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss()
    both = nn.ModuleList([backbone, head])
    optimizer = torch.optim.SGD(
        both.parameters(), lr=6e-2 * BATCH / 256, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    half, saved, first = is_fast_in_bfloat16(torch.device("cpu")), target.with_suffix(".state"), 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        first = state.pop("epoch")
        for name, part in (("both", both), ("optimizer", optimizer), ("schedule", schedule)):
            part.load_state_dict(state[name])
    for epoch in range(first, epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(images))
        total = 0.0
        for step in range(len(images) // BATCH):
            pairs = [transform(images[n]) for n in order[step * BATCH : (step + 1) * BATCH]]
            views = [torch.stack(side) for side in zip(*pairs, strict=True)]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                first_z, second_z = (head(backbone(side)).float() for side in views)
            loss = criterion(first_z, second_z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        logging.info("lightly: epoch %d of %d, loss %.4f", epoch + 1, epochs, total / (step + 1))
        parts = {"both": both, "optimizer": optimizer, "schedule": schedule}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "epoch": epoch + 1}, saved.with_suffix(".part"))
        saved.with_suffix(".part").replace(saved)
    torch.save(backbone.state_dict(), target)
    saved.unlink()


def score(
    run: Path, labelled: Path, others: list[str], finetune: list[float]
) -> dict[str, list[dict[str, Any]]]:
    """Evaluate on the labelled cells; return rows and paired differences of accuracy."""
    protocols = [Protocol.probe, Protocol.knn, *([Protocol.finetune_all] if finetune else [])]
    evaluate(
        EvaluateConfig(
            run=str(run),
            shards=str(labelled),
            task=NAME,
            protocols=protocols,
            fractions=sorted({*finetune, 1.0}),
            others=others,
            seeds=SPLITS,
            finetune=FinetuneConfig(epochs=20, learning_rates=[1e-3], checks=4),
        )
    )
    report = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["evaluations"][0]
    rows = [
        {
            **{key: row[key] for key in ("protocol", "encoder", "fraction")},
            **row["scores"]["accuracy"],
        }
        for row in report["results"]
    ]
    differences = [one for one in report["differences"] if one["score"] == "accuracy"]
    return {"rows": rows, "differences": differences}


def page(
    found: dict[int, dict[str, list[dict[str, Any]]]],
    options: argparse.Namespace,
    pool: Manifest,
    labelled: Manifest,
) -> str:
    """Return the table as Markdown."""
    steps = options.epochs * (pool.rows // BATCH)
    lines = ["# EuroSAT RGB, split by cell: accuracy in percent, 95 % intervals", ""]
    lines += [
        f"| | labels | {' | '.join(f'seed {seed}' for seed in found)} |",
        f"| --- | ---: |{' ---: |' * len(found)}",
    ]
    lines += _lines("rows", found, "{protocol}: {encoder}")
    lines += ["", "Pretrained ahead by, paired over resamples of the tested cells:", ""]
    lines += lines[2:4]
    lines += _lines("differences", found, "{protocol}: ahead of {control}")
    lines += [
        "",
        f"- {pool.rows} images without labels, {options.epochs} epochs, {steps} steps of {BATCH} "
        f"pairs; ResNet-18, views of {options.view} px",
        f"- {labelled.rows} labelled images of other cells; {len(SPLITS)} splits into 50 % "
        "training, 20 % validation, 30 % test keep cells whole; scores are means over them",
        "- a seed is one of pretraining; a difference is resolved where its interval excludes zero",
        "",
    ]
    packages = ("torch", "torchvision", PEER, "numpy")
    lines += [f"{key}: {value}  " for key, value in origin(packages).items()]
    return "\n".join([*lines, ""])


def _lines(kind: str, found: dict[int, dict[str, list[dict[str, Any]]]], name: str) -> list[str]:
    lines = []
    for cells in zip(*(one[kind] for one in found.values()), strict=True):
        if kind == "differences" and cells[0]["encoder"] != PRETRAINED:
            continue
        shown = []
        for cell in cells:
            interval = cell.get("over_samples", cell)
            value, low, high = (
                100 * (interval[key] or math.nan) for key in ("value", "low", "high")
            )
            shown.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
        share = f"{cells[0]['fraction']:.0%}"
        lines.append(f"| {name.format(**cells[0])} | {share} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    main()
