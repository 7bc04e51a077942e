"""Shards hold the same bytes, packed in one part or several, in one go or after kills."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
from contract.console import OF_A_JOB, PREEMPTED, Made, call, datasets, end, start, wait_until

# The first 16 digits of the sha256 of each data set, over all shards. They are the same with all of
# numpy's vector instructions as with none; a change of them is a change of every packed source.
SIMULATED = {
    "index/acquired": "f4823025b46b052c",
    "index/baseline": "753dbbd96af8dd3c",
    "index/block": "f5a5fd42d16a2030",
    "index/crc32": "4236843d5d1fe614",
    "index/epsg": "5e7f1226a62ce031",
    "index/facts_crc32": "091be72b23e4aa53",
    "index/id": "e17f46a8b35bad05",
    "index/offset": "38723a2e5e8a17aa",
    "index/offset_authority": "4cb4a20a95d5df0d",
    "index/path": "e17f46a8b35bad05",
    "index/place": "a8d04b447f822e47",
    "index/product": "d01439948df2cbf0",
    "index/split": "70cc319410f01897",
    "index/tile": "75e6f70091cc06ee",
    "index/transform": "f149f161be9d6a74",
    "index/valid_fraction": "2f20cd03c9cd392a",
    "labels/bigearthnet19": "35b68b6077c33593",
    "labels/bigearthnet43": "ed8b77d46fa058eb",
    "labels/irrigation_extended": "3aa13a364198dd04",
    "labels/irrigation_regular": "10e840f3986657d8",
    "patches/b10": "d541f347a16b875d",
    "patches/b20": "50b3185e770f610d",
    "patches/b60": "d9c250155e535be0",
    "statistics/histogram": "a4e2b37609e329c3",
}
EUROSAT = {
    **dict.fromkeys(
        (f"index/{name}" for name in ("acquired", "baseline", "block", "place", "product")),
        "b0f66adc83641586",  # six empty strings
    ),
    **dict.fromkeys(("index/split", "index/tile"), "b0f66adc83641586"),
    "index/crc32": "d9119fdc7d6d24a2",
    "index/epsg": "9cdd8b90c14960ad",
    "index/facts_crc32": "1846345ac8126c89",
    "index/id": "7fe86bd2f81c6c4c",
    "index/offset": "15ec7bf0b50732b4",
    "index/offset_authority": "c0c69db7cc3975c1",
    "index/path": "eaa280c22def9200",
    "index/transform": "aa1e3857e3f3f002",
    "index/valid_fraction": "f46913286d895f62",
    "labels/eurosat": "5c40835e685abf68",
    "patches/b10": "dbd9a2695bf2c30a",
    "statistics/histogram": "cdc18111745dca02",
}


def sums(folder: Path) -> dict[str, str]:
    """Return a sum for each data set, over all shards in order; HDF5's own bytes are not in it."""
    found: dict[str, hashlib._Hash] = {}
    for shard in sorted(folder.glob("shard-*.h5")):
        for name, content in datasets(shard).items():
            found.setdefault(name, hashlib.sha256()).update(content)
    return {name: digest.hexdigest()[:16] for name, digest in found.items()}


def whole_files(folder: Path) -> dict[str, bytes]:
    """Return all that readers of shards may open."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def eurosat(root: Path) -> None:
    """Write six GeoTIFFs of 13 bands in two classes, of values that need no random numbers."""
    places = np.arange(13 * 64 * 64, dtype=np.int64).reshape(13, 64, 64)
    for number, kind in enumerate(("Forest", "River") * 3):
        pixels = (places * (2 * number + 3) * 7919 % 9973 + 1).astype(np.uint16)
        path = root / kind / f"{kind}_{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "dtype": "uint16", "count": 13, "height": 64, "width": 64}
        transform = rasterio.Affine(10, 0, 404400 + 640 * number, 0, -10, 5342400)
        with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=transform) as file:
            file.write(pixels)


def test_simulated_patches_are_packed_to_the_recorded_bytes(packed):
    assert packed.ended.out == (
        "shards: 64 simulated patches in 3 shards, 10.4 MB, manifest written; 12 bands, 120 pixels "
        "of 10 m; tasks: bigearthnet43 (43 classes), bigearthnet19 (19 classes), "
        "irrigation_regular (2 classes), irrigation_extended (2 classes)\n"
    )
    assert sums(packed.folder) == SIMULATED


def test_class_folders_are_packed_to_the_recorded_bytes(tmp_path):
    eurosat(tmp_path / "rasters")
    ended = call("pack", "source=eurosat", "source.root=rasters", "output=shards", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert sums(tmp_path / "shards") == EUROSAT


@pytest.mark.slow
def test_parts_on_this_machine_leave_the_same_files(packed, tmp_path):
    ended = call("pack", *again(packed), "cluster=laptop", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert whole_files(tmp_path / "shards") == whole_files(packed.folder)


def test_members_of_a_job_array_leave_the_same_files_whatever_their_order(
    packed, tmp_path, monkeypatch
):
    for name, value in (
        OF_A_JOB | {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_MAX": "1"}
    ).items():
        monkeypatch.setenv(name, value)
    for member in ("1", "0"):
        assert not (tmp_path / "shards" / "manifest.json").exists()
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", member)
        ended = call("pack", *again(packed), cwd=tmp_path)
        assert ended.code == 0, ended.err
    assert whole_files(tmp_path / "shards") == whole_files(packed.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1), (signal.SIGUSR2, 75)],
)
def test_a_pack_that_is_cut_goes_on_and_leaves_the_same_files(packed, tmp_path, number, code):
    environment = {}
    if number is signal.SIGUSR2:  # the warning of a time limit, in a job
        scontrol = tmp_path / "commands" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f"#!/bin/sh\n[ $1 = requeue ] || echo '{PREEMPTED}'\n")
        scontrol.chmod(0o755)
        environment = OF_A_JOB | {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = start("pack", *again(packed), cwd=tmp_path, **environment)
    wait_until((tmp_path / "shards" / "shard-00000.h5").exists, process)
    process.send_signal(number)
    ended = end(process)
    assert (ended.code, ended.out) == (code, ""), ended
    assert not (tmp_path / "shards" / "manifest.json").exists()
    ended = call("pack", *again(packed), cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert whole_files(tmp_path / "shards") == whole_files(packed.folder)
    assert not list((tmp_path / "shards").rglob(".*.tmp"))


def test_a_finished_pack_is_left_alone(packed, workspace):
    before = {path: path.stat().st_mtime_ns for path in packed.folder.glob("*")}
    ended = call("pack", *again(packed), cwd=workspace)
    assert ended.code == 0, ended.err
    assert {path: path.stat().st_mtime_ns for path in packed.folder.glob("shard-*.h5")}.items() <= (
        before.items()
    )


def again(packed: Made) -> tuple[str, ...]:
    """Return the settings of the pack that all tests compare with."""
    rasters = packed.folder.parent / "rasters"
    source = ("source=simulated", f"source.root='{rasters}'", "source.num_patches=64")
    return (*source, "output=shards", "shard_size_mib=4")
