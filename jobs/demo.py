"""The whole way in one command: rasters come in, a scored and exported encoder goes out.

Every step is a command that a person could type; it is shown before it runs. ``DATA`` in the
environment names a BigEarthNet root; without it the patches are simulated. Run again, it goes on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from preprocess.shards import open_readers, read_manifest
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

FOLDER = Path("demo")
NUM_PATCHES = 640  # minutes on two cores; of a real root, too, only so many are taken
BATCH_SIZE = 64
FEWEST_TO_SCORE = 60  # below, no split into train, validation and test says anything
NUM_RANKS = 2
TASK = "bigearthnet19"


@dataclass(frozen=True, slots=True)
class Demo:
    """Where a demonstration reads and writes.

    Attributes:
        source: kind of source.
        root: folder with rasters.
        folder: all that it leaves.
    """

    source: str
    root: Path
    folder: Path

    @property
    def shards(self) -> Path:
        """Packed patches."""
        return self.folder / "shards"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.folder / "run"

    @property
    def export(self) -> Path:
        """The published encoder."""
        return self.folder / "export"


def main() -> int:
    """Run the demonstration; return the exit code of the first step that fails."""
    start = time.monotonic()
    try:
        demo = open_demo(os.environ.get("DATA", ""))
    except ValueError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 2
    code = _run("pack", pack_arguments(demo)) or _run("verify", [_is("shards", demo.shards)])
    for verb, arguments in {} if code else steps_after_packing(demo).items():
        code = code or _run(verb, arguments)
    if not code:
        sys.stdout.write(summary(demo, time.monotonic() - start))
    return code


def open_demo(data: str) -> Demo:
    """Return what to do with ``DATA``; nothing means simulated patches.

    Raises:
        ValueError: it is no BigEarthNet root.
    """
    if not data:
        return Demo("simulated", FOLDER / "simulated" / "rasters", FOLDER / "simulated")
    root = Path(data).expanduser()
    kind = kind_of_root(root)
    return Demo(kind, root, FOLDER / kind)


def kind_of_root(root: Path) -> str:
    """Say which BigEarthNet lies in a folder.

    Raises:
        ValueError: none does.
    """
    if (root / "metadata.parquet").exists() or (root / "BigEarthNet-S2").is_dir():
        return "bigearthnet_v2"
    if (root / "BigEarthNet-v1.0").is_dir() or any(root.glob("S2?_MSIL2A_*/*_B02.tif")):
        return "bigearthnet_v1"
    raise ValueError(
        f"DATA is {root}, which holds neither BigEarthNet-v1.0 nor BigEarthNet-S2 with "
        "metadata.parquet; give their folder, or leave DATA out for simulated patches"
    )


def pack_arguments(demo: Demo) -> list[str]:
    """Return the arguments of ``simclr-pack``."""
    size = "source.num_patches" if demo.source == "simulated" else "limit"
    return [
        f"source={demo.source}",
        _is("source.root", demo.root),
        _is("output", demo.shards),
        f"{size}={NUM_PATCHES}",
        "shard_size_mib=16",
    ]


def steps_after_packing(demo: Demo) -> dict[str, list[str]]:
    """Return the verbs that follow, with their arguments; a few patches cannot be scored."""
    splits = count_splits(demo.shards)
    rows, training = splits.total(), splits["train"] + splits[""]
    short = training < BATCH_SIZE  # then train on all there are
    batch = max(NUM_RANKS, min(BATCH_SIZE, rows // NUM_RANKS * NUM_RANKS))
    steps = {
        "pretrain": [
            "recipe=laptop",
            f"shards=[{_quoted(demo.shards)}]",
            _is("run_dir", demo.run),
            f"data.global_batch_size={batch}",
            *(['data.splits=[train,validation,test,""]'] if short else []),
            "cluster=laptop",
            f"cluster.tasks_per_node={NUM_RANKS}",
        ],
        "evaluate": [
            _is("run", demo.run),
            _is("shards", demo.shards),
            f"task={TASK}",
            "seeds=[0]",
        ],
        "export": [_is("run", demo.run), _is("output", demo.export)],
    }
    if rows < FEWEST_TO_SCORE:
        del steps["evaluate"]
    return steps


def count_splits(shards: Path) -> Counter[str]:
    """Count the patches of each split."""
    readers = open_readers(shards, read_manifest(shards))
    return Counter(str(split) for reader in readers for split in reader.index("split"))


def summary(demo: Demo, seconds: float) -> str:
    """Return where the results lie, and how far the loss came."""
    records = read_metrics(demo.run / METRICS_NAME)
    first, last = records[0], records[-1]
    notice = "simulated patches: the scores say that it works, nothing about Sentinel-2\n"
    scores = demo.run / "evaluation.md"
    return (
        f"\n{'-' * 78}\n{notice if demo.source == 'simulated' else ''}"
        f"contrastive loss {first['loss']:.3f} -> {last['loss']:.3f} in {last['step']} steps on "
        f"{NUM_RANKS} ranks; chance is {last['chance_level']:.3f}\n"
        f"shards    {demo.shards}\n"
        f"run       {demo.run}\n"
        f"scores    {scores if scores.exists() else 'none: too few patches to score an encoder'}\n"
        f"encoder   {demo.export}\n"
        f"{seconds:.0f} s\n"
    )


def _run(verb: str, arguments: list[str]) -> int:
    command = [f"simclr-{verb}", *arguments]
    sys.stdout.write(f"\n$ {shlex.join(command)}\n")
    sys.stdout.flush()
    module = [sys.executable, "-m", f"jobs.commands.{verb}", *arguments]
    return subprocess.run(module, check=False).returncode


def _is(key: str, path: Path) -> str:
    return f"{key}={_quoted(path)}"


def _quoted(path: Path) -> str:
    """Quote a path for hydra, in whose grammar spaces and signs would mean something."""
    text = str(path)
    if re.fullmatch(r"[\w.-]*/[\w./-]+", text, re.ASCII):  # a slash: no number, no null
        return text
    # backslashes count only in front of a quote; there each is written twice
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), text)
    return f'"{escaped}"'


if __name__ == "__main__":
    raise SystemExit(main())
