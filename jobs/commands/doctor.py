"""``simclr-doctor``: check a machine, its Slurm and its folders before long jobs."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from jobs import cli
from jobs.config import ClusterConfig
from jobs.slurm import client as slurm
from jobs.slurm.partitions import ask_site, write_cluster_file
from simclr.config import require

LIBRARIES = {
    **{name: name for name in ("rasterio", "h5py", "submitit")},
    **{"hydra-core": "hydra", "hydra-submitit-launcher": "hydra_plugins"},
}
MIB = 1 << 20
_PROBE_BYTES = 64 * MIB
_LEAST_FREE_GIB = 20  # packed BigEarthNet takes 90, a run with checkpoints a few
_SLOW_MIB_PER_S = 50  # below, a ResNet-152 checkpoint outlasts the warning time
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse")


# Environment variables that matter if set, and why.
_VARIABLES = {
    r"(SQUEUE|SINFO|SACCT|SCONTROL)_\w+": "changes what Slurm's commands answer",
    r"SLURM_EXPORT_ENV|SBATCH_EXPORT": "changes which variables reach the processes of a job",
    r"SBATCH_(?!EXPORT$)\w+": "overrides the lines of jobs/sbatch; other jobs are kept from it",
    r"PROJ_DATA|PROJ_LIB|GDAL_DATA": "may name another installation's coordinate systems",
    r"HDF5_USE_FILE_LOCKING": "changes how shards are opened",
}


class Level(Enum):
    """How severe a finding is; only ``fail`` stops work."""

    ok = "ok"
    warn = "warn"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    what: str  # the result, with its value
    fix: str = ""  # what to do; empty if nothing

    def __str__(self) -> str:
        return f"{self.level.value:<5} {self.what}{self.fix and '; '}{self.fix}"


def examine(folders: list[Path]) -> Iterator[Finding]:
    """Check Python, libraries, GPUs, environment and Slurm, then each folder."""
    yield Finding(Level.ok, f"Python {'.'.join(map(str, sys.version_info[:3]))}")
    for name, module in LIBRARIES.items():
        try:
            import_module(module)
            yield Finding(Level.ok, f"{name} {version(name)}")
        except ImportError as error:
            yield Finding(Level.fail, f"{name} cannot be imported ({error})", f"pip install {name}")
    yield check_torch()
    yield _gpus()
    yield from _environment(os.environ)
    yield from _slurm()
    for folder in folders:
        yield from _folder(folder)


def check_torch() -> Finding:
    """Check that torch and torchvision are compatible builds.

    A CPU build of torch with a CUDA build of torchvision installs without complaint and fails at
    its first use.
    """
    pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
    try:
        import_module("simclr.model.simclr")
        torch = import_module("torch")
        torch.ops.torchvision.nms  # noqa: B018 - the operator that a wrong pair lacks
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        fix = "pip install --force-reinstall -c constraints.txt torch torchvision"
        said = f"{pair} do not belong together ({error})"
        return Finding(Level.fail, said, f"reinstall both at once: {fix}")
    return Finding(Level.ok, f"{pair} belong together")


def _environment(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report variables that silently change Slurm's answers or the behaviour of libraries."""
    for name in sorted(environment):
        for pattern, effect in _VARIABLES.items():
            if re.fullmatch(pattern, name):
                yield Finding(Level.warn, f"{name}={environment[name]} {effect}", f"unset {name}")


