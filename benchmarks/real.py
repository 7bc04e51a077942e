"""Pretraining on real images, compared with lightly's SimCLR and with untrained baselines.

Usage: python benchmarks/real.py [--images rgb|multispectral] [--data DIR] [--work DIR]
           [--seeds 0 1 2] [--epochs 30] [--view 64] [--labels 0.01 0.1] [--finetune]

rgb: EuroSAT RGB (``eurosat_rgb_dev.tar`` and ``index.csv``) is divided by cells of 0.25 degrees.
The images of 70 % of the cells are used for pretraining, without labels; the others are used for
evaluation, on splits that keep cells whole. Results already in --work are reused, so the same
command resumes after an interruption. lightly is optional; without it, its rows are left out.
Images, steps, batch size, backbone, view size and precision are the same for both; augmentations,
loss, projection head, optimiser and learning rate are each library's own.

multispectral: twelve bands; pretrained on the unlabelled patches of ``hsg_l2a`` and on cells of
``major_tom_l2a``, evaluated on ``eurosat_ms``, without lightly, and also joined with statistics.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, origin
from torch import nn
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import images_to_geotiff

from jobs.figures.canvas import COLORS, canvas, draw_fractions
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards import Manifest, read_manifest
from preprocess.sources.geotiff_files import GeotiffConfig
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EncoderName,
    LossConfig,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    Precision,
    TrainConfig,
    WorldConfig,
)
from simclr.distributed import (
    TIMEOUT_S,
    DistributedContext,
    distributed_context,
    is_fast_in_bfloat16,
)
from simclr.evaluation.bootstrap import compare_with_all, score_results
from simclr.evaluation.config import (
    CONTROLS,
    PRETRAINED,
    EvaluateConfig,
    FinetuneConfig,
    Protocol,
)
from simclr.evaluation.evaluate import extract, open_setup, run_jobs
from simclr.evaluation.features import image_statistics
from simclr.evaluation.jobs import EvalResult, EvaluatedEncoder, open_encoders
from simclr.model.pretrained import load_pretrained, saved_steps
from simclr.train import train

RGB = ("B04", "B03", "B02")
TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SIDE_PX = 64
BATCH = 128
NAME = "eurosat_rgb"
NAME_MS = "eurosat_ms"
JOINED = "pretrained and statistics"
POOL_SHARE = 0.7  # of the images, by whole cells
CELL_SEED = 0  # never another: the cells that are tested must stay those that nobody chose by
SPLITS = [0, 1, 2, 3, 4]  # seeds of the splits of the labelled cells
PEER = "lightly"
RESAMPLES = 2000
AFTER = "after {} steps"
PICTURES = RESULTS.parents[1] / "docs" / "pictures"
Scores = dict[str, list[dict[str, Any]]]
Found = dict[str, Scores]


def main() -> None:
    """Pack, pretrain, score; write ``results/real*.md`` and ``.json``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = _options()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        rgb = options.images == "rgb"
        pools, labelled = (prepare_rgb if rgb else prepare_multispectral)(options.data, work)
        runs, others = {}, {}
        for seed in options.seeds:
            kind = "ours" if rgb else options.images
            runs[seed] = work / f"{kind}-{options.view}px-{options.epochs}-{seed}"
            steps = sum(read_manifest(pool).rows for pool in pools) // BATCH
            train(ours(pools, RGB if rgb else TWELVE, runs[seed], options, seed, steps))
            others[seed] = peer(pools[0], work, options, seed) if rgb else []
        found, after = score(runs, labelled, others, options, joined=not rgb)
        text = page(found, after, options, [*map(read_manifest, pools)], read_manifest(labelled))
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    name = "real" if rgb else "real_multispectral"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    saved = json.dumps({**found, "after_steps": after}, indent=1)
    (RESULTS / f"{name}.json").write_text(saved + "\n", encoding="utf-8")
    if rgb:
        rows = list(found.values())[-1]["rows"]  # of all seeds
        draw_fractions(PICTURES / "real.png", rows, "accuracy")
        draw_steps(PICTURES / "real_steps.png", after["rows"], rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("S2_REAL_DATA", "../shared/data"))
    parser.add_argument("--images", choices=["rgb", "multispectral"], default="rgb")
    parser.add_argument("--data", type=Path, default=data, help="folder that holds eurosat_rgb")
    parser.add_argument("--work", type=Path, help="keeps shards, runs and features; else nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of pretraining")
    parser.add_argument("--epochs", type=int, default=30, help="of both pretrainings")
    parser.add_argument("--view", type=int, default=SIDE_PX, help="side of a view, in pixels")
    parser.add_argument(
        "--labels",
        type=float,
        nargs="*",
        default=[],
        help="shares of the labels beside all of them",
    )
    parser.add_argument("--finetune", action="store_true", help="fine-tune with those shares too")
    return parser.parse_args()


