"""Constants of large runs measured on one machine: bytes, times and counts for ``scale.py``.

Usage: python benchmarks/constants.py. Sizes come from real files and the traffic of real
processes; times from this machine's disk and from processes that share its cores.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from report import Claim, Report, Timing, alternate

# the repository root too: tests/ has folders with the names of packages, which would hide them
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from make_data import packed_arrays
from ranks import in_process_group, run_ranks

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.atomic_io import fsync
from preprocess.shards.manifest import read_manifest
from preprocess.sources.simulated import SimulatedConfig
from simclr.checkpoint.manager import Saver, agreed_checkpoint, load_state
from simclr.checkpoint.manifest import STATE_NAME, CheckpointManifest
from simclr.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EncoderName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    TrainConfig,
)
from simclr.distributed import DistributedContext, distributed_context
from simclr.model.simclr import SimCLR
from simclr.optim import build_optimizer
from simclr.preemption import TrainerHooks
from simclr.rendezvous import Rendezvous
from simclr.train import Trainer, train_step

SAVE = "save: write, flush, checksum, publish"
BARE = "write and flush the same bytes"
LOAD = "find the newest, check it, load it"
PATCH = "bytes of a packed patch of 12 bands"
STATE = "bytes of a checkpoint for each byte of weights, {}"
SENT = "bytes a rank sends in a step, measured over formula, 4 ranks"
OPENED = "files that a rank reads before it trains"
LOADED = "MB of these files"
MEASURED = (OptimizerName.lars, OptimizerName.adamw)
MIB = 2**20
RANKS, PAIRS = 4, 8  # ranks and pairs per rank in the step whose traffic is counted


def main() -> None:
    """Measure, print and save the results."""
    report = Report("constants", "Constants of the scale plan", "MiB of checkpoint", BARE)
    report.packages = ("torch", "torchvision", "h5py")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.claims.append(Claim(PATCH, patch_bytes(folder)))
        timings, claims = checkpoints(folder)
        report.timings += timings
        report.claims += [*claims, Claim(SENT, sent(folder), at_least=0.98, at_most=1.1)]
    files, size = opened()
    report.claims += [Claim(OPENED, files), Claim(LOADED, size / 1e6)]
    report.notes.append("checkpoints of ResNet-50 with head simclr2, on this machine's disk")
    report.write()


def patch_bytes(folder: Path) -> float:
    """Pack some patches like those of BigEarthNet; return the bytes per patch."""
    source = SimulatedConfig(root=str(folder / "rasters"), num_patches=256)
    pack(PackConfig(source=source, output=str(folder / "shards")), progress=False)
    shards = read_manifest(folder / "shards").shards
    return sum(shard.size_bytes for shard in shards) / sum(shard.rows for shard in shards)


def checkpoints(folder: Path) -> tuple[list[Timing], list[Claim]]:
    """Time saving and loading a ResNet-50, alternating with a bare write of the same bytes."""
    claims = []
    with distributed_context(TrainConfig().world) as context:
        for name in MEASURED:
            state, weights = trained(name)
            saver = Saver(folder / name.value, context, CheckpointConfig(), TrainerHooks())
            saved = saver.save(state, _about(1))
            size = (saved / STATE_NAME).stat().st_size
            claims.append(Claim(STATE.format(name.value), size / weights))
        content, steps = (saved / STATE_NAME).read_bytes(), itertools.count(2)
        work = {
            SAVE: lambda: saver.save(state, _about(next(steps))),
            BARE: lambda: _write(folder / "bare", content),
            LOAD: lambda: _load(saved.parents[1], context),
        }
        timings = alternate(work, len(content) / MIB, rounds=7)
    return list(timings.values()), claims


def trained(name: OptimizerName) -> tuple[dict[str, Any], int]:
    """Return the state of a ResNet-50 after a step, and the bytes of its weights."""
    network = SimCLR(ModelConfig(), num_bands=12)
    optimizer = build_optimizer(network, OptimConfig(name=name), 1e-3)
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()  # creates the moments to be saved
    state = {
        "encoder": network.encoder.state_dict(),
        "head": network.head.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return state, sum(weight.numel() * weight.element_size() for weight in network.parameters())


def _about(step: int) -> CheckpointManifest:
    return CheckpointManifest(step, 1_000_000, 1, {}, "", {}, torch.__version__, {})


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    fsync(path)


def _load(run_dir: Path, context: DistributedContext) -> dict[str, Any]:
    folder = agreed_checkpoint(run_dir, context)
    if folder is None:
        raise RuntimeError(f"no checkpoint in {run_dir}")
    return load_state(folder, context.device)


def sent(folder: Path) -> float:
    """Return the bytes that a rank sends per step, divided by the formula of ``scale.py``."""
    config = TrainConfig(
        shards=[str(packed_arrays(folder / "small", bands=["B02", "B04"]))],
        run_dir=str(folder / "traffic"),
        data=DataConfig(bands=["B02", "B04"], global_batch_size=RANKS * PAIRS, num_threads=1),
        augment=AugmentConfig(view_size_px=12),
        model=ModelConfig(encoder=EncoderName.resnet18),
    )
    measured = run_ranks(traffic, RANKS, folder, config)
    return statistics.fmean(one / reckoned for one, reckoned in measured)


def traffic(launch: Rendezvous, config: TrainConfig) -> tuple[int, float]:
    """Run two steps on one rank; return the bytes sent by the second, measured and by formula."""
    return in_process_group(_traffic, launch, config)


def _traffic(context: DistributedContext, config: TrainConfig) -> tuple[int, float]:
    with closing(Trainer(config, context, [])) as run:
        run.resume()
        train_step(run, next(run.batches))
        before = _written()
        train_step(run, next(run.batches))
        weights = sum(weight.numel() for weight in run.network.parameters())
        pairs = config.data.global_batch_size // context.size
        gathered = gathered_bytes(context.size, pairs, config.model.projection_size)
        return _written() - before, ring_bytes(context.size, 4 * weights) + gathered


def ring_bytes(ranks: int, size: int) -> float:
    """Return the bytes that each rank sends to all-reduce ``size`` bytes over a ring."""
    return 2 * (ranks - 1) / ranks * size


def gathered_bytes(ranks: int, pairs: int, projection_size: int) -> float:
    """Return the bytes that each rank sends in the gathers of the loss, in float32.

    Per other rank: its projections, their sums, and its reason to stop.
    """
    return (ranks - 1) * (2 * pairs * (projection_size + 1) + 1) * 4


def _written() -> int:
    """Return the bytes that this process has written to files and sockets so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def opened() -> tuple[int, int]:
    """Return number and total bytes of the Python and library files that a rank loads."""
    code = (
        "import sys, pathlib, jobs.commands.pretrain, simclr.train\n"
        "lines = pathlib.Path('/proc/self/maps').read_text().splitlines()\n"
        "files = {line.split(maxsplit=5)[5] for line in lines if line.count('/')}\n"
        "modules = [vars(module) for module in list(sys.modules.values())]\n"
        "files |= {m.get('__cached__') or m.get('__file__') or '' for m in modules} - {''}\n"
        "sizes = [p.stat().st_size for p in map(pathlib.Path, files) if p.is_file()]\n"
        "print(len(sizes), sum(sizes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    files, size = done.stdout.split()
    return int(files), int(size)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
