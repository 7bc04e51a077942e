"""``simclr-inspect``: pictures of what was packed, and of what training makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.cli import main as cli
from jobs.cli.help import Help
from jobs.cli.schema import InspectApp, narrow
from jobs.command import again, alone
from jobs.config import ClusterConfig, InspectConfig, What
from jobs.launch import dispatch
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.preemption import requeued_if_stopped
from preprocess.shards.manifest import read_manifest
from simclr.config import require

FOLDER = "inspection"


@dataclass(frozen=True)
class Inspect:
    """Draw what was packed, or what training makes of it."""

    config: InspectConfig

    verb = "inspect"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """Inside the folder of the pictures."""
        return Path(self.config.output or Path(self.config.shards, FOLDER), JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a packed folder."""
        require(bool(self.config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        if not cluster.after:
            read_manifest(Path(self.config.shards))

    def __call__(self) -> str:
        """Draw; return the page."""
        with requeued_if_stopped():
            output = self.folder.parent
            if self.config.what is What.shards:
                from jobs.figures.shards import inspect_shards

                return str(inspect_shards(self.config, output))
            from jobs.figures.shards import inspect_views

            return str(inspect_views(self.config, output))


HELP = Help(
    sentence="draw what was packed (patches in true and false colour, reflectance, classes, a "
    "map), or what training makes of it.",
    examples=(
        "simclr-inspect shards=shards",
        "simclr-inspect what=augment shards=shards",
        "simclr-inspect what=augment shards=shards augment.preset=paper_literal seed=3",
    ),
    settings={
        "what": "shards, or augment: patches x operations, and two views of each",
        "shards": "packed folder",
        "output": "folder for pictures and page; default SHARDS/inspection",
        "patches": "how many are shown, evenly spread",
        "seed": "of the operations, for augment",
        "augment.preset": "how views are made, as in simclr-pretrain",
    },
    output="PNG files and one HTML page that holds them; stdout names the page.",
)


def work(app: InspectApp, member: str | None) -> str:
    """Draw, or submit it; return the page."""
    return dispatch(Inspect(narrow(app, InspectConfig)), app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("inspect", work, HELP)


if __name__ == "__main__":
    main()
