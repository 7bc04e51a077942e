"""``simclr-verify``: compare packed shards with their manifest, and repair them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from jobs.command import Command
from jobs.config import ClusterConfig
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment
from preprocess.config import VerifyConfig
from preprocess.shards.manifest import read_manifest
from simclr.config import require


class VerifyError(RuntimeError):
    """Packed shards are not what their manifest says."""


@dataclass(frozen=True)
class Verify(Command):
    """Compare packed shards with their manifest: checksums, statistics, label counts."""

    config: VerifyConfig

    name = "verify"
    Config = VerifyConfig
    examples = (
        "simclr-verify shards=shards",
        "simclr-verify shards=shards quick=true",
        "simclr-verify shards=shards repair=true",
        "simclr-verify shards=shards cluster=slurm_cpu_example",
    )
    main_settings = ("shards", "quick", "repair", "root", "threads")
    results = "A report on stdout; exit code 1 if anything is wrong."

    @property
    def job_dir(self) -> Path:
        """Beside that of packing."""
        return Path(self.config.shards, "packing", JOB_FOLDER)

    def validate(self, cluster: ClusterConfig) -> None:
        """Require a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        if not cluster.after:  # else a job before this one writes it
            read_manifest(Path(self.config.shards))

    def run(self, env: RankEnvironment) -> str:
        """Verify, and repair if that is wanted; raise ``VerifyError`` if problems are left."""
        from preprocess.verify import verify, verify_and_repair

        repaired = 0
        if self.config.repair:
            report, repaired = verify_and_repair(self.config, env.is_main)
        else:
            report = verify(self.config, env.is_main)
        if not report.ok:
            raise VerifyError(
                f"{self.config.shards}: {len(report.problems)} problems: "
                + "; ".join(str(problem) for problem in report.problems)
            )
        depth = "structure" if report.quick else "every checksum, statistics and label counts"
        kind = "simulated patches" if report.simulated else "patches"
        prefix = f"{repaired} files repaired; " if repaired else ""
        return (
            f"{self.config.shards}: {prefix}{report.rows} {kind}, {report.shards} shards, "
            f"{depth}: sound"
        )


def main() -> None:
    """Console script."""
    cli.main(Verify)


if __name__ == "__main__":
    main()
