"""Contrastive loss compared with its peers: time, memory and error of loss and gradient.

Usage: python benchmarks/loss.py [PAIRS ...]. Runs in one process, with peers that can be imported
(extra ``peers``). All candidates get the same projections, forward and backward. Memory is the peak
increase of a fresh process in the largest forward and backward (the allocator's peak on a GPU), in
units of one float32 similarity matrix.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from report import Claim, Report, alternate

from simclr.config import LossConfig
from simclr.loss import contrastive_loss

SIZE, TEMPERATURE = 128, 0.1
PAIRS = (256, 1024, 4096)
OURS = "this loss"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Loss = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure, print and save the results."""
    torch.set_num_threads(os.cpu_count() or 1)
    pairs = [int(word) for word in sys.argv[1:]] or list(PAIRS)
    packages = ("torch", "lightly", "pytorch-metric-learning", "stable-pretraining")
    report = Report("loss", "Contrastive loss, forward and backward", "view", packages=packages)
    losses = {OURS: ours(), **peers()}
    report.notes += [f"absent, not run: {name}" for name in PEERS if name not in losses]
    for num in pairs:
        _time(report, losses, num)
    _memory(report, losses, max(pairs))
    _errors(report, losses)
    report.write()


def ours() -> Loss:
    """Return this suite's loss."""
    config = LossConfig(temperature=TEMPERATURE)
    return lambda projections: contrastive_loss(projections, config)


def peers() -> dict[str, Loss]:
    """Return the losses of importable peers, by name."""
    found = {}
    for name, (module, make) in PEERS.items():
        try:
            criterion = make(importlib.import_module(module))
        except ImportError:
            continue
        found[name] = lambda z, criterion=criterion: criterion(*z.chunk(2))
    return found


PEERS = {
    "lightly": ("lightly.loss", lambda module: module.NTXentLoss(temperature=TEMPERATURE)),
    "pytorch-metric-learning": (
        "pytorch_metric_learning.losses",
        lambda module: module.SelfSupervisedLoss(module.NTXentLoss(temperature=TEMPERATURE)),
    ),
    "stable-pretraining": (
        "stable_pretraining.losses",
        lambda module: module.NTXEntLoss(temperature=TEMPERATURE),
    ),
}


# It keeps the entire similarity matrix for every positive pair: (2 x pairs)^3 numbers.
CUBIC = "pytorch-metric-learning"


def projections(num_pairs: int) -> torch.Tensor:
    """Return (2 num_pairs, SIZE) with similar positives, as in the middle of training."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(num_pairs, SIZE, generator=generator)
    second = first + 0.7 * torch.randn(num_pairs, SIZE, generator=generator)
    return torch.cat([first, second]).to(DEVICE)


def run(loss: Loss, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and gradient."""
    leaf = z.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return value.detach(), leaf.grad


def _time(report: Report, losses: dict[str, Loss], num: int) -> None:
    z = projections(num)
    work = {}
    cubic_gib, has_gib = (2 * num) ** 3 * 4 / 2**30, memory_bytes() / 2**30
    for name, loss in losses.items():
        if name == CUBIC and 4 * cubic_gib > has_gib:  # a few such tensors, forward and backward
            report.notes.append(
                f"{num} pairs: {name} left out, a single tensor of its forward pass takes "
                f"{cubic_gib:,.0f} GiB of the {has_gib:.0f} there are"
            )
            continue
        try:
            run(loss, z)
        except RuntimeError as error:
            if "allocate" not in str(error) and "out of memory" not in str(error):
                raise
            report.notes.append(f"{num} pairs: {name} wants more memory than there is")
        else:
            work[f"{name}, {num} pairs"] = lambda loss=loss: run(loss, z)
    timings = alternate(work, 2 * num, rounds=9 if num < 4096 else 5)
    report.timings += timings.values()
    mine = timings[f"{OURS}, {num} pairs"]
    others = [timing for timing in timings.values() if timing is not mine]
    if others:
        bound = 1.5 if num == 4096 else None
        best = min(others, key=mine.times)
        claim = f"{num} pairs: times the rate of the best peer, {best.name.partition(',')[0]}"
        report.claims.append(Claim(claim, mine.times(best), bound))


def _memory(report: Report, losses: dict[str, Loss], num: int) -> None:
    matrix = (2 * num) ** 2 * 4
    fitting = [
        name for name in losses if any(f"{name}, {num} pairs" == t.name for t in report.timings)
    ]
    for name in fitting:
        command = [sys.executable, __file__, "--memory", name, str(num)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        share = int(done.stdout) / matrix
        bound = 0.3 if name == OURS else None
        report.claims.append(Claim(f"{num} pairs: peak memory of {name}", share, at_most=bound))


def _peak_memory(name: str, num: int) -> int:
    """Return the peak increase of memory during a forward and backward, in bytes."""
    loss = ours() if name == OURS else peers()[name]
    z = projections(num)
    run(loss, projections(64))  # warm up: libraries, threads and workspaces do not count
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(loss, z)
        return torch.cuda.max_memory_allocated() - before
    # The peak that getrusage reports survives exec: a child would start with its parent's.
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to current use (man 5 proc)
    before = _resident_bytes("VmRSS")
    run(loss, z)
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    """Return this process's memory from the kernel: VmRSS is current, VmHWM is the peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux only")
    return int(found[1]) * 1024


def memory_bytes() -> int:
    """Return the total memory of the device."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_properties(DEVICE).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _errors(report: Report, losses: dict[str, Loss]) -> None:
    """Compare float32 values and gradients with the definition in float64."""
    z = projections(256)
    value, gradient = run(_definition, z.double())
    for name, loss in losses.items():
        found, slope = run(loss, z)
        error = (found.double() - value).abs() / value
        off = (slope.double() - gradient).norm() / gradient.norm()
        bound = 1e-5 if name == OURS else None
        report.claims += [
            Claim(f"256 pairs: relative error of the loss of {name}", float(error), at_most=bound),
            Claim(f"256 pairs: relative error of the gradient of {name}", float(off), None, bound),
        ]


def _definition(z: torch.Tensor) -> torch.Tensor:
    """Compute SimCLR eq. 1 from the full similarity matrix."""
    unit = F.normalize(z, dim=1)
    similarity = unit @ unit.T / TEMPERATURE
    num = len(z)
    itself = torch.eye(num, dtype=torch.bool, device=z.device)
    positive = torch.arange(num, device=z.device).roll(num // 2)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), positive)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        sys.stdout.write(str(_peak_memory(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
