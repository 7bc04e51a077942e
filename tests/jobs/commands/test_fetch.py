"""``simclr-fetch`` as users start it, against a local server."""

import json
import signal
import time
from importlib.util import find_spec

import pytest
import yaml
from contract.console import call, end, files, start, wait_until
from make_scenes import BOX, DECIMATION, scene
from stac_server import Server

from jobs.commands.fetch import Fetch
from preprocess.config import FetchConfig


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    return root, [scene(root, day="20190115"), scene(root, day="20190715", cloud=50)]


@pytest.fixture
def server(served):
    with Server(*served) as running:
        yield running


def settings(server, *more: str) -> tuple[str, ...]:
    return (
        f"url={server.url}/stac", f"boxes=[{BOX}]".replace(" ", ""), "max_cloud=20",
        "output=cogs", *more,
    )  # fmt: skip


def test_a_dry_run_tells_scenes_patches_bytes_and_hours_and_writes_nothing(server, tmp_path):
    ended = call("fetch", *settings(server), "--dry-run", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == "cogs: 1 of 2 scenes, at most 72 patches, 0.00 GB"
    assert second.startswith("0.0 hours at the ")
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_ends_with_what_there_is_and_a_repetition_adds_nothing(server, tmp_path):
    for _ in range(2):
        ended = call("fetch", *settings(server), cwd=tmp_path)
        assert ended.code == 0
        assert ended.out == "cogs: 1 of 2 scenes, at most 72 patches, 0.00 GB\n"
    log = (tmp_path / "cogs" / "fetching" / "fetch.log").read_text().splitlines()
    ends = [
        line for line in log if line.endswith("cogs: 1 of 2 scenes, at most 72 patches, 0.00 GB")
    ]
    assert len(ends) == 2
    assert any("S2A_10SFH_20190115_0_L2A: 72 patches at most" in line for line in log)
    there = {name for name in files(tmp_path / "cogs") if not name.startswith("fetching/")}
    assert "scenes.csv" in there
    assert len(there) == 1 + 12 + 1 + 2  # rasters, classification, item and state


def test_a_chain_packs_what_it_has_fetched(server, tmp_path):
    pack = (
        "pack", "source=cog_l2a", f"source.decimation={DECIMATION}", "output=shards",
    )  # fmt: skip
    ended = call("chain", "fetch", *settings(server), *pack, cwd=tmp_path)
    assert ended.code == 0, ended.err
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert sum(shard["rows"] for shard in manifest["shards"]) > 0
    again = call("chain", "fetch", *settings(server), *pack, cwd=tmp_path)
    assert again.out.count("done before") == 2


def test_a_chain_on_slurm_lets_packing_wait_for_the_fetch(server, tmp_path):
    ended = call(
        *("chain", "--dry-run", "cluster=slurm_cpu_example", "fetch", *settings(server)),
        *("pack", "source=california_cog", "output=shards"),
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert "pack\nwould be submitted, after JOB:\n" in ended.out


def test_without_a_network_one_line_says_so_with_the_fix(tmp_path):
    ended = call(
        "fetch", "boxes=[[1,2,3,4]]", "output=o", "url=http://127.0.0.1:9/stac", cwd=tmp_path
    )
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert "cannot reach http://127.0.0.1:9/stac (no connection)" in line
    assert "cluster.partition=NAME" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("output=o",), "what=stac needs an area: area=central_valley"),
        (("boxes=[[1,2,3,4]]",), "output is empty; give the folder to fill: output=DIR"),
        (("area=central_vally", "output=o"), "did you mean central_valley?"),
        (("what=landsat", "output=o"), "what"),
        (("boxes=[[3,2,1,4]]", "output=o"), "boxes holds [3, 2, 1, 4]"),
        (("boxes=[[1,2,3,4]]", "output=o", "dates=[2019]"), "dates holds '2019'"),
        (("boxes=[[a,2,3,4]]", "output=o"), "boxes holds ['a', 2, 3, 4]"),
        (("geojson=none.json", "output=o"), "geojson: none.json cannot be read"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(words, told, tmp_path):
    ended = call("fetch", *words, cwd=tmp_path)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(
        "jobs.commands.fetch.find_spec", lambda name: None if "pystac" in name else find_spec(name)
    )
    command = Fetch(FetchConfig(output="o", boxes=[BOX]))
    with pytest.raises(
        ValueError, match=r"fetching needs packages that are missing: pip install pystac-client"
    ):
        command.validate(None)


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line_and_the_same_command_continues(server, tmp_path):
    server.state.rate = 200_000.0
    process = start("fetch", *settings(server), cwd=tmp_path)
    wait_until(lambda: list(tmp_path.glob("cogs/.fetch/*/*.tif")) != [], process)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    ended = end(process)
    assert time.monotonic() - started < 10
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("simclr-fetch: interrupted; the same command")
    assert "Traceback" not in ended.err
    log = (tmp_path / "cogs" / "fetching" / "fetch.log").read_text()
    assert log.splitlines()[-1].endswith("ERROR stopped by KeyboardInterrupt")
    server.state.rate = 0.0
    assert call("fetch", *settings(server), cwd=tmp_path).code == 0


def test_the_area_is_the_same_for_fetching_and_for_packing(tmp_path):
    fetched = yaml.safe_load(call("fetch", "area=central_valley", "--cfg", "job", cwd=tmp_path).out)
    packed = yaml.safe_load(call("pack", "source=california_cog", "--cfg", "job", cwd=tmp_path).out)
    assert fetched["boxes"] == packed["source"]["select"]["boxes"]
    assert len(fetched["boxes"]) == 8