def prepare_rgb(data: Path, work: Path) -> tuple[list[Path], Path]:
    """Convert and pack the images of the two kinds of cells; return the folders of shards."""
    source, rasters = data / NAME, work / "rasters"
    index = source / "index.csv"
    folders = work / "pool", work / "labelled"
    if not all((folder / "manifest.json").exists() for folder in folders):
        words = [source / "eurosat_rgb_dev.tar", rasters, "--bands", ",".join(RGB)]
        words += ["--table", index, "--folder", "cell"]
        if images_to_geotiff.main(list(map(str, words))):
            raise SystemExit(2)
    for folder, ids in zip(folders, _ids_by_kind(index), strict=True):
        if not (folder / "manifest.json").exists():
            others = work / f"not-{folder.name}.txt"
            others.write_text("\n".join(ids) + "\n", encoding="utf-8")
            pack(PackConfig(source=_source(rasters, others), output=str(folder)))
    return [folders[0]], folders[1]


def prepare_multispectral(data: Path, work: Path) -> tuple[list[Path], Path]:
    """Pack both pools without labels, and EuroSAT MS; return the folders of shards."""
    rasters = work / "hsg"
    for part in sorted((data / "hsg_l2a").glob("*.npz")):
        words = [part, rasters / part.stem, "--bands", ",".join(TWELVE), "--names", "name"]
        if not (rasters / part.stem).exists() and images_to_geotiff.main(list(map(str, words))):
            raise SystemExit(2)
    bands = ",".join(TWELVE)
    told = f"source.file_bands=[{bands}] source.any_grid=true source.processing_level=L2A"
    sources = {
        "hsg_l2a": f"geotiff source.root={rasters} source.name=hsg_l2a {told} "
        f"source.boa_offset=0 source.labels_from_folders=false source.size_px={SIDE_PX}",
        # 66 pixels: the smallest side from 64 on that pixels of 60 m fill
        "major_tom": f"major_tom source.root={data / 'major_tom_l2a'} source.size_px=66",
        NAME_MS: f"eurosat source.root={data / NAME_MS}",
    }
    command = Path(sys.executable).with_name("simclr-pack")
    for name, words in sources.items():
        if not (work / name / "manifest.json").exists():
            line = f"source={words} output={work / name} cluster=here".split()
            subprocess.run([command, *line], check=True)
    return [work / "hsg_l2a", work / "major_tom"], work / NAME_MS


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
        file_bands=list(RGB),
        size_px=SIDE_PX,
        boa_offset=0,
        path_pattern="^(?P<place>[^/]+)/",  # the cell: splits and resamples keep it whole
        exclude_lists=[str(left_out)],
    )


