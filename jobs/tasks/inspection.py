"""The task of an inspection: settings come in, pictures and a page go out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.cluster import ClusterConfig
from jobs.inspection import InspectConfig, What
from jobs.requeue import requeued_if_stopped
from jobs.runfolder import JOB_FOLDER
from jobs.tasks.task import again, alone
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
                from jobs.figures.inspection import inspect_shards

                return str(inspect_shards(self.config, output))
            from jobs.figures.views import inspect_views

            return str(inspect_views(self.config, output))
