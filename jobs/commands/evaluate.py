"""``simclr-evaluate``: score a run's encoder on labelled shards."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from uuid import uuid4

from jobs import cli
from jobs.command import Command, side_work
from jobs.commands.export import run_exists
from jobs.config import ClusterConfig
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment, rendezvous_of
from jobs.tracking.sink import log_artifacts
from preprocess.config import require_all
from preprocess.shards.manifest import read_manifest
from simclr.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class Evaluate(Command):
    """Score a run's encoder on labelled patches, beside controls (untrained baselines).

    Attributes:
        config: settings.
        token: the same on all ranks that were started together.
    """

    config: EvaluateConfig
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

    @property
    def job_dir(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def validate(self, cluster: ClusterConfig) -> None:
        """Require a run, packed shards and a task."""
        config = self.config
        require_all(
            run_exists(config.run, cluster),
            (bool(config.shards), "shards is empty; give a packed folder: shards=SHARDS"),
            (bool(config.task), "task is empty; name a label set: task=eurosat"),
        )
        if not cluster.after:
            read_manifest(Path(config.shards))

    def split(self, cluster: ClusterConfig) -> tuple[list[Self], ClusterConfig]:
        """One job with the ranks of one node, which share features and fits."""
        return [self], replace(cluster, nodes=1)

    def run(self, env: RankEnvironment) -> str:
        """Evaluate as one rank; return the table on the main one."""
        # Here, since torch is slow to import and a login node only submits.
        from simclr.evaluation.evaluate import evaluate, select_checkpoint
        from simclr.evaluation.report import JSON_NAME, choice_report, report_text
        from simclr.monitoring.metrics import METRICS_NAME, read_metrics

        launch = rendezvous_of(env, self.token)
        if self.config.all_checkpoints:
            metrics = Path(self.config.run, METRICS_NAME)
            records = read_metrics(metrics) if metrics.exists() else []
            losses = {record["step"]: record["loss"] for record in records}
            path = select_checkpoint(self.config, losses, env.is_main, launch)
            result = f"{choice_report(path)}\n\n{path}"
        else:
            table = report_text(evaluate(self.config, env.is_main, launch))
            result = f"{table}\n{Path(self.config.run, JSON_NAME)}"
        if not env.is_main:
            return ""
        with side_work("the evaluation is done, but its page is not drawn"):
            # Here, since matplotlib is slow to import and a login node only submits.
            from jobs.figures.evaluation import write_evaluation_page

            write_evaluation_page(Path(self.config.run))
        log_artifacts(Path(self.config.run), {"evaluation": Path(self.config.run, JSON_NAME)})
        return result


def main() -> None:
    """Console script."""
    cli.main(Evaluate)


if __name__ == "__main__":
    main()
