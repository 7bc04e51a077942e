"""One pack, one training, one evaluation and one export, made once by the console scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract.console import TRAINING, Made, call, files


def made(folder: Path, command: str, *arguments: str) -> Made:
    """Run a command in the parent of its output, which it must not fail in."""
    ended = call(command, *arguments, cwd=folder.parent)
    assert ended.code == 0, ended.err
    listed = {name for name in files(folder) if not name.startswith("code/")}
    return Made(folder, ended, frozenset(listed))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep processes that share few cores from waiting for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """Return the folder in which all commands of these fixtures are given."""
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="session")
def packed(workspace) -> Made:
    """Pack 64 simulated patches into three shards."""
    source = ("source=simulated", "source.root=rasters", "source.num_patches=64")
    return made(workspace / "shards", "pack", *source, "output=shards", "shard_size_mib=4")


@pytest.fixture(scope="session")
def trained(packed, workspace) -> Made:
    """Train 24 steps in this process, with checkpoints at 10 and 20."""
    (workspace / "run").mkdir()
    return made(workspace / "run", "pretrain", *TRAINING, "shards=[shards]", "run_dir=run")


@pytest.fixture(scope="session")
def evaluated(packed, trained) -> Made:
    """Score that run on a label set of the shards."""
    settings = ("task=bigearthnet19", "seeds=[0]", "bootstrap=100")
    return made(trained.folder, "evaluate", "run=run", "shards=shards", *settings)


@pytest.fixture(scope="session")
def exported(trained, workspace) -> Made:
    """Export the encoder of that run."""
    return made(workspace / "encoder", "export", "run=run", "output=encoder")