def ours(
    pools: list[Path],
    bands: Sequence[str],
    run: Path,
    options: argparse.Namespace,
    seed: int,
    epoch_steps: int,
) -> TrainConfig:
    """Return the settings of our run; none of them was chosen on the labelled cells.

    A checkpoint is kept of each epoch, 130 MB: accuracy is drawn against the steps.
    """
    return TrainConfig(
        shards=[*map(str, pools)],
        run_dir=str(run),
        seed=seed,
        epochs=options.epochs,
        precision=Precision.auto,
        world=WorldConfig(),
        data=DataConfig(bands=list(bands), global_batch_size=BATCH),
        augment=AugmentConfig(view_size_px=options.view),
        model=ModelConfig(encoder=EncoderName.resnet18),
        loss=LossConfig(temperature=0.2),
        optim=OptimConfig(
            name=OptimizerName.adamw, learning_rate=1e-3, weight_decay=1e-4, warmup_epochs=1.0
        ),
        checkpoint=CheckpointConfig(every_steps=epoch_steps, keep=options.epochs + 2),
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


def milestones(epochs: int) -> list[int]:
    """Return the epochs after which encoders are kept: powers of two below the last, and it."""
    return [2**power for power in range((epochs - 1).bit_length())] + [epochs]


def milestone(target: Path, epoch: int) -> Path:
    """Return the file of an encoder after an epoch."""
    return target.with_name(f"{target.stem}-after-{epoch}.pt")


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
        key: [getattr(manifest.statistics[band], key) / 255 for band in RGB]
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
        if epoch + 1 in milestones(epochs):
            torch.save(backbone.state_dict(), milestone(target, epoch + 1))
        torch.save({**state, "epoch": epoch + 1}, saved.with_suffix(".part"))
        saved.with_suffix(".part").replace(saved)
    torch.save(backbone.state_dict(), target)
    saved.unlink()


def score(
    runs: dict[int, Path],
    labelled: Path,
    others: dict[int, list[str]],
    options: argparse.Namespace,
    *,
    joined: bool,
) -> tuple[Found, Scores]:
    """Evaluate on the labelled cells; return the scores of each seed and of all, and after steps.

    Every seed is scored on the same splits and resamples. Baselines do not depend on the seed of
    pretraining: they are scored once, and stand beside each of them.
    """
    configs = _evaluations(labelled, options)
    by_seed: dict[str, list[EvalResult]] = {}
    baselines: list[EvalResult] = []
    after: list[EvalResult] = []
    with distributed_context(WorldConfig(timeout_s=TIMEOUT_S)) as context:
        for seed, run in runs.items():
            results = []
            for base in configs:
                controls = not by_seed  # the first time
                config = replace(base, run=str(run), others=others[seed], controls=controls)
                setup = open_setup(config, context, progress=True)
                encoders = open_encoders(config, setup.pretrained, context.device)
                if joined and base is configs[0]:
                    encoders.append(_joined(encoders[0]))
                extract(setup, encoders)
                kind = ", all stages" if base.stages else ""
                results += [
                    replace(one, protocol=one.protocol + kind) for one in run_jobs(setup, encoders)
                ]
            if not by_seed:
                baselines = [one for one in results if one.encoder in CONTROLS]
                results = [one for one in results if one.encoder not in CONTROLS]
            by_seed[f"seed {seed}"] = results + baselines
            base = replace(configs[0], run=str(run), controls=False, fractions=[1.0])
            after += _score_milestones(base, others[seed], options.epochs, context)
    if len(by_seed) > 1:
        by_seed["all seeds"] = [one for results in by_seed.values() for one in results]

    def scores_of(results: list[EvalResult]) -> Scores:
        rows = score_results(results, setup.task.kind, setup.splits.tested, setup.blocks, RESAMPLES)
        split = setup.splits.by_seed[0]
        ahead = compare_with_all(
            rows, PRETRAINED, setup.task.kind, len(split.test) / len(split.train)
        )
        return {
            "rows": [_accuracy_alone(row.scores_as_data()) for row in rows],
            "differences": [one for one in ahead if one["score"] == "accuracy"],
        }

    return {name: scores_of(results) for name, results in by_seed.items()}, scores_of(after)


def _evaluations(labelled: Path, options: argparse.Namespace) -> list[EvaluateConfig]:
    """Return what is evaluated: probe and k-NN, the probe on all stages, fine-tuning."""
    base = EvaluateConfig(
        shards=str(labelled),
        task=read_manifest(labelled).source,
        fractions=sorted({*options.labels, 1.0}),
        seeds=SPLITS,
    )
    configs = [base, replace(base, protocols=[Protocol.probe], stages=True)]
    if options.finetune:
        finetune = FinetuneConfig(epochs=50, learning_rates=[1e-3], checks=5)
        shares = sorted(options.labels)
        protocols = [Protocol.finetune_all]
        configs.append(replace(base, protocols=protocols, fractions=shares, finetune=finetune))
    return configs


def _score_milestones(
    base: EvaluateConfig, peers: list[str], epochs: int, context: DistributedContext
) -> list[EvalResult]:
    """Probe the encoders that were kept; the protocol of a result names its steps."""
    run = Path(base.run)
    steps = [step for step in saved_steps(run) if step]
    per_epoch = steps[-1] // epochs
    names: dict[str, tuple[str, str]] = {}
    paths = []
    for epoch in milestones(epochs):
        kept = {PRETRAINED: milestone(run / "encoders" / f"{PRETRAINED}.pt", epoch)}
        if peers:
            kept[PEER] = milestone(Path(peers[0]), epoch)
        if not kept[PRETRAINED].exists():
            found = load_pretrained(run, context.device, epoch * per_epoch)
            kept[PRETRAINED].parent.mkdir(exist_ok=True)
            torch.save(found.encoder.state_dict(), kept[PRETRAINED])
        for encoder, path in kept.items():
            names[path.stem] = encoder, AFTER.format(epoch * per_epoch)
            paths.append(str(path))
    config = replace(base, others=paths, protocols=[Protocol.probe])
    setup = open_setup(config, context, progress=True)
    encoders = open_encoders(config, setup.pretrained, context.device)[1:]
    extract(setup, encoders)
    return [
        replace(one, encoder=names[one.encoder][0], protocol=names[one.encoder][1])
        for one in run_jobs(setup, encoders)
    ]


def _accuracy_alone(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "scores": {"accuracy": row["scores"]["accuracy"]}}


def _joined(pretrained: EvaluatedEncoder) -> EvaluatedEncoder:
    """Return an encoder's features and image statistics side by side."""

    def embed(views: torch.Tensor) -> torch.Tensor:
        assert pretrained.embed is not None
        return torch.cat([pretrained.embed(views), image_statistics(views)], dim=1)

    return EvaluatedEncoder(JOINED, None, embed, pretrained.weights)


def page(
    found: Found,
    after: Scores,
    options: argparse.Namespace,
    pools: list[Manifest],
    labelled: Manifest,
) -> str:
    """Return the table as Markdown."""
    rows = sum(pool.rows for pool in pools)
    rgb = options.images == "rgb"
    title = "EuroSAT RGB, split by cell" if rgb else "EuroSAT MS, twelve bands"
    lines = [f"# {title}: accuracy in percent, 95 % intervals", ""]
    lines += [
        f"| | labels | {' | '.join(found)} |",
        f"| --- | ---: |{' ---: |' * len(found)}",
    ]
    lines += _lines("rows", found, "{protocol}: {encoder}")
    lines += ["", "Pretrained ahead by, paired over resamples of the tested cells:", ""]
    lines += lines[2:4]
    lines += _lines("differences", found, "{protocol}: ahead of {control}")
    lines += ["", "Linear probe with all labels against the steps of pretraining, all seeds:", ""]
    lines += ["| steps | encoder | accuracy |", "| --- | --- | ---: |"]
    lines += [
        f"| {one['protocol']} | {one['encoder']} | {_percent(one)} |" for one in after["rows"]
    ]
    lines += [
        f"| {one['protocol']} | ahead of {one['control']} | {_percent(one)} |"
        for one in after["differences"]
    ]
    lines += [
        "",
        f"- {rows} images without labels, {options.epochs} epochs, "
        f"{options.epochs * (rows // BATCH)} steps of {BATCH} pairs; ResNet-18, views of "
        f"{options.view} px",
        f"- {labelled.rows} labelled images{' of other cells' if rgb else ''}; {len(SPLITS)} "
        "splits into 50 % training, 20 % validation, 30 % test, which keep cells whole; scores are "
        "means over them",
        "- a seed is one of pretraining; intervals are over resamples of the tested cells, and a "
        "difference is resolved where its interval excludes zero",
        "",
    ]
    packages = ("torch", "torchvision", PEER, "numpy")
    lines += [f"{key}: {value}  " for key, value in origin(packages).items()]
    return "\n".join([*lines, ""])


def _lines(kind: str, found: Found, name: str) -> list[str]:
    lines = []
    for cells in zip(*(one[kind] for one in found.values()), strict=True):
        shown = " | ".join(map(_percent, cells))
        share = f"{cells[0]['fraction']:.0%}"
        lines.append(f"| {name.format(**cells[0])} | {share} | {shown} |")
    return lines


def _percent(row: dict[str, Any]) -> str:
    """Return the accuracy of a row, or a difference, with its interval over the tested cells."""
    interval = row["over_samples"] if "control" in row else row["scores"]["accuracy"]
    value, low, high = (100 * (interval[key] or math.nan) for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def draw_steps(path: Path, after: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Draw the probe's accuracy against the steps of pretraining; baselines as level lines."""
    with canvas(path, 6.4, 4.2) as figure:
        axes = figure.subplots()
        for color, encoder in zip(COLORS, (PRETRAINED, PEER), strict=False):
            own = [one for one in after if one["encoder"] == encoder]
            if not own:
                continue
            steps = [int(one["protocol"].split()[1]) for one in own]
            scores = [one["scores"]["accuracy"] for one in own]
            axes.plot(steps, [100 * one["value"] for one in scores], "o-", c=color, label=encoder)
            ends = [[100 * one[key] for one in scores] for key in ("low", "high")]
            axes.fill_between(steps, *ends, color=color, alpha=0.15, lw=0)
        for color, style, control in zip(COLORS[2:], ("--", "-.", ":"), CONTROLS, strict=False):
            wanted = (control, Protocol.probe.value, 1.0)
            for one in rows:
                if (one["encoder"], one["protocol"], one["fraction"]) == wanted:
                    level = 100 * one["scores"]["accuracy"]["value"]
                    axes.axhline(level, color=color, ls=style, label=control)
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, list(map(str, steps)))
        axes.set_xlabel(f"steps of {BATCH} pairs")
        axes.set_ylabel("accuracy of a linear probe (%)")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", fontsize=9)


if __name__ == "__main__":
    main()
