"""``simclr-export``: write a run's encoder as files that others load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from jobs.command import Command
from jobs.config import ClusterConfig
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment
from jobs.tracking.sink import log_artifacts
from preprocess.config import require_all
from simclr.export import ExportConfig


@dataclass(frozen=True)
class Export(Command):
    """Export a run's encoder with its card: bands, units, normalisation, origin."""

    config: ExportConfig

    name = "export"
    Config = ExportConfig
    output_key = "output"
    examples = (
        "simclr-export run=runs/first output=export",
        "simclr-export run=runs/first output=export licence=CC-BY-4.0",
        "simclr-export run=runs/first output=export step=4000 formats=[onnx,pt2]",
        "simclr-export run=runs/first output=export cluster=slurm_cpu_example",
    )
    main_settings = ("run", "output", "step", "formats", "source", "licence")
    results = (
        "encoder.safetensors, card.json, CARD.md and further formats in output; stdout names it."
    )

    @property
    def job_dir(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def validate(self, cluster: ClusterConfig) -> None:
        """Require both folders."""
        require_all(
            run_exists(self.config.run, cluster),
            (bool(self.config.output), "output is empty; give a folder: output=DIR"),
        )

    def run(self, env: RankEnvironment) -> str:
        """Export; return the folder."""
        from simclr.export.export import export
        from simclr.export.load import CARD_NAME

        folder = export(self.config)
        log_artifacts(Path(self.config.run), {"card": folder / CARD_NAME})
        return str(folder)


def run_exists(run: str, cluster: ClusterConfig) -> tuple[bool, str]:
    """Return whether a run folder is there, or a job before this one makes it; else the error."""
    seen = f"run is {run}, which is not a folder" if run else "run is empty"
    found = bool(run) and (bool(cluster.after) or Path(run).is_dir())
    return found, f"{seen}; give a run folder: run=RUN"


def main() -> None:
    """Console script."""
    cli.main(Export)


if __name__ == "__main__":
    main()
