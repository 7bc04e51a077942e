"""Fetching from a server that misbehaves, and in a process that is killed: never half a file."""

import fcntl
import json
import os
import random
import subprocess
import sys
import time
from itertools import count

import numpy as np
import pytest
from make_scenes import BOX, tree
from stac_server import FAULTS

from preprocess.fetch import fetch
from preprocess.fetch.http import FetchError

CHILD = """
import json, sys
from preprocess.config import FetchConfig
from preprocess.fetch import fetch
print("ready", flush=True)
fetch(FetchConfig(**json.loads(sys.argv[1])))
"""


def faulty(seed: int, share: float, kinds=FAULTS):
    """Return a function that disturbs a share of all answers, and counts how many."""
    generator = random.Random(seed)

    def fault(path: str, number: int) -> str:
        if generator.random() >= share:
            return ""
        fault.count += 1
        return generator.choice(kinds)

    fault.count = 0
    return fault


def disturbed(settings, server, name: str, fault) -> int:
    """Fetch until it succeeds; return how often it gave up before, each time with one line."""
    messages = []
    while len(messages) < 50:
        server.state.fault = fault
        try:
            fetch(settings(name))
            break
        except FetchError as error:
            messages.append(str(error))
        finally:
            server.state.fault = lambda path, number: ""
    assert len(messages) < 50, "it never ends"
    assert not [message for message in messages if "\n" in message]
    return len(messages)


