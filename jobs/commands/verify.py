"""``simclr-verify``: shards are compared with their manifest."""

from __future__ import annotations

from jobs.cli import main as cli
from jobs.cli.help import Help
from jobs.cli.schema import VerifyApp, narrow
from jobs.commands.pack import Verify
from jobs.launch import dispatch
from preprocess.config import VerifyConfig

HELP = Help(
    sentence="compare packed shards with their manifest: checksums, statistics, label counts.",
    examples=(
        "simclr-verify shards=shards",
        "simclr-verify shards=shards quick=true",
        "simclr-verify shards=shards repair=true",
        "simclr-verify shards=shards cluster=slurm_cpu_example",
    ),
    settings={
        "shards": "folder with shards and manifest",
        "quick": "presence, sizes and structure only: no checksum, no pixel",
        "repair": "pack faulty shards again from their source, equal to the byte",
        "root": "where the rasters are now, if they have moved; for repair",
        "threads": "shards looked at side by side; 0 takes all cores",
    },
    output="A report on stdout; exit code 1 if anything is wrong.",
)


def work(app: VerifyApp, member: str | None) -> str:
    """Verify, or submit it; return the report."""
    return dispatch(Verify(narrow(app, VerifyConfig)), app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("verify", work, HELP)


if __name__ == "__main__":
    main()
