"""``simclr-evaluate``: an encoder and labelled shards become scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from jobs.cli import main as cli
from jobs.cli.help import Help
from jobs.cli.schema import EvaluateApp, narrow
from jobs.command import again, alone
from jobs.config import ClusterConfig
from jobs.launch import dispatch
from jobs.run_dir import JOB_FOLDER
from jobs.slurm.environment import RankEnvironment, launch_of
from jobs.slurm.preemption import requeued_if_stopped
from preprocess.shards.manifest import read_manifest
from simclr.config import require
from simclr.evaluation.config import EvaluateConfig
from simclr.export.config import ExportConfig


@dataclass(frozen=True)
class Evaluate:
    """Score a run's encoder.

    Attributes:
        config: settings.
        token: the same on all ranks that were started together.
    """

    config: EvaluateConfig
    token: str = field(default_factory=lambda: uuid4().hex)

    verb = "evaluate"
    checkpoint = __submitit_checkpoint__ = again

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a run, packed shards and a task that they have labels for."""
        config = self.config
        require(bool(config.run), "run is empty; give a run folder: run=RUN")
        require(
            bool(cluster.after) or Path(config.run).is_dir(),  # else a job before this one makes it
            f"run is {config.run}, which is no folder",
        )
        require(bool(config.shards), "shards is empty; give a packed folder: shards=SHARDS")
        require(bool(config.task), "task is empty; name a label set: task=eurosat")
        if not cluster.after:
            read_manifest(Path(config.shards))

    def members(self, cluster: ClusterConfig) -> tuple[list[Evaluate], ClusterConfig]:
        """One job with the ranks of one node, which share features and fits."""
        return [self], replace(cluster, nodes=1)

    def __call__(self) -> str:
        """Evaluate as one rank; return the table on the main one."""
        with requeued_if_stopped() as env:
            told = self._score(env)
            if env.is_main:
                # Here, since matplotlib is slow to import and a login node only submits.
                from jobs.figures.evaluation import write_evaluation_page

                write_evaluation_page(Path(self.config.run))
        return told if env.is_main else ""

    def _score(self, env: RankEnvironment) -> str:
        """Return the table of scores, and where they lie."""
        launch = launch_of(env, self.token)
        if self.config.all_checkpoints:
            from simclr.evaluation.checkpoint_selection import choice_report, choose_checkpoint

            path = choose_checkpoint(self.config, env.is_main, launch)
            return f"{choice_report(path)}\n\n{path}"
        from simclr.evaluation.evaluate import evaluate
        from simclr.evaluation.report import JSON_NAME, report_text

        table = report_text(evaluate(self.config, env.is_main, launch))
        return f"{table}\n{Path(self.config.run, JSON_NAME)}"


@dataclass(frozen=True)
class Export:
    """Export a run's encoder."""

    config: ExportConfig

    verb = "export"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for both folders."""
        require(bool(self.config.run), "run is empty; give a run folder: run=RUN")
        require(
            bool(cluster.after) or Path(self.config.run).is_dir(),
            f"run is {self.config.run}, which is no folder",
        )
        require(bool(self.config.output), "output is empty; give a folder: output=DIR")

    def __call__(self) -> str:
        """Export; return the folder."""
        with requeued_if_stopped():
            from simclr.export.export import export

            return str(export(self.config))


HELP = Help(
    sentence="score a run's encoder on labelled patches by k-NN, linear probe or fine-tuning, "
    "beside controls that learnt nothing.",
    examples=(
        "simclr-evaluate run=runs/first shards=shards task=bigearthnet19",
        "simclr-evaluate run=runs/first shards=shards/eurosat task=eurosat",
        "simclr-evaluate run=runs/first shards=shards task=eurosat protocols=[knn]",
    ),
    settings={
        "run": "run folder; its newest valid checkpoint is scored",
        "shards": "folder with labelled packed patches",
        "task": "label set in the shards: eurosat, bigearthnet19, bigearthnet43, "
        "irrigation_regular, ...",
        "protocols": "how encoders are asked: knn, probe, finetune_frozen, finetune_last_stage, "
        "finetune_all (the last three train networks: minutes to hours)",
        "fractions": "shares of the training labels, each asked for",
        "others": "further encoders for the same table: runs, exports, files of weights",
        "seeds": "seeds of drawn splits, label subsets and untrained controls",
        "step": "checkpoint to score; 0 takes the newest valid one",
        "split": "given: that of the shards; drawn: blocks of ground, for each seed",
        "balanced": "of a yes or no: keep as many of both; nature is not balanced",
        "all_checkpoints": "score every checkpoint on validation instead, and name the best",
        "test_time": "average over the 8 turns and flips of a patch. Further: batch_size, "
        "controls, neighbours, bootstrap, finetune.*",
    },
    output="evaluation.json, .md and .html in the run folder, figures and their numbers as CSV in "
    "evaluation/; stdout shows the table.",
)


def work(app: EvaluateApp, member: str | None) -> str:
    """Evaluate, or submit it; return the table."""
    task = Evaluate(narrow(app, EvaluateConfig))
    return dispatch(task, app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("evaluate", work, HELP)


if __name__ == "__main__":
    main()
