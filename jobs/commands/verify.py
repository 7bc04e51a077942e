"""``simclr-verify`` and ``simclr-inspect``: check packed shards, draw their contents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from jobs.config import ClusterConfig, InspectConfig, InspectionKind
from jobs.launch import Command
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment
from preprocess.config import VerifyConfig
from preprocess.shards.manifest import MANIFEST_NAME, read_manifest
from simclr.config import require


class VerifyError(RuntimeError):
    """Packed shards do not match their manifest."""


def fingerprint_of(shards: str) -> str:
    """Return the fingerprint of packed patches; empty if no folder is named or not yet packed."""
    packed = bool(shards) and Path(shards, MANIFEST_NAME).is_file()
    return read_manifest(Path(shards)).fingerprint if packed else ""


class _ReadsShards(Command):
    def validate(self, cluster: ClusterConfig) -> None:
        """Require a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        if not cluster.after:  # else a previous job writes it
            read_manifest(Path(self.config.shards))

    def inputs(self) -> str:
        """Return the patches: packed anew, they are verified or drawn again."""
        return fingerprint_of(self.config.shards)


@dataclass(frozen=True)
class Verify(_ReadsShards):
    """Compare packed shards with their manifest: checksums, statistics, label counts."""

    config: VerifyConfig

    name = "verify"
    Config = VerifyConfig
    home = ("shards", "packing")
    examples = (
        "simclr-verify shards=shards",
        "simclr-verify shards=shards quick=true",
        "simclr-verify shards=shards repair=true",
        "simclr-verify shards=shards cluster=slurm_cpu_example",
    )
    main_settings = ("shards", "quick", "repair", "root", "threads")
    results = "A report on stdout; exit code 1 if anything is wrong."

    def run(self, env: RankEnvironment) -> str:
        """Verify, and repair if requested; raise ``VerifyError`` if problems remain."""
        from preprocess.verify import verify, verify_and_repair

        repaired = 0
        if self.config.repair:
            report, repaired = verify_and_repair(self.config, env.is_main)
        else:
            report = verify(self.config, env.is_main)
        if not report.ok:
            raise VerifyError(
                f"{self.config.shards}: {len(report.problems)} problems: "
                + "; ".join(map(str, report.problems))
            )
        depth = "structure" if report.quick else "every checksum, statistics and label counts"
        kind = "simulated patches" if report.simulated else "patches"
        shards = f"{report.shards} shard{'s' * (report.shards != 1)}"
        prefix = f"{repaired} files repaired; " if repaired else ""
        return f"{self.config.shards}: {prefix}{report.rows} {kind}, {shards}, {depth}: sound"


@dataclass(frozen=True)
class Inspect(_ReadsShards):
    """Draw packed patches (colours, reflectance, classes, a map), or the views made of them."""

    config: InspectConfig

    name = "inspect"
    Config = InspectConfig
    examples = (
        "simclr-inspect shards=shards",
        "simclr-inspect what=augment shards=shards",
        "simclr-inspect what=augment shards=shards augment.preset=paper seed=3",
    )
    main_settings = ("what", "shards", "output", "patches", "seed", "augment.preset")
    results = "PNG files and one HTML page that holds them; stdout names the page."

    @property
    def job_dir(self) -> Path:
        """Inside the folder of the pictures."""
        return Path(self.config.output or Path(self.config.shards, "inspection"), JOB_FOLDER)

    def run(self, env: RankEnvironment) -> str:
        """Draw; return the path of the page."""
        from jobs.figures.shards import inspect_shards, inspect_views

        draw = inspect_shards if self.config.what is InspectionKind.shards else inspect_views
        return str(draw(self.config, self.job_dir.parent))


def main() -> None:
    """Console script."""
    cli.main(Verify)


def inspect() -> None:
    """Console script of ``simclr-inspect``."""
    cli.main(Inspect)


if __name__ == "__main__":
    main()
