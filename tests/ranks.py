"""Real gloo processes for tests: a function and a world size in, each rank's result out."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from simclr.config import Device, WorldConfig
from simclr.distributed import distributed_context
from simclr.rendezvous import Rendezvous

# One server imports torch once; every rank of every test is forked from it in milliseconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "simclr.train", "rank_jobs"])

Started = list[tuple[multiprocessing.process.BaseProcess, Connection]]

TIMEOUT_S = 600
CPU = WorldConfig(device=Device.cpu, timeout_s=60, threads_per_rank=1)


def launches(world_size: int, folder: Path) -> list[Rendezvous]:
    """Return the launches of a world that meets through a file: no port to collide with."""
    meeting = folder / f"rendezvous-{world_size}-{len(list(folder.glob('rendezvous-*')))}"
    meeting.touch()
    meeting.unlink()
    return [
        Rendezvous(rank, rank, world_size, world_size, f"file://{meeting}")
        for rank in range(world_size)
    ]


def start_ranks(
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    *args: Any,
    among: Sequence[Rendezvous] = (),
) -> Started:
    """Start ``function(rendezvous, *args)`` in new processes, one a rank."""
    started = []
    for rendezvous in among or launches(world_size, folder):
        here, there = _context.Pipe(duplex=False)
        process = _context.Process(target=_report, args=(there, function, rendezvous, args))
        process.start()
        there.close()
        started.append((process, here))
    return started


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """Run ``function(rendezvous, *args)`` on every rank; return the results in rank order."""
    return results_of(start_ranks(function, world_size, folder, *args))


def results_of(started: Started) -> list[Any]:
    """Wait for ranks and return their results in rank order."""
    results = []
    try:
        for rank, (_, pipe) in enumerate(started):
            if not pipe.poll(TIMEOUT_S):
                raise TimeoutError(f"rank {rank} did not answer")
            kind, value = pickle.loads(pipe.recv_bytes())
            if kind == "error":
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results.append(value)
    finally:
        for process, _ in started:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
    return results


def in_process_group(function: Callable[..., Any], rendezvous: Rendezvous, *args: Any) -> Any:
    """Run ``function(world, *args)`` inside a process group on the CPU."""
    with distributed_context(CPU, rendezvous) as context:
        return function(context, *args)


def _report(
    pipe: Connection, function: Callable[..., Any], rendezvous: Rendezvous, args: Any
) -> None:
    torch.set_num_threads(1)
    try:
        answer = ("result", function(rendezvous, *args))
    except BaseException:
        answer = ("error", traceback.format_exc())
    # Plain pickle: torch would leave tensors in shared memory of a process that is about to end.
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()
