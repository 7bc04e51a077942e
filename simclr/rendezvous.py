"""How a process of a run was started, and how it finds the other ranks.

Launchers set torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
``MASTER_PORT``) or pass a ``Rendezvous``; nothing here depends on a scheduler.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

# Consecutive ports to try, starting with the one of tcp://, and the key of the run's token.
NUM_PORTS = 4
_RUN_KEY = "run"
PATIENCE_S = 10.0  # before rank 0 logs that it waits for ranks
ANSWER_S = 10.0  # timeout for the answer of a store
_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # missing in torch's stubs

_joined = itertools.count()  # process groups of this process so far, equal on every rank

_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """How a launcher started this process, and how it finds the other ranks."""

    rank: int = 0
    local_rank: int = 0  # rank within its node
    world_size: int = 1
    local_world_size: int = 1  # ranks on its node
    init_method: str = "env://"  # or ``tcp://host:port``, ``file:///path``
    cores: int = 0  # cores allocated to this process, bound or not; 0 if unknown
    token: str = ""  # identifies this launch, since another run may own the port


def rendezvous_from_environment() -> Rendezvous:
    """Read torchrun's variables; without them, the process is a world of size 1.

    Raises:
        ValueError: only some of the variables are set.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    present = [name for name in names if name in os.environ]
    if not present:
        return Rendezvous()
    needed = (*names, "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ValueError(
            f"{', '.join(present)} set but {', '.join(missing)} missing; start the ranks with "
            "torchrun, or unset them for a single process"
        )
    size = int(os.environ["WORLD_SIZE"])
    return Rendezvous(
        rank=int(os.environ["RANK"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=size,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
    )


def join_process_group(rendezvous: Rendezvous, device: torch.device, timeout: timedelta) -> None:
    """Find the other ranks, and create the default process group.

    Raises:
        RuntimeError: not all ranks have joined within the timeout.
        ValueError: all ports tried by rank 0 are taken.
    """
    # CPU tensors use gloo even alongside nccl: agreements must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store: Any
    rank, size = rendezvous.rank, rendezvous.world_size
    if size == 1:
        # No port and no file that could collide. This store is missing in torch's stubs.
        store = dist.HashStore()  # type: ignore[attr-defined]
    elif rendezvous.init_method.startswith("tcp://"):
        store = _find_store(rendezvous, timeout) if rank else _open_store(rendezvous)
        store.set_timeout(timeout)
        _await_ranks(store, rendezvous, timeout)
    else:
        meeting = torch_rendezvous(rendezvous.init_method, rank, size, timeout=timeout)
        store, _, _ = next(meeting)
        store.set_timeout(timeout)
        # torchrun's store outlives a process group: a second one would read the addresses of the
        # first, and hang forever.
        store = dist.PrefixStore(f"group-{next(_joined)}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def leave_process_group(rendezvous: Rendezvous) -> None:
    """Destroy the default process group, and the file by which its ranks met, if it was one."""
    dist.destroy_process_group()
    if rendezvous.rank == 0 and rendezvous.init_method.startswith("file://"):
        Path(rendezvous.init_method.removeprefix("file://")).unlink(missing_ok=True)


def _open_store(rendezvous: Rendezvous) -> Any:
    """Listen on the first free candidate port, and publish the run's token; rank 0 only."""
    host, ports = _candidates(rendezvous)
    for port in ports:
        try:
            size = rendezvous.world_size
            store = _TCPStore(host, port, size, is_master=True, wait_for_workers=False)
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error) and "address already in use" not in str(error):
                raise
            _log.warning("port %d of %s is taken, trying the next one", port, host)
        else:
            store.set(_RUN_KEY, rendezvous.token)
            return store
    raise ValueError(f"ports {ports[0]} to {ports[-1]} of {host} are taken, the ranks cannot meet")


def _find_store(rendezvous: Rendezvous, timeout: timedelta) -> Any:
    """Return rank 0's store: on the first candidate port that holds the run's token."""
    host, ports = _candidates(rendezvous)
    end, mute = time.monotonic() + timeout.total_seconds(), set[int]()
    found: list[Any] = []

    def connect(port: int) -> None:
        """Try a port; nothing may listen yet, or a service of another protocol."""
        with suppress(OSError, RuntimeError):
            socket.create_connection((host, port), 1).close()  # TCPStore would retry for seconds
            store = _TCPStore(host, port, rendezvous.world_size, wait_for_workers=False)
            if store.check([_RUN_KEY]) and store.get(_RUN_KEY) == rendezvous.token.encode():
                found.append(store)

    while time.monotonic() < end:
        for port in (port for port in ports if port not in mute):
            # in a thread, since TCPStore waits forever for a service that never answers
            thread = threading.Thread(target=connect, args=(port,), daemon=True)
            thread.start()
            thread.join(ANSWER_S)
            if found:
                return found[0]
            if thread.is_alive():
                mute.add(port)
        time.sleep(0.2)
    raise RuntimeError(f"timed out: rank 0 did not listen at ports {ports[0]} to {ports[-1]}")


def _candidates(rendezvous: Rendezvous) -> tuple[str, range]:
    host, _, port = rendezvous.init_method.removeprefix("tcp://").rpartition(":")
    return host, range(int(port), int(port) + NUM_PORTS)


def _await_ranks(store: Any, rendezvous: Rendezvous, timeout: timedelta) -> None:
    """Let rank 0 wait for all ranks, and log once if some may never have been started."""
    arrived, size = store.add("arrived", 1), rendezvous.world_size
    end, patience = time.monotonic() + timeout.total_seconds(), time.monotonic() + PATIENCE_S
    while rendezvous.rank == 0 and arrived < size:
        now = time.monotonic()
        if now > end:
            raise RuntimeError(f"timed out: {arrived} of {size} ranks have started")
        if now > patience:
            patience = end
            text = "waiting for ranks: %d of %d have started; srun starts all of them at once"
            _log.warning(text, arrived, size)
        time.sleep(0.1)
        arrived = store.add("arrived", 0)
