"""``simclr-doctor``: looks at a machine before work is entrusted to it."""

from __future__ import annotations

import sys
from pathlib import Path

from jobs import cli
from jobs.doctor import Level, examine

HELP = """\
simclr-doctor: look at this machine and say what to mend: Python, libraries, the pair of torch and
torchvision, GPUs, Slurm and its settings; and whether folders suit shards and runs.

Examples:
  simclr-doctor                         the machine alone
  simclr-doctor /scratch/me             and a folder: type of file system, space, speed, locks
  srun -N1 --gpus=1 simclr-doctor       a node with GPUs, from a login node

Each folder is written 64 MiB, which are removed again.

Output:
  a line for each finding, ok, warn or FAIL, with what mends it.

Exit codes: 0 nothing failed, 1 something did, 2 wrong use."""


def main() -> None:
    """Console script."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        cli.say(HELP)
        raise SystemExit(cli.DONE)
    options = [word for word in arguments if word.startswith("-")]
    if options:
        sys.stderr.write(f"simclr-doctor: {options[0]} is no option; name folders\n")
        raise SystemExit(cli.WRONG_USE)
    failed = False
    for finding in examine([Path(word) for word in arguments]):
        cli.say(str(finding))
        failed = failed or finding.level is Level.fail
    raise SystemExit(cli.FAILED if failed else cli.DONE)


if __name__ == "__main__":
    main()
