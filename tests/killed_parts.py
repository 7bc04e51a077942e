"""Rasters come in; they are packed in parts that die at random; what was hit, and where, goes out.

Run as a program, since it forks: its processes start in milliseconds, and nothing of a test runner
is in them. Each part is a process of its own that is killed and comes back, as a member of a job
array does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig

PARTS = 3


def kill_parts(rasters: Path, folder: Path, num_kills: int, seed: int) -> dict[str, int]:
    """Run this program.

    Args:
        rasters: simulated, 60 patches.
        folder: gets ``undisturbed``, and a folder for each pack that was attacked.
        num_kills: at least so many.
        seed: of what is killed when.

    Returns:
        Kills by where they hit, and the number of ``packs`` it took.

    Raises:
        RuntimeError: an attacked pack differs from the undisturbed one, or shows a half file.
    """
    words = [str(word) for word in (rasters, folder, num_kills, seed)]
    # -P: else the folder of this file comes first, and its preprocess/ hides the package
    program = [sys.executable, "-P", __file__]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"seed {seed}: {done.stderr}")
    hits: dict[str, int] = json.loads(done.stdout)
    return hits


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files that are not hidden, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("[!.]*")
        if path.is_file()
    }


def _main(rasters: str, folder: str, num_kills: str, seed: str) -> None:
    undisturbed = Path(folder) / "undisturbed"
    began = time.monotonic()
    for pid in [_start(rasters, undisturbed, part) for part in range(PARTS)]:
        _check(os.waitpid(pid, 0)[1])
    took_s, dice = time.monotonic() - began, random.Random(int(seed))
    expected, hits = digests(undisturbed), Counter[str]()
    for number in itertools.count():
        output = Path(folder) / f"attacked-{number}"
        hits += _attack(rasters, output, dice, took_s, expected)
        if digests(output) != expected or list(output.rglob(".*")):
            raise RuntimeError(f"{output} is not as undisturbed")
        if hits.total() >= int(num_kills):
            sys.stdout.write(json.dumps({**hits, "packs": number + 1}))
            return


def _attack(
    rasters: str, output: Path, dice: random.Random, took_s: float, expected: dict[str, str]
) -> Counter[str]:
    hits = Counter[str]()
    living = {part: _start(rasters, output, part) for part in range(PARTS)}
    while living:
        # by chance long enough even on a machine that has become busy: no pack goes on for ever
        time.sleep(dice.expovariate(4 * len(living) / took_s))
        part = dice.choice(list(living))
        pid = living.pop(part)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            hits[_moment(output, pid)] += 1
            if not digests(output).items() <= expected.items():
                raise RuntimeError(f"{output} shows a file that is not finished")
            living[part] = _start(rasters, output, part)
        else:
            _check(status)
    return hits


def _start(rasters: str, output: Path, part: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        source = SimulatedConfig(root=rasters, num_patches=60)
        config = PackConfig(source=source, output=str(output), shard_size_mib=0.8)
        pack(config, part, PARTS, progress=False)
    except BaseException:  # whatever it was, this process must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"a part that nobody killed ended with wait status {status}")


def _moment(output: Path, pid: int) -> str:
    """Say what a killed process was at, by the unfinished file that it left."""
    left = [path.name for path in output.rglob(f".*-{pid}.tmp")]
    if not left:
        return "between files"
    return "in a shard" if left[0].startswith(".shard") and ".h5." in left[0] else "in another file"


if __name__ == "__main__":
    _main(*sys.argv[1:])
