"""The three studies of the post on the test cluster, each preempted twice at random times.

Usage: python benchmarks/studies.py [FOLDER [full]]. At ``scale=toy``, on simulated patches with
the post's two label sets; a few arms and two seeds, or all arms and three seeds with ``full``.
FOLDER keeps the reports for inspection. The study of rates is repeated without Slurm or preemption:
its tables must equal those of the preempted runs byte for byte.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from report import keep, origin

# the repository root too: tests/ has folders with the names of packages, which would hide them
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from slurm.cluster import Cluster, missing, running_cluster, wait_until
from slurm.runs import preempt, verb

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig

NUM_PATCHES = 384
PREEMPTIONS = 2
LIMIT_S = 3600.0
TABLES = ("scores.csv", "arms.csv", "stability.csv", "differences.csv")
LEARNING = ("curves.png", "curves.csv")
COUPLETS = ("heatmap.png", "operations.png", "operations.csv", "lowest_quarter.csv")
FILES = {
    "augmentation": ("recipe/allowed.yaml", *COUPLETS),
    "optimizer": ("arms.png", *LEARNING),
    "rate": ("arms.png", *LEARNING),
}
ARMS = {
    "augmentation": ["none", "rotation+flip", "flip+gain", "rotation+gain"],
    "optimizer": ["adam 0.001", "sgd 0.05", "sgd 2021"],
    "rate": ["0.0001", "0.001", "0.05"],
}


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one study."""

    study: str
    runs: int  # arms times seeds
    minutes: float  # from the command to the report
    preemptions: int  # jobs of higher priority that occupied all nodes
    cut: int  # attempts that were stopped and requeued
    attempts: int  # starts of all runs
    lost_steps: int  # steps computed but not saved
    files: int  # expected figures and tables
    missing: str  # missing files, empty figures, and arms without a score


def main() -> None:
    """Run the studies, check every file, compare, and save the table."""
    if missing():
        print(f"no Slurm cluster here: {missing()}")
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary, running_cluster() as cluster:
        folder = Path(sys.argv[1] if sys.argv[1:] else temporary).absolute()
        source = SimulatedConfig(
            root=str(folder / "rasters"),
            num_patches=NUM_PATCHES,
            bands=["B02", "B03", "B04", "B08"],
        )
        pack(PackConfig(source=source, output=str(folder / "shards")), progress=False)
        rows = [make(cluster, folder, name) for name in FILES]
        same = undisturbed_is_equal(folder)
    plain = {"studies": [asdict(row) for row in rows], "same_as_undisturbed": same}
    keep("studies", page(rows, same, load), plain)
    if not same or any(row.missing for row in rows):
        raise SystemExit("a file is missing, or a number differs")


def settings(folder: Path, study: str) -> list[str]:
    """Return the arguments of the command except where it runs."""
    full = "full" in sys.argv
    arms = "" if full else ",".join(ARMS[study])
    return [
        *("scale=toy", f"study={study}", f"shards=['{folder / 'shards'}']"),
        "tasks=[irrigation_regular,irrigation_extended]",
        *([f"arms=[{arms}]"] if arms else []),
        f"seeds={'[0,1,2]' if full else '[0,1]'}",
    ]


def make(cluster: Cluster, folder: Path, study: str) -> Row:
    """Submit a study, preempt it, and wait for its report."""
    output, start = folder / study, time.monotonic()
    command = (
        *settings(folder, study),
        *("cluster=slurm_cpu_example", "cluster.cpus_per_task=4", "cluster.time_min=30"),
        f"output='{output}'",
    )
    done = verb("study", *command, cluster=cluster)
    if done.returncode:
        raise RuntimeError(done.stderr)
    last = done.stdout.splitlines()[-1].split()[2].rstrip(",")
    for _ in range(PREEMPTIONS):
        disturb(cluster, output, random.uniform(0, 10))
    state = cluster.wait_for(last, "COMPLETED", "FAILED", "CANCELLED", timeout_s=LIMIT_S)
    if state["JobState"] != "COMPLETED":
        raise RuntimeError(f"the report of {study} is {state['JobState']}")
    return look(output, study, (time.monotonic() - start) / 60)


def disturb(cluster: Cluster, output: Path, after_s: float) -> None:
    """Wait until another run trains, then ``after_s`` more; then preempt all nodes."""
    begun = len(events(output, "training"))
    wait_until(lambda: len(events(output, "training")) > begun, "a run that trains", LIMIT_S)
    time.sleep(after_s)
    cluster.wait_for(preempt(cluster), "COMPLETED", timeout_s=LIMIT_S)


def events(output: Path, kind: str) -> list[dict[str, object]]:
    """Return the recorded events of one kind from all runs of a study."""
    paths = output.glob("runs/*/*/attempts.jsonl")
    lines = [line for path in paths for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in found if event["event"] == kind]


def look(output: Path, study: str, minutes: float) -> Row:
    """Return the results of a study from its output folder."""
    names = ("report.html", "differences.png", *TABLES, *FILES[study])
    absent = [name for name in names if not (output / name).exists()]
    empty = [path.name for path in output.glob("*.png") if path.stat().st_size < 10_000]
    with (output / "scores.csv").open() as file:
        unscored = [row["arm"] for row in csv.DictReader(file) if row["value"] == "nan"]
    lost = sum(int(str(event.get("lost_steps", 0))) for event in events(output, "training"))
    return Row(
        study,
        len(events(output, "finished")),
        round(minutes, 1),
        PREEMPTIONS,
        len(events(output, "stop")),
        len(events(output, "start")),
        lost,
        len(names),
        ", ".join([*absent, *empty, *unscored]),
    )


def undisturbed_is_equal(folder: Path) -> bool:
    """Run the study of rates here, without Slurm; return whether every table is equal."""
    output = folder / "undisturbed"
    command = [*settings(folder, "rate"), f"output='{output}'"]
    subprocess.run([sys.executable, "-m", "jobs.commands.study", *command], check=True)
    return all(filecmp.cmp(output / name, folder / "rate" / name, shallow=False) for name in TABLES)


def page(rows: list[Row], same: bool, load: float) -> str:
    """Return the table as Markdown."""
    names = [field.name for field in fields(Row)]
    lines = ["# The three studies on the test cluster, each preempted twice", ""]
    lines += [f"| {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines += [f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(str(getattr(row, name)) for name in names)} |" for row in rows]
    lines += [
        "",
        "- `cut`: attempts that were stopped and came back; `missing`: files that are not there, "
        "and arms without a score.",
        "- The study of rates, made again here without Slurm and undisturbed, leaves "
        f"{'the same' if same else 'OTHER'} bytes in {', '.join(TABLES)}.",
        f"- Four jobs at a time on the cores of this machine; load before the first: {load:.1f}.",
        "",
        *(f"{key}: {value}  " for key, value in origin(("torch", "submitit")).items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
