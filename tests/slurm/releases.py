"""Newer releases of Slurm than the machine's own, for one command and what it starts.

``python tests/slurm/releases.py 24.11 COMMAND...`` takes the packages of the Debian suite that has
the release, once, into the user's cache, lays them over /usr in a mount namespace of the command's
own and runs it there: nothing is installed, and no other process sees them. It needs Debian and
root. ``make slurm-shell SLURM=24.11`` and ``test_releases`` use it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITES = {"24.11": "trixie", "26.05": "sid"}
PACKAGES = ("slurm-wlm", "munge")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
TOOLS = ("apt-get", "dpkg-deb", "unshare")

# The new files come first, then the machine's own: libc is newer, and runs what is there.
ENTER = """\
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$0/usr:/usr" /usr
exec "$@"
"""


def missing() -> str:
    """Return why no other release can be had on this machine, or nothing."""
    if os.geteuid() != 0:
        return "not root, which mounts need"
    if not KEYRING.exists():
        return f"no {KEYRING}: not a Debian"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def inside(release: str, *command: str) -> list[str]:
    """Return the command line that runs ``command`` where Slurm is of this release.

    Raises:
        RuntimeError: if the suite has moved on to another release.
    """
    return ["unshare", "--mount", "bash", "-c", ENTER, str(unpacked(release)), *command]


def unpacked(release: str) -> Path:
    """Return the folder of the release's files; download and unpack them if they are not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "simclr-s2" / f"slurm-{release}"
    files = folder / "files"
    if not files.exists():
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder / "partial"
        partial.mkdir(parents=True)
        for package in _download(SUITES[release], folder):
            subprocess.run(["dpkg-deb", "-x", package, partial], check=True)
        partial.rename(files)
    shell = ["unshare", "--mount", "bash", "-c", ENTER, str(files), "slurmctld", "-V"]
    version = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split()[-1]
    if not version.startswith(f"{release}."):
        raise RuntimeError(f"Debian's {SUITES[release]} has Slurm {version} now, not {release}")
    return files


def _download(suite: str, folder: Path) -> list[Path]:
    """Fetch the packages and all that they need, by an apt that knows nothing of this machine."""
    state, cache, sources = folder / "state", folder / "cache", folder / "sources.list"
    for path in (state / "lists/partial", cache / "archives/partial"):
        path.mkdir(parents=True)
    (state / "status").touch()
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    subprocess.run(["apt-get", *options, "update", "-qq"], check=True)
    install = ["install", "-yqq", "--download-only", *PACKAGES]
    subprocess.run(["apt-get", *options, *install], stdout=subprocess.DEVNULL, check=True)
    return sorted((cache / "archives").glob("*.deb"))


def main() -> None:
    """Become the command, in its namespace."""
    release, *command = sys.argv[1:] or [""]
    if release not in SUITES or not command:
        sys.exit(f"usage: releases.py {{{','.join(SUITES)}}} COMMAND...")
    if missing():
        sys.exit(f"no other release of Slurm here: {missing()}")
    try:
        line = inside(release, *command)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        sys.exit(f"no Slurm {release}: {error}")
    os.execvp(line[0], line)


if __name__ == "__main__":
    main()
