"""A Slurm of four nodes inside this machine: starts its daemons in a temporary folder, ends them.

``python tests/slurm/cluster.py`` opens a shell on such a cluster, for trying things by hand.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":  # as a script it is started outside pytest, which knows the way
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from slurm.accounting import start_accounting
from slurm.configuration import CLUSTER_NAME, NODES, write_configuration

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo", "munge", "unmunge")
START_S = 20.0
PATIENCE = 4  # bounds are those of a quiet machine; a busy one needs so many times as long


def missing() -> str:
    """Return why there can be no cluster on this machine, or nothing."""
    names = [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=_path()) is None]
    if names:
        return f"not installed: {', '.join(names)} (Debian: apt-get install slurm-wlm munge)"
    return ""


class Cluster:
    """A running cluster.

    Attributes:
        folder: configuration, state and logs.
        environment: variables with which commands find this cluster and no other.
    """

    def __init__(
        self,
        folder: Path,
        *,
        requeue: bool = True,
        user_signal: bool = True,
        accounting: bool = False,
        kill_wait_s: int = 10,
    ) -> None:
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": _path(),
            # all nodes are this machine
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._accounting = accounting
        self._ports = write_configuration(folder, requeue, user_signal, accounting, kill_wait_s)

    def start(self) -> None:
        """Start all daemons and wait until four nodes are idle."""
        self._start_munge()
        if self._accounting:
            start_accounting(self.folder, *self._ports, self._daemon)
            self.run("sacctmgr", "-i", "add", "cluster", CLUSTER_NAME)
        self._start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_idle_nodes()

    def restart_controller(self) -> None:
        """Kill the controller and start another one, which reads the state of the first."""
        with self.without_controller():
            pass

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """Let no controller answer in the block; the next one reads the state of the first."""
        self._controller.kill()
        self._controller.wait()
        try:
            yield
        finally:
            self._start_controller()

    def _start_controller(self) -> None:
        self._controller = self._daemon("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        _wait(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld to answer")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, or start it again."""
        conf = self.environment["SLURM_CONF"]
        self._nodes[node] = self._daemon(
            "slurmd", "-D", "-f", conf, "-N", node, log=f"slurmd-{node}"
        )

    def lose_node(self, node: str) -> None:
        """Kill what manages jobs on a node, as a broken network does; its ranks live on."""
        daemon = self._nodes[node]
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        for pid in (daemon.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def lose_step(self, job_id: str) -> None:
        """Kill what manages the ranks of a job; they live on, and nobody hears of their end."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                name = (folder / "cmdline").read_bytes().decode(errors="replace")
                if name.startswith(f"slurmstepd: [{job_id}.0]"):
                    os.kill(int(folder.name), signal.SIGKILL)

    def ranks(self, job_id: str) -> dict[int, int]:
        """Return the live processes of a job's step: rank to process id.

        Other clusters on this machine have jobs of the same numbers.
        """
        found, own = {}, self.environment["SLURM_CONF"]
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                names = dict(word.partition("=")[::2] for word in words)
                started = (folder / "cmdline").read_bytes()
                is_rank = b"submitit" in started and "SLURM_STEP_ID" in names
                is_rank &= names.get("SLURM_CONF", own) == own
                if is_rank and names.get("SLURM_JOB_ID") == job_id:
                    found[int(names["SLURM_PROCID"])] = int(folder.name)
        return found

    def wait_for_idle_nodes(self, timeout_s: float = 60) -> None:
        """Wait until no node is busy, down or being cleared."""
        idle = ("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D")
        _wait(lambda: self.run(*idle).strip() == "4", "four idle nodes", timeout_s, self._explain)

    def stop(self) -> None:
        """End jobs, then daemons, the last started first; by process id only."""
        try:
            self.clear()
        finally:
            for daemon in reversed(self._daemons):
                _end(daemon)

    def run(self, *command: str, check: bool = True, timeout_s: float = 60 * PATIENCE) -> str:
        """Run a command on the cluster and return what it printed."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} left with {done.returncode}: {done.stderr}")
        return done.stdout

    def clear(self) -> None:
        """Cancel every job and wait until none is left on a node."""
        live = ("squeue", "-h", "-o", "%i %T")
        self.run("scancel", "--user", getpass.getuser())
        _wait(lambda: not self.run(*live).strip(), "an empty queue", 60)

    def state(self, job_id: str) -> dict[str, str]:
        """Return the fields of ``scontrol show job``."""
        words = self.run("scontrol", "-o", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job_id: str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until a job is in one of the states."""

        def arrived() -> bool:
            return self.state(job_id)["JobState"] in states

        _wait(arrived, f"job {job_id} to be {' or '.join(states)}", timeout_s, self._explain)
        return self.state(job_id)

    def _explain(self) -> str:
        return self.run("squeue", "-t", "all", check=False)

    def _start_munge(self) -> None:
        key, sock = self.folder / "munge.key", self.folder / "munge.sock"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        files = {
            "key": key,
            "socket": sock,
            "pid": "munged.pid",
            "log": "log/munge",
            "seed": "seed",
        }
        options = {"key": "--key-file", "socket": "--socket"}
        named = [f"{options.get(k, f'--{k}-file')}={self.folder / v}" for k, v in files.items()]
        # -f: the folder above, /tmp, is writable for all
        self._daemon("munged", "-F", "-f", "--num-threads=4", *named, log="munged")
        _wait(lambda: _munge_answers(sock), "munged to answer")

    def _daemon(self, *command: str, log: str = "") -> subprocess.Popen[bytes]:
        path = self.folder / "log" / f"{log or command[0]}.out"
        with path.open("ab") as output:
            daemon = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C in the terminal is not for daemons
            )
        self._daemons.append(daemon)
        return daemon


@contextmanager
def running_cluster(
    *,
    requeue: bool = True,
    user_signal: bool = True,
    accounting: bool = False,
    kill_wait_s: int = 10,
) -> Iterator[Cluster]:
    """Start a cluster in a short temporary folder; end it and remove the folder."""
    # Paths of sockets end at 108 characters, so not in the folder of the tests.
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    cluster = Cluster(
        folder,
        requeue=requeue,
        user_signal=user_signal,
        accounting=accounting,
        kill_wait_s=kill_wait_s,
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(
    condition: Callable[[], bool],
    what: str,
    timeout_s: float = 60,
    explain: Callable[[], str] = str,
) -> None:
    """Poll until a condition holds; say what was waited for if it does not."""
    _wait(condition, what, timeout_s, explain)


def _wait(
    condition: Callable[[], bool],
    what: str,
    timeout_s: float = START_S,
    explain: Callable[[], str] = str,
) -> None:
    end = time.monotonic() + PATIENCE * timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE * timeout_s:.0f} s for {what}\n{explain()}")
        time.sleep(0.1)


def _munge_answers(sock: Path) -> bool:
    made = subprocess.run(["munge", "-S", sock, "-n"], capture_output=True, check=False)
    read = subprocess.run(
        ["unmunge", "-S", sock], input=made.stdout, capture_output=True, check=False
    )
    return made.returncode == 0 == read.returncode


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _path() -> str:
    """Return PATH with our console scripts, and with daemons, which a user may not see."""
    own = str(Path(sys.executable).parent)  # the console scripts, for sbatch files
    return os.pathsep.join([own, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def shell(environment: Mapping[str, str]) -> int:
    """Open an interactive shell with the cluster's environment."""
    return subprocess.run(
        [os.environ.get("SHELL", "/bin/bash")], env={**os.environ, **environment}, check=False
    ).returncode


def main() -> int:
    """Open a shell on a new cluster, and end the cluster with the shell."""
    if missing():
        sys.exit(f"no Slurm cluster here: {missing()}")
    with running_cluster(kill_wait_s=30) as cluster:  # as real clusters have it
        sys.stdout.write(
            f"Slurm of 4 nodes; partitions low, low0, high; logs in {cluster.folder}/log\n"
            "exit ends it\n"
        )
        sys.stdout.flush()
        return shell(cluster.environment)


if __name__ == "__main__":
    raise SystemExit(main())
