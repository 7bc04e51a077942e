"""Slurm's accounting for the test cluster: MariaDB and slurmdbd in a temporary folder."""

from __future__ import annotations

import getpass
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb", "slurmdbd", "sacctmgr")
START_S = 60.0

DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def missing() -> str:
    """Return why there can be no accounting on this machine, or nothing."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    names = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(names)} (Debian: slurmdbd mariadb-server)" if names else ""


def start_accounting(
    folder: Path, port: int, database_port: int, daemon: Callable[..., object]
) -> None:
    """Start the database and slurmdbd through ``daemon``, and wait until they answer."""
    password = secrets.token_hex(16)
    _start_database(folder, database_port, daemon)
    statements = "CREATE DATABASE slurm_acct_db;" + "".join(
        f"CREATE USER slurm@'{host}' IDENTIFIED BY '{password}';"
        f"GRANT ALL ON slurm_acct_db.* TO slurm@'{host}';"
        for host in ("127.0.0.1", "localhost")
    )
    subprocess.run(_client(folder), input=statements, text=True, check=True)
    conf = folder / "slurmdbd.conf"
    conf.touch(mode=0o600)  # it holds the password; slurmdbd insists
    text = DBD.format(
        folder=folder,
        user=getpass.getuser(),
        port=port,
        database_port=database_port,
        password=password,
    )
    conf.write_text(text)
    daemon("slurmdbd", "-D")
    _wait(lambda: _is_open(port), "slurmdbd")


def _start_database(folder: Path, port: int, daemon: Callable[..., object]) -> None:
    user, data = getpass.getuser(), folder / "database"
    subprocess.run(
        [
            *("mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={data}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        ],
        capture_output=True,
        check=True,
    )
    daemon(
        *("mariadbd", "--no-defaults", f"--user={user}", f"--datadir={data}", f"--port={port}"),
        *("--bind-address=127.0.0.1", f"--socket={folder}/db.sock", f"--pid-file={folder}/db.pid"),
    )
    question = [*_client(folder), "-e", "SELECT 1"]
    answers = lambda: subprocess.run(question, capture_output=True, check=False).returncode == 0  # noqa: E731
    _wait(answers, "MariaDB")


def _client(folder: Path) -> list[str]:
    return ["mariadb", "--no-defaults", f"--socket={folder}/db.sock", "--user=root"]


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {START_S:.0f} s for {what}")
        time.sleep(0.1)