def _gpus() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding(Level.warn, "torch is missing, so GPUs cannot be checked")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        return Finding(
            Level.warn,
            f"no GPU that torch can use here (torch is {built})",
            "right for a login node; on a node with GPUs look at nvidia-smi and the driver",
        )
    names = {torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return Finding(Level.ok, f"{torch.cuda.device_count()} x {', '.join(names)}, NCCL {nccl}")


def _slurm() -> Iterator[Finding]:
    if not slurm.is_available():
        fix = "cluster=laptop works; for Slurm go to a login node"
        yield Finding(Level.warn, "no Slurm here", fix)
        return
    try:
        yield Finding(Level.ok, slurm.call(["sinfo", "--version"]).strip())
        settings = slurm.parse_settings(slurm.call(["scontrol", "show", "config"]))
        partitions = slurm.call(["sinfo", "-h", "-o", "%P"]).split()
    except slurm.SlurmError as error:
        said = " ".join(str(error).split())
        yield Finding(Level.warn, f"Slurm does not answer ({said})", "go to a login node of it")
        return
    yield Finding(Level.ok, f"partitions: {', '.join(partitions)}")
    yield _wrapper(ClusterConfig().wrapper)
    for name in _SETTINGS:
        if name in settings:
            yield judge_setting(name, settings[name])


def _wrapper(command: str) -> Finding:
    """Try the wrapper that keeps signals before Python handles them from killing the process."""
    try:
        done = subprocess.run(
            [*shlex.split(command), "true"], capture_output=True, text=True, timeout=30, check=False
        )
        failed = done.stderr.strip() or str(done.returncode) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    if not failed:
        return Finding(Level.ok, f"{command} works")
    fix = 'sh -c \'trap "" USR2 TERM; exec "$@"\' -'
    return Finding(
        Level.fail,
        f"cluster.wrapper {command} fails ({' '.join(failed.split())}): it needs coreutils 8.31",
        f"write into the cluster file: wrapper: {fix!r}",
    )


# Per setting: the pattern to match, the meaning if it matches, the meaning otherwise, the fix.
_SETTINGS = {
    "JobRequeue": (
        "1",
        "preempted jobs come back",
        "jobs come back only if they ask for it",
        "cluster.requeue=true, the default, does",
    ),
    "KillWait": (
        r"([3-9]\d|\d{3,})\D.*",
        "a save at the first signal has that long",
        "so long after the first signal a job is killed",
        "give saving its time before: cluster.signal_delay_s=120",
    ),
    "PreemptMode": (".*", "what happens to jobs that others go before", "", ""),
    "MaxArraySize": (".*", "larger sweeps go into several arrays", "", ""),
    "SlurmctldParameters": (
        ".*preempt_send_user_signal.*",
        "preempted jobs are warned at once",
        "without preempt_send_user_signal a preempted job hears SIGTERM alone",
        "jobs save at SIGTERM too; the partition's GraceTime is all the time they have",
    ),
}


def judge_setting(name: str, value: str) -> Finding:
    """Judge what a setting of Slurm means for a run."""
    wanted, good, bad, fix = _SETTINGS[name]
    if re.fullmatch(wanted, value):
        return Finding(Level.ok, f"{name}={value}: {good}")
    return Finding(Level.warn, f"{name}={value}: {bad}", fix)


def _folder(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        there = folder.exists()
        fix = "name the folder it lies in" if there else f"mkdir -p {shlex.quote(str(folder))}"
        yield Finding(Level.fail, f"{folder} is not a folder", fix)
        return
    kind = file_system(folder, Path("/proc/mounts").read_text(encoding="utf-8"))
    free = shutil.disk_usage(folder).free / (1 << 30)
    level = Level.ok if free >= _LEAST_FREE_GIB else Level.warn
    yield Finding(level, f"{folder}: {kind}, {free:.0f} GiB free")
    if kind == "tmpfs":
        yield Finding(Level.warn, f"{folder} lies in memory", "it is gone with the node")
    elif not kind.startswith(_NETWORK):
        what = f"{folder} may be this machine's own"
        yield Finding(Level.warn, what, "runs need a folder all nodes see")
    try:
        yield from _try_writing(folder)
    except OSError as error:
        yield Finding(Level.fail, f"{folder} cannot be written ({error})", "choose another folder")


def file_system(folder: Path, mounts: str) -> str:
    """Return the file system type of a folder, from the text of ``/proc/mounts``."""
    path = str(folder.resolve())
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        _, place, found, *_ = line.split()
        place = place.replace("\\040", " ")  # the kernel's escape for a space
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, found
    return kind


def _try_writing(folder: Path) -> Iterator[Finding]:
    first, second = (folder / f".simclr-doctor-{os.getpid()}-{k}" for k in (1, 2))
    try:
        start = time.monotonic()
        with first.open("wb") as file:
            for _ in range(_PROBE_BYTES // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
            speed = _PROBE_BYTES / MIB / (time.monotonic() - start)
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = "file locks work"
            except OSError as error:
                locks = f"no file locks ({error}); none are needed"
            yield Finding(Level.ok, f"{folder}: {locks}")
        first.replace(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    said = f"{folder}: writes and renames, {speed:.0f} MiB/s with fsync"
    fix = "raise cluster.signal_delay_s, so that a checkpoint fits into the warning"
    yield Finding(Level.warn, said, fix) if speed < _SLOW_MIB_PER_S else Finding(Level.ok, said)


HELP = """\
simclr-doctor: check this machine and say what to fix: Python, libraries, torch
and torchvision, GPUs, Slurm and its settings, variables of the environment;
and whether folders are fit for shards and runs.

Examples:
  simclr-doctor                        the machine alone
  simclr-doctor /scratch/me            and a folder: file system, space, speed
  srun -N1 --gpus=1 simclr-doctor      a node with GPUs, from a login node
  simclr-doctor --write-cluster=clusters/cluster/mine.yaml
                                       a cluster file from what Slurm says

Options:
  --quiet                    show only what fails
  --write-cluster=NAME.yaml  write a cluster file, and do nothing else
  --partition=NAME           for this partition, not the one with most GPUs

64 MiB are written to each folder, and removed again.

Output:
  a line for each finding, ok, warn or FAIL, with the fix.

Exit codes: 0 nothing failed, 1 something did, 2 wrong use."""


def _run(arguments: Sequence[str]) -> bool:
    """Write the cluster file, or print the findings; return whether a check failed."""
    known = ("--quiet", "--write-cluster", "--partition")
    options: dict[str, str] = {}
    folders, rest = [], iter(arguments)
    for word in rest:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            folders.append(Path(word))
            continue
        there = ", ".join(known)
        require(name in known, f"{word} is not an option; there are {there}; else name folders")
        options[name] = value if equals or name == "--quiet" else next(rest, "")
        require(name == "--quiet" or bool(options[name]), f"{name} needs a value: {name}=NAME")
    require(
        "--partition" not in options or "--write-cluster" in options,
        "--partition goes with --write-cluster=NAME.yaml",
    )
    if "--write-cluster" in options:
        require(
            slurm.is_available(),
            f"--write-cluster={options['--write-cluster']} asks Slurm, which is not on this "
            "machine; go to a login node",
        )
        target, partition = Path(options["--write-cluster"]), options.get("--partition", "")
        path = write_cluster_file(target, ask_site(), partition)
        folder = shlex.quote(str(path.parent.parent))
        cli.say(f"{path}; look at it, then use --config-dir={folder} cluster={path.stem}")
        return False
    failed = False
    for finding in examine(folders):
        fails = finding.level is Level.fail
        failed = failed or fails
        if fails or "--quiet" not in options:
            cli.say(str(finding))
    return failed


def main() -> None:
    """Console script."""
    cli.main_without_settings("doctor", HELP, _run)


if __name__ == "__main__":
    main()
