"""Probe, k-NN and intervals on 50,000 cached features, compared with scikit-learn's probes.

Usage: python benchmarks/evaluate.py [PATCHES]. Simulated ResNet-18 features (512, non-negative,
correlated) of 10 classes: half for training, a fifth for validation, the rest for testing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import Claim, Report, Timing
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from simclr.evaluation.bootstrap import Row, choose_blocks, score_results
from simclr.evaluation.config import EvaluateConfig, Protocol
from simclr.evaluation.features import FeatureCache, Features
from simclr.evaluation.jobs import EvalData, EvalJob, EvaluatedEncoder
from simclr.evaluation.probes import PENALTIES, choose_probe, knn, linear_probe, standardisation
from simclr.evaluation.splits import Split
from simclr.evaluation.task import Footprints, Task

NUM_CLASSES, WIDTH, NEIGHBOURS, RESAMPLES = 10, 512, 20, 1000
OURS, PEER = "probe, k-NN, all scores, intervals", "scikit-learn: probe and k-NN, no intervals"
LIMIT_S = 60


@dataclass(frozen=True)
class Fitted:
    """A peer's probe and the penalty used to fit it."""

    penalty: float
    model: Any


def main() -> None:
    """Measure, print and save the results."""
    torch.set_num_threads(os.cpu_count() or 1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    features, labels = simulate(count)
    rows = np.random.default_rng(1).permutation(count)
    split = Split(*(np.sort(part) for part in np.split(rows, [count // 2, count * 7 // 10])))
    report = Report("evaluate", "Evaluation on cached features", "patches", OURS)
    report.packages = ("torch", "numpy", "scikit-learn")
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), {"simulated": True})
        cache.write("pretrained", features)
        own, scored = timed(OURS, count, lambda: evaluate(cache, labels, split))
    peer, accuracies = timed(PEER, count, lambda: ask_peer(features, labels, split))
    report.timings += [own, peer]
    report.claims.append(Claim("seconds of the evaluation", own.wall_s[0], at_most=LIMIT_S))
    report.claims.append(Claim("times as fast as scikit-learn, which does less", own.times(peer)))
    for row, theirs in zip(scored, accuracies, strict=True):
        gap = abs(row.intervals["accuracy"].value - theirs)
        report.claims.append(Claim(f"accuracy of {row.protocol}: gap to the peer", gap))
    report.notes.append(
        f"{count} x {WIDTH}, {NUM_CLASSES} classes, {RESAMPLES} resamples; one round each; the "
        "peer's k-NN votes by cosine distance without a temperature"
    )
    report.write()


def simulate(count: int) -> tuple[Features, Any]:
    """Return non-negative float32 features (count, 512) and their labels (count,)."""
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, count)
    centres = random.normal(0, 0.6, (NUM_CLASSES, 64))
    hidden = centres[labels] + random.standard_normal((count, 64))
    mixed = hidden @ random.normal(0, 0.15, (64, WIDTH)) + 0.3 * random.normal(size=(count, WIDTH))
    return np.maximum(mixed, 0).astype(np.float32), labels


def timed(name: str, amount: int, work: Callable[[], Any]) -> tuple[Timing, Any]:
    """Return the timing and the result of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    seconds = (time.perf_counter() - wall,), (time.process_time() - cpu,)
    return Timing(name, amount, *seconds), found


def evaluate(cache: FeatureCache, labels: Any, split: Split) -> list[Row]:
    """Read the features, fit both classifiers, and score them with intervals."""
    task, config = make_task(labels), EvaluateConfig(neighbours=NEIGHBOURS)
    features = cache.stored("pretrained", len(labels))
    data = EvalData(task, lambda _: features, config)
    encoder = EvaluatedEncoder("pretrained", 0, None)
    results = [
        run(EvalJob(encoder, protocol, 1.0, 0, split), data)
        for protocol, run in ((Protocol.probe, linear_probe), (Protocol.knn, knn))
    ]
    blocks = choose_blocks({}, len(split.test))
    return score_results(results, task.kind, split.test, blocks, RESAMPLES)


def make_task(labels: Any) -> Task:
    """Return a task with one class per patch and unknown places."""
    none = np.full(len(labels), "")
    ground = Footprints(np.zeros(len(labels), np.int32), none, none, 0.0)
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    targets = np.arange(NUM_CLASSES) == labels[:, None]
    ids = np.arange(len(labels)).astype(str)
    return Task("simulated", "single", names, targets, ids, none, none, none, ground, none, 0)


def ask_peer(features: Features, labels: Any, split: Split) -> tuple[float, float]:
    """Return the test accuracy of scikit-learn's probe, selected like ours, and of its k-NN."""
    mean, scale = standardisation(torch.from_numpy(features[split.train]))
    scaled = ((torch.from_numpy(features) - mean) / scale).float().numpy()
    parts = [(scaled[rows], labels[rows]) for rows in (split.train, split.validation, split.test)]
    train, validation, test = parts
    best = choose_probe(peer_path(*train), lambda probe: probe.model.score(*validation))
    neighbours = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(*train)
    return best.model.score(*test), neighbours.score(*test)


def peer_path(features: Features, labels: Any) -> Iterator[Any]:
    """Yield probes with the same penalties as ours, each warm-started from the previous one."""
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True)
    for penalty in PENALTIES:
        model.set_params(C=1 / (penalty * len(features))).fit(features, labels)
        yield Fitted(penalty, model)


if __name__ == "__main__":
    main()
