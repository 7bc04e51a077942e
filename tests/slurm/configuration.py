"""The configuration of a Slurm of four nodes inside this machine: files in a folder."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

CLUSTER_NAME = "simclrtest"
# Loopback addresses are names that resolve everywhere, without touching /etc/hosts.
NODES = tuple(f"127.0.0.{number}" for number in range(1, 5))

CONFIGURATION = """\
ClusterName={name}
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# Credentials that expire soon let a requeued job start after seconds, not two minutes.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
PropagateResourceLimits=NONE
# On a busy machine some nodes answer late. A signal that found no answer is sent again after
# a minute, and would hit the next start of the job.
MessageTimeout=60
ReturnToService=2
SlurmdParameters=config_overrides
{parameters}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5,bf_resolution=30,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue={requeue:d}
KillWait={kill_wait}
# Longer than srun waits for a child that holds its output, or the node would be drained.
UnkillableStepTimeout=180
SlurmdTimeout=30
MinJobAge=86400
{accounting}
JobCompType=jobcomp/none
NodeName=127.0.0.[1-4] NodeHostName=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 \
Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 \
DefaultTime=10 State=UP
PartitionName=low0 Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 DefaultTime=10 State=UP
PartitionName=lowcancel Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=20 DefaultTime=10 \
State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=10 State=UP
"""

CGROUP = """\
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
ConstrainDevices=no
"""

NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
# Without the socket as its password every client looks for the system's munge.
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.sock"""


def write_configuration(
    folder: Path, requeue: bool, user_signal: bool, accounting: bool, kill_wait_s: int
) -> tuple[int, int]:
    """Write all files; return ports that are left for slurmdbd and its database."""
    port, dbd_port, database_port, *ports = _free_ports(3 + len(NODES))
    for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    text = CONFIGURATION.format(
        name=CLUSTER_NAME,
        folder=folder,
        user=getpass.getuser(),
        port=port,
        first=ports[0],
        last=ports[-1],
        requeue=requeue,
        kill_wait=kill_wait_s,
        parameters="SlurmctldParameters=preempt_send_user_signal" if user_signal else "",
        accounting=ACCOUNTING.format(port=dbd_port, folder=folder) if accounting else NO_ACCOUNTING,
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUP)
    return dbd_port, database_port


def _free_ports(count: int) -> list[int]:
    """Return ports in a row that nobody listens on, below those given to outgoing connections."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise RuntimeError("no free ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
