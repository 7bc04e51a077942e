"""How a process of a run was started, and where it meets the other ranks.

Launchers speak torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
``MASTER_PORT``) or hand a ``Rendezvous`` over; nothing here knows a scheduler.
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
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

# Ports from that of tcp:// on that are tried, and what rank 0 leaves there.
NUM_PORTS = 4
_RUN_KEY = "run"
PATIENCE_S = 10.0  # until rank 0 says for whom it waits
ANSWER_S = 10.0  # within which a store answers
_TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]  # the stubs do not list it

_joined = itertools.count()  # process groups of this process, counted alike on every rank

_log = logging.getLogger("simclr")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """How a launcher started this process, and where it meets the other ranks."""

    rank: int = 0
    local_rank: int = 0  # on its node
    world_size: int = 1
    local_world_size: int = 1  # on its node
    init_method: str = "env://"  # or ``tcp://host:port``, ``file:///path``
    cores: int = 0  # given to this process, bound to them or not; 0 when nobody says
    token: str = ""  # names the start of a run: a port may be another's


def rendezvous_from_environment() -> Rendezvous:
    """Read torchrun's variables; a process without them is a world of one.

    Raises:
        ValueError: some of the variables are set and others are missing.
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
    """Meet the other ranks, and make the process group of all.

    Raises:
        RuntimeError: not all ranks have come within the timeout.
        ValueError: every port that rank 0 tried is taken.
    """
    # Tensors on the CPU travel by gloo, also beside nccl: agreements must not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store: Any
    rank, size = rendezvous.rank, rendezvous.world_size
    if size == 1:
        # No port, no file: nothing to collide with. The stubs of torch do not list this store.
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
        # first, and wait for ever.
        store = dist.PrefixStore(f"group-{next(_joined)}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _open_store(rendezvous: Rendezvous) -> Any:
    """Listen at the first free port of a few, and leave the name of the run there; rank 0."""
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
    """Return the store of rank 0: at the first of a few ports that knows the name of the run."""
    host, ports = _candidates(rendezvous)
    end, mute = time.monotonic() + timeout.total_seconds(), set[int]()
    found: list[Any] = []

    def connect(port: int) -> None:
        """Connect to a port; nobody may listen yet, or somebody else who speaks otherwise."""
        with suppress(OSError, RuntimeError):
            socket.create_connection((host, port), 1).close()  # TCPStore alone tries for seconds
            store = _TCPStore(host, port, rendezvous.world_size, wait_for_workers=False)
            if store.check([_RUN_KEY]) and store.get(_RUN_KEY) == rendezvous.token.encode():
                found.append(store)

    while time.monotonic() < end:
        for port in (port for port in ports if port not in mute):
            # a thread, as TCPStore waits for ever for an answer of somebody who gives none
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
    """Let rank 0 say for how many ranks it waits, some of which may never have been started."""
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