def test_random_faults_leave_the_same_bytes(settings, server, tmp_path):
    fetch(settings("undisturbed"))
    fault = faulty(seed=1, share=0.3)
    disturbed(settings, server, "disturbed", fault)
    assert fault.count >= 20
    assert tree(tmp_path / "disturbed") == tree(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_hundred_random_faults_leave_the_same_bytes(settings, server, tmp_path):
    fetch(settings("undisturbed"))
    done = 0
    for seed in count():
        fault = faulty(seed, share=random.Random(seed).choice([0.1, 0.3, 0.6]))
        disturbed(settings, server, f"disturbed-{seed}", fault)
        assert tree(tmp_path / f"disturbed-{seed}") == tree(tmp_path / "undisturbed")
        done += fault.count
        if done >= 200:
            return


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in ("whole", "etag", "slow")])
def test_every_fault_is_overcome_when_it_passes(settings, server, tmp_path, kind):
    fetch(settings("undisturbed"))
    fault = faulty(seed=2, share=0.3, kinds=(kind,))
    assert disturbed(settings, server, "disturbed", fault) == 0
    assert fault.count > 0
    assert tree(tmp_path / "disturbed") == tree(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("503", r"/stac: HTTP 503, in 3 attempts; start the same command again"),
        ("garbage", r"/stac: the answer is not readable, in 3 attempts"),
        ("drop", r"cannot reach http://127.0.0.1:\d+/stac .*run on a node with internet access"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line(settings, server, kind, message):
    server.state.fault = lambda path, number: kind
    with pytest.raises(FetchError, match=message) as caught:
        fetch(settings(retries=2))
    assert "\n" not in str(caught.value)


def test_json_that_is_no_stac_ends_in_one_line(settings, server):
    (server.state.root / "list.json").write_text('{"type": "Catalog", "links": 3}')
    with pytest.raises(FetchError, match="does not answer as a STAC API does") as caught:
        fetch(settings(url=f"{server.url}/files/list.json"))
    assert "\n" not in str(caught.value)


def test_an_item_that_lacks_everything_is_left_out(settings, server, tmp_path):
    odd = {"id": "../up", "bbox": [-122, 36, -120, 38], "properties": {"datetime": "2019-05-05"}}
    server.state.items.append(odd)
    fetch(settings())
    assert (
        "../up,,2019-05-05,,,no,its id is not the name of a Sentinel-2 L2A scene,0,0"
        in (tmp_path / "out" / "scenes.csv").read_text()
    )


def test_odd_numbers_of_an_item_are_unknown_ones(settings, server, tmp_path):
    server.state.items[0]["properties"] |= {"sat:relative_orbit": "R113", "eo:cloud_cover": "none"}
    server.state.items[1]["properties"]["eo:cloud_cover"] = float("nan")
    fetch(settings())
    table = (tmp_path / "out" / "scenes.csv").read_text().splitlines()
    assert table[1].endswith(",,,no,its item gives no cloud cover,0,0")
    assert table[2].endswith(",113,,no,its item gives no cloud cover,0,0")


@pytest.mark.parametrize("late", [False, True])
def test_the_table_says_of_a_scene_that_failed_why_it_is_not_there(
    settings, server, tmp_path, late
):
    def gone(path: str, number: int) -> str:
        if not path.endswith("S2A_10SFH_20190715_0_L2A/B04.tif"):
            return ""
        planning = server.state.headers[number - 1]["Range"].startswith("bytes=0-")
        return "" if late and planning else "404"

    server.state.fault = gone
    with pytest.raises(FetchError, match=r"1 of 2 scenes could not be fetched, first S2A_10SFH_2"):
        fetch(settings())
    table = (tmp_path / "out" / "scenes.csv").read_text()
    (failed,) = [line for line in table.splitlines() if "10SFH_20190715" in line]
    assert ",no,http://127.0.0.1:" in failed
    assert failed.endswith("HTTP 404 Not Found,0,0")


def test_a_file_that_changes_while_it_is_fetched_is_never_mixed(settings, server, tmp_path, scenes):
    path = scenes[0] / "S2A_10SFH_20190715_0_L2A" / "B04.tif"
    url = "/files/S2A_10SFH_20190715_0_L2A/B04.tif"
    old, stat = path.read_bytes(), path.stat()
    seen = []

    def change(asked: str, number: int) -> str:
        if asked == url:
            seen.append(number)
            if len(seen) == 3:  # after plan and header, before the pixels
                path.write_bytes((scenes[0] / "S2A_10SFH_20190115_0_L2A" / "B04.tif").read_bytes())
        return ""

    server.state.fault = change
    try:
        fetch(settings("changed"))
        server.state.fault = lambda asked, number: ""
        fetch(settings("afterwards"))
    finally:
        path.write_bytes(old)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(seen) > 3
    assert tree(tmp_path / "changed") == tree(tmp_path / "afterwards")


def test_a_band_that_changes_after_it_is_fetched_is_fetched_again(settings, server, tmp_path):
    fetch(settings("undisturbed"))
    url = "/files/S2A_10SFH_20190715_0_L2A/B02.tif"

    def change(asked: str, number: int) -> str:
        if asked.endswith("20190715_0_L2A/SCL.tif") and server.state.requests.count(url) >= 3:
            server.state.versions[url] = "new"
        return ""

    server.state.fault = change
    fetch(settings("changed", streams=1))
    state = json.loads((tmp_path / "changed/S2A_10SFH_20190715_0_L2A/fetch.json").read_text())
    old = json.loads((tmp_path / "undisturbed/S2A_10SFH_20190715_0_L2A/fetch.json").read_text())
    assert state["bands"]["B02"]["etag"] != old["bands"]["B02"]["etag"]
    assert state["bands"]["B03"] == old["bands"]["B03"]


def killed_fetches(settings, server, tmp_path, kills: int, seed: int) -> None:
    """Kill fetches at random moments, then let one end; compare with an undisturbed one."""
    started = time.monotonic()
    server.state.rate = 0.6e6
    fetch(settings("undisturbed"))
    duration = time.monotonic() - started
    generator = np.random.default_rng(seed)
    config = {
        "url": f"{server.url}/stac", "boxes": [BOX], "dates": ["2019-01-01/2019-12-31"],
        "max_cloud": 20.0, "streams": 4, "output": str(tmp_path / "killed"),
    }  # fmt: skip
    alive = 0
    for _ in range(kills):
        command = [sys.executable, "-c", CHILD, json.dumps(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"ready\n"
            # each gets on by a part of the way, so that all of it is met
            time.sleep(generator.uniform(0, 2 * duration / kills + 0.3))
            alive += child.poll() is None
            child.kill()
    assert alive, "all had ended before they were killed"
    fetch(settings("killed"))
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")


@pytest.mark.slow
def test_three_kills_leave_the_same_bytes(settings, server, tmp_path):
    killed_fetches(settings, server, tmp_path, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_twenty_kills_leave_the_same_bytes(settings, server, tmp_path):
    killed_fetches(settings, server, tmp_path, kills=20, seed=4)


def test_a_second_fetch_into_the_same_folder_is_refused(settings, server, tmp_path):
    (tmp_path / "out" / ".fetch").mkdir(parents=True)
    with (tmp_path / "out" / ".fetch" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match="another simclr-fetch is filling"):
            fetch(settings())
