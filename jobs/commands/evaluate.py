"""``simclr-evaluate`` and ``simclr-export``: score a run's encoder, export it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from jobs import cli
from jobs.commands.verify import fingerprint_of
from jobs.config import ClusterConfig
from jobs.launch import Command, side_work
from jobs.slurm.environment import RankEnvironment, rendezvous_of
from jobs.tracking.sink import log_artifacts
from preprocess.config import require_all
from preprocess.shards.manifest import read_manifest
from simclr.checkpoint.manifest import newest_checkpoint
from simclr.evaluation.config import EvaluateConfig
from simclr.export import ExportConfig


def _run_exists(run: str, cluster: ClusterConfig) -> tuple[bool, str]:
    """Return whether the run folder exists, or a previous job creates it; and the error if not."""
    seen = f"run is {run}, which is not a folder" if run else "run is empty"
    found = bool(run) and (bool(cluster.after) or Path(run).is_dir())
    return found, f"{seen}; give a run folder: run=RUN"


def _state_of(run: str, step: int, shards: str = "") -> str:
    """Identify the newest checkpoint of a run, unless a step is given, and the packed patches."""
    newest = None if step else newest_checkpoint(Path(run))
    return f"{newest.name if newest else ''} {fingerprint_of(shards)}".strip()


@dataclass(frozen=True)
class Evaluate(Command):
    """Score a run's encoder on labelled patches, beside controls (untrained baselines)."""

    config: EvaluateConfig
    # common to all ranks that were started together
    token: str = field(default_factory=lambda: uuid4().hex)

    name = "evaluate"
    Config = EvaluateConfig
    uses_gpu = True
    examples = (
        "simclr-evaluate run=runs/first shards=shards task=bigearthnet19",
        "simclr-evaluate run=runs/first shards=shards/eurosat task=eurosat",
        "simclr-evaluate run=runs/first shards=shards task=eurosat \\\n"
        "                  protocols=[finetune_all]",
    )
    main_settings = (
        *("run", "shards", "task", "protocols", "fractions", "others", "seeds", "step"),
        *("split", "balanced", "all_checkpoints", "test_time"),
    )
    results = (
        "evaluation.json, .md and .html in the run folder, figures and their numbers as CSV in "
        "evaluation/; stdout shows the table. Further settings: stages, batch_size, controls, "
        "neighbours, bootstrap, finetune.*"
    )
    memory_fix = "lower batch_size"

    def validate(self, cluster: ClusterConfig) -> None:
        """Require a run, packed shards and a task."""
        shards, task = self.config.shards, self.config.task
        require_all(
            _run_exists(self.config.run, cluster),
            (bool(shards), "shards is empty; give a packed folder: shards=SHARDS"),
            (bool(task), "task is empty; name a label set: task=eurosat"),
        )
        if not cluster.after:
            read_manifest(Path(shards))

    def inputs(self) -> str:
        """Return checkpoint and shards: trained further or packed anew, they are scored again."""
        return _state_of(self.config.run, self.config.step, self.config.shards)

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """Return one task with the ranks of one node, which share features and fits."""
        return [self], replace(cluster, nodes=1)

    def run(self, env: RankEnvironment) -> str:
        """Evaluate as one rank; the main rank returns the table."""
        # Here, since torch is slow to import and a login node only submits.
        from simclr.evaluation.evaluate import evaluate, select_checkpoint
        from simclr.evaluation.report import JSON_NAME, choice_report, report_text
        from simclr.monitoring.metrics import METRICS_NAME, read_metrics

        launch, run = rendezvous_of(env, self.token), Path(self.config.run)
        if self.config.all_checkpoints:
            metrics = run / METRICS_NAME
            records = read_metrics(metrics) if metrics.exists() else []
            losses = {record["step"]: record["loss"] for record in records}
            path = select_checkpoint(self.config, losses, env.is_main, launch)
            result = f"{choice_report(path)}\n\n{path}"
        else:
            table = report_text(evaluate(self.config, env.is_main, launch))
            result = f"{table}\n{run / JSON_NAME}"
        if not env.is_main:
            return ""
        with side_work("the evaluation is done, but its page is not drawn"):
            # Here, since matplotlib is slow to import and a login node only submits.
            from jobs.figures.evaluation import write_evaluation_page

            write_evaluation_page(run)
        log_artifacts(run, {"evaluation": run / JSON_NAME})
        return result


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

    def validate(self, cluster: ClusterConfig) -> None:
        """Require both folders."""
        require_all(
            _run_exists(self.config.run, cluster),
            (bool(self.config.output), "output is empty; give a folder: output=DIR"),
        )

    def inputs(self) -> str:
        """Return the checkpoint: a run that was trained further is exported again."""
        return _state_of(self.config.run, self.config.step)

    @property
    def is_done(self) -> bool:
        """Whether it was exported, to this folder: the mark is in the run's."""
        return super().is_done and Path(self.config.output).is_dir()

    def run(self, env: RankEnvironment) -> str:
        """Export; return the folder."""
        from simclr.export.export import export
        from simclr.export.load import CARD_NAME

        folder = export(self.config)
        log_artifacts(Path(self.config.run), {"card": folder / CARD_NAME})
        return str(folder)


def main() -> None:
    """Console script."""
    cli.main(Evaluate)


def export() -> None:
    """Console script of ``simclr-export``."""
    cli.main(Export)


if __name__ == "__main__":
    main()
