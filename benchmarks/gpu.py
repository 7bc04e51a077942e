"""Test and time the product on one GPU: tests, views, loss, steps, saving, a profiler trace.

Usage: python benchmarks/gpu.py [MINUTES]. Rewrites ``results/gpu.md`` after every part, so that
finished measurements are kept. The page lists a part that fails, and the others still run; parts
that would begin after MINUTES (25) are skipped. Docstrings of parts are titles of the page.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import augmentation
import torch
import torch.nn.functional as F
from step import model_alone, prepare

from preprocess.bands import L2A_BANDS
from simclr.augment.views import ViewMaker
from simclr.config import (
    AugmentConfig,
    DataConfig,
    EncoderName,
    LossConfig,
    ModelConfig,
    Precision,
    TrainConfig,
)
from simclr.data.dataset import open_dataset
from simclr.distributed import distributed_context
from simclr.loss import contrastive_loss
from simclr.train import Trainer, train_step

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
PAIRS = (32, 256, 1024)
Rows = Iterator[str]  # lines of a Markdown table, header first


def main() -> int:
    """Run every part; return 1 if one failed."""
    if not torch.cuda.is_available():
        print("no GPU here: torch.cuda.is_available() is false, so nothing was measured")
        return 0
    end = time.monotonic() + 60 * float(sys.argv[1] if len(sys.argv) > 1 else 25)
    page, failed = [_machine()], False
    with tempfile.TemporaryDirectory() as folder:
        for part in (tests, views, steps, stages, loss, saving, trace):
            title = f"## {part.__name__}: {(part.__doc__ or '').strip().rstrip('.')}"
            if time.monotonic() > end:
                page.append(f"{title}\n\nleft out: the time was up")
                continue
            lines: list[str] = []
            try:
                for row in part(Path(folder)):
                    print(row, flush=True)
                    lines.append(row)
                    if len(lines) == 1 and row.startswith("|"):
                        lines.append("|---" * (row.count("|") - 1) + "|")
            except Exception as error:  # a failed part must not stop the others
                failed = True
                lines.append(f"\nfailed: {type(error).__name__}: {error}")
                print(lines[-1], flush=True)
            torch.cuda.empty_cache()
            page.append("\n".join((title, "", *lines)))
            (RESULTS / "gpu.md").write_text("\n\n".join(page) + "\n")
    return int(failed)


def _machine() -> str:
    card = torch.cuda.get_device_properties(0)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        f"# On a GPU\n\n{card.name}, {card.total_memory / 2**30:.0f} GiB; driver "
        f"{driver.stdout.split()[0] if driver.stdout else 'unknown'}; torch {torch.__version__}; "
        f"Python {platform.python_version()}"
    )


def seconds(work: Callable[[], object], rounds: int = 10, warmup: int = 3) -> float:
    """Return the median time of a call, with the device synchronised before and after each."""
    times = []
    for number in range(warmup + rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def tests(_: Path) -> Rows:
    """Pytest -m gpu."""
    folders = ("tests/gpu", "tests/slurm/test_gpu.py")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    yield from (line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")))
    yield done.stdout.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError("not all tests passed")


def views(folder: Path) -> Rows:
    """Views/s of 12 x 120 x 120 patches; goal on an H200: 150,000."""
    batch, _, plain = augmentation.prepare(folder / "views", 512)
    dataset = open_dataset([str(folder / "views" / "shards")], L2A_BANDS)
    yield "| what | preset | views/s |"
    for preset in ("standard", "simclr", "paper"):
        for name, compiled, tf32 in (
            ("eager", False, False),
            ("eager, TF32", False, True),
            ("compiled", True, False),
            ("compiled, TF32", True, True),
        ):
            config = AugmentConfig(preset=preset)
            how = {"compiled": compiled, "tf32": tf32}
            ours = ViewMaker(dataset, config, 0, augmentation.DEVICE, **how)
            taken = seconds(lambda ours=ours: ours.training_views(batch, batch.epoch))
            yield f"| {name} | {preset} | {1024 / taken:,.0f} |"
    for name, make in augmentation.PEERS.items():
        try:
            pipeline = make()
        except ImportError:
            yield f"| {name} | its own | not installed |"
        else:
            taken = seconds(lambda pipe=pipeline: (pipe(plain), pipe(plain)))
            yield f"| {name} | its own | {1024 / taken:,.0f} |"


@contextmanager
def trainer_of(config: TrainConfig) -> Iterator[Trainer]:
    """Open a run and yield its trainer."""
    with (
        distributed_context(config.world) as context,
        closing(Trainer(config, context, [])) as trainer,
    ):
        trainer.resume()
        yield trainer


def settings(folder: Path, encoder: EncoderName, pairs: int, **changes: object) -> TrainConfig:
    """Pack patches once per folder, and return the settings of a run on them."""
    packed = folder / "steps"
    base = prepare(packed, 1024) if not packed.exists() else _prepared[packed]
    _prepared[packed] = base
    compiled = bool(changes.pop("compile", False))
    return replace(
        base,
        run_dir=str(folder / f"run-{time.monotonic_ns()}"),
        data=DataConfig(global_batch_size=pairs, splits=base.data.splits),
        model=ModelConfig(encoder=encoder, compile=compiled),
        **changes,
    )


_prepared: dict[Path, TrainConfig] = {}


def steps(folder: Path) -> Rows:
    """Whole steps and the model alone; goals on an H200: ResNet-152 12,000 views/s, share 0.9."""
    yield "| encoder | format | compiled | pairs | views/s | of the model alone | peak GiB |"
    runs = [
        (encoder, name, compiled, pairs)
        for encoder in (EncoderName.resnet152, EncoderName.resnet50)
        for name in ("bfloat16", "TF32", "float32")
        for compiled in (False, True)
        for pairs in PAIRS
        if encoder is EncoderName.resnet50 or name == "bfloat16"
    ]
    for encoder, name, compiled, pairs in runs:
        cells = f"| {encoder.value} | {name} | {compiled} | {pairs} |"
        precision = Precision.bfloat16 if name == "bfloat16" else Precision.float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "TF32"
        torch.cuda.reset_peak_memory_stats()
        try:
            config = settings(folder, encoder, pairs, precision=precision, compile=compiled)
            with trainer_of(config) as trainer:
                whole = seconds(lambda run=trainer: train_step(run, next(run.batches)))
                fixed = trainer.views.training_views(next(trainer.batches), 0)
                with torch.autocast(
                    "cuda", torch.bfloat16, enabled=precision is Precision.bfloat16
                ):
                    alone = seconds(lambda run=trainer, fixed=fixed: model_alone(run, fixed))
        except torch.cuda.OutOfMemoryError:
            yield f"{cells} out of memory | | |"
        else:
            peak = torch.cuda.max_memory_allocated() / 2**30
            yield f"{cells} {2 * pairs / whole:,.0f} | {alone / whole:.2f} | {peak:.1f} |"
        torch.cuda.empty_cache()


def stages(folder: Path) -> Rows:
    """Shares of a step of ResNet-50, 256 pairs, bfloat16; goal: loss under 0.02."""
    config = settings(folder, EncoderName.resnet50, 256, precision=Precision.bfloat16)
    yield "| stage | ms | share |"
    with trainer_of(config) as trainer:
        whole = seconds(lambda: train_step(trainer, next(trainer.batches)))
        batch = next(trainer.batches)
        z = torch.randn(512, 128, device="cuda", requires_grad=True)
        parts = {
            "whole step": whole,
            "next batch": seconds(lambda: next(trainer.batches)),
            "views": seconds(lambda: trainer.views.training_views(batch, batch.epoch)),
            "loss": seconds(lambda: contrastive_loss(z, config.loss).backward()),
            "optimiser": seconds(trainer.optimizer.step),
        }
    for name, taken in parts.items():
        yield f"| {name} | {1e3 * taken:.2f} | {taken / whole:.3f} |"


def loss(_: Path) -> Rows:
    """Forward and backward, D = 128, beside a plain one that keeps the similarities."""
    yield "| pairs | ours, ms | plain, ms | ours, peak GiB |"
    for pairs in (256, 1024, 4096, 8192):
        z = torch.randn(2 * pairs, 128, device="cuda", requires_grad=True)
        torch.cuda.reset_peak_memory_stats()
        ours = seconds(lambda z=z: contrastive_loss(z, LossConfig()).backward())
        peak = torch.cuda.max_memory_allocated() / 2**30
        plain = seconds(lambda z=z: _plain_loss(z).backward())
        yield f"| {pairs} | {1e3 * ours:.2f} | {1e3 * plain:.2f} | {peak:.2f} |"


def _plain_loss(z: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(z, dim=1)
    similarity = (unit @ unit.T / 0.1).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z) // 2))


def saving(folder: Path) -> Rows:
    """Seconds of a checkpoint of ResNet-152."""
    config = settings(folder, EncoderName.resnet152, 32, precision=Precision.bfloat16)
    with trainer_of(config) as trainer:
        train_step(trainer, next(trainer.batches))
        start = time.perf_counter()
        trainer.save()
        yield f"{time.perf_counter() - start:.2f} s"


def trace(folder: Path) -> Rows:
    """One step of ResNet-50 for chrome://tracing."""
    config = settings(folder, EncoderName.resnet50, 256, precision=Precision.bfloat16)
    with trainer_of(config) as trainer:
        for _ in range(3):
            train_step(trainer, next(trainer.batches))
        with torch.profiler.profile() as profile:
            train_step(trainer, next(trainer.batches))
            torch.cuda.synchronize()
    path = RESULTS / "gpu_trace.json.gz"
    profile.export_chrome_trace(str(path))
    yield f"in {path.name}"


if __name__ == "__main__":
    sys.exit(main())
