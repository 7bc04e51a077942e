"""Time from sbatch to the first training step on the test cluster, and our share of it.

Usage: python benchmarks/startup.py [ROUNDS]. Two nodes with two ranks each, on a Slurm cluster of
four nodes on this machine: all ranks share its cores. Slurm's part ends with the first line of the
batch script, which records the time; the run itself records the other times.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from report import Claim, Report

# the repository root too: tests/ has folders with the names of packages, which would hide them
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from slurm.cluster import Cluster, missing, running_cluster
from slurm.runs import Run, submit

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig

PHASES = (
    "Slurm, up to the batch script",
    "srun, Python, the jobs package",
    "torch, rendezvous, model, checkpoint",
    "first step",
)
NEW, RESUMED = "new run", "resumed run"
WHOLE, OWN = "{}: all together, s", "{}: all but Slurm's part, s"
OWN_S = 10.0


def main() -> None:
    """Measure, print and save the results."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if missing():
        print(f"no Slurm cluster here: {missing()}")
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        folder = Path(name)
        source = SimulatedConfig(root=f"{name}/rasters", num_patches=48, bands=["B02", "B04"])
        pack(PackConfig(source=source, output=f"{name}/shards"), progress=False)
        fresh = [_phases(cluster, folder, str(number)) for number in range(rounds)]
        # the same folders again: each run loads its checkpoint and has no steps left
        again = [_phases(cluster, folder, str(number)) for number in range(rounds)]
    report = Report("startup", "From sbatch to the first step, 2 nodes x 2 ranks", "job")
    report.packages = ("torch", "submitit")
    for title, phases in ((NEW, fresh), (RESUMED, again)):
        columns = list(zip(*phases, strict=True))
        for words, seconds in zip(PHASES, columns, strict=False):
            text = f"{title}: {words}, s (from {min(seconds):.1f} to {max(seconds):.1f})"
            report.claims.append(Claim(text, statistics.median(seconds)))
        whole = statistics.median(sum(phase) for phase in phases)
        own = statistics.median(sum(phase[1:]) for phase in phases)
        report.claims.append(Claim(WHOLE.format(title), whole))
        report.claims.append(Claim(OWN.format(title), own, at_most=OWN_S))
    report.notes.append(f"medians of {rounds} jobs, one after the other")
    # four ranks importing torch occupy the cores, so any other load delays them
    report.notes.append(f"load average before the first of them: {load:.1f}")
    report.write()


def _phases(cluster: Cluster, folder: Path, name: str) -> list[float]:
    """Train two steps, unless already done; return the seconds between successive events."""
    began = folder / f"{name}-began"
    setup = f"cluster.setup=['date +%s.%N > {began}']"
    run = submit(cluster, folder / "shards", folder / name, "max_steps=2", setup)
    fields = cluster.wait_for(run.job_id, "COMPLETED", "FAILED")
    if fields["JobState"] != "COMPLETED":
        raise RuntimeError(run.log())
    times = [_submitted(run), float(began.read_text())]
    times += [run.events(kind)[-1]["time"] for kind in ("start", "training")]
    times += [m["time"] for m in run.metrics() if m["time"] > times[-1]][:1]
    return [after - before for before, after in pairwise(times)]


def _submitted(run: Run) -> float:
    record = json.loads((run.folder / "slurm" / "submission-pretrain.json").read_text())
    return float(record["time"])


if __name__ == "__main__":
    main()
