"""``simclr-inspect``: draw what was packed, and what training makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from jobs.command import Command
from jobs.config import ClusterConfig, InspectConfig, InspectionKind
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment
from preprocess.shards.manifest import read_manifest
from simclr.config import require

FOLDER = "inspection"


@dataclass(frozen=True)
class Inspect(Command):
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
        return Path(self.config.output or Path(self.config.shards, FOLDER), JOB_FOLDER)

    def validate(self, cluster: ClusterConfig) -> None:
        """Require a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        if not cluster.after:
            read_manifest(Path(self.config.shards))

    def run(self, env: RankEnvironment) -> str:
        """Draw; return the page."""
        from jobs.figures.shards import inspect_shards, inspect_views

        draw = inspect_shards if self.config.what is InspectionKind.shards else inspect_views
        return str(draw(self.config, self.job_dir.parent))


def main() -> None:
    """Console script."""
    cli.main(Inspect)


if __name__ == "__main__":
    main()
