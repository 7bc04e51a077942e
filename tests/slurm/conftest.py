"""A real Slurm for the tests of this folder, started once, swept clean after each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm.cluster import Cluster, missing, running_cluster
from slurm.runs import Run, submit

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig


@pytest.fixture(scope="session")
def slurm_is_here() -> None:
    """Skip where no cluster can be; with REQUIRE_SLURM=1 one is demanded."""
    reason = missing()
    if reason and os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(f"REQUIRE_SLURM=1, but {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def started_cluster(slurm_is_here: None) -> Iterator[Cluster]:
    """Start the cluster."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(started_cluster: Cluster) -> Iterator[Cluster]:
    """Give a cluster without jobs; afterwards no node may have been drained."""
    yield started_cluster
    started_cluster.clear()
    drained = started_cluster.run("sinfo", "-R", "-h").strip()
    assert not drained, f"a node was drained: {drained}"


@pytest.fixture(scope="session")
def unbroken(
    started_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Train once without any disturbance; what disturbed runs leave is compared with it."""
    run = submit(started_cluster, shards, tmp_path_factory.mktemp("unbroken") / "run")
    started_cluster.wait_for(run.job_id, "COMPLETED", "FAILED", timeout_s=240)
    return run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack a few simulated patches, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("packed on slurm")
    source = SimulatedConfig(root=str(folder / "rasters"), num_patches=48, bands=["B02", "B04"])
    pack(PackConfig(source=source, output=str(folder / "shards")), progress=False)
    return folder / "shards"


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parents[2]
