"""The tasks of a study beside pretraining: runs are scored, scores become a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.cluster import ClusterConfig
from jobs.provenance import provenance
from jobs.requeue import requeued_if_stopped
from jobs.runfolder import JOB_FOLDER
from jobs.studies.config import StudyConfig
from jobs.tasks.encoders import Evaluate
from jobs.tasks.task import again, alone
from simclr.config import require
from simclr.evaluate.config import EvaluateConfig


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """One run of a study, and all that it is scored on.

    Attributes:
        run: run folder.
        evaluations: one for each label set.
    """

    run: str
    evaluations: list[EvaluateConfig] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """Score one run on every label set of a study."""

    config: ScoreConfig

    verb = "evaluate"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """Inside the run folder."""
        return Path(self.config.run, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Check each evaluation."""
        for config in self.config.evaluations:
            Evaluate(config).prepare(cluster)

    def __call__(self) -> str:
        """Evaluate on one label set after the other; return the run folder."""
        for config in self.config.evaluations:
            Evaluate(config)()
        return self.config.run


@dataclass(frozen=True)
class Analyse:
    """Write the report of a study from what its runs have reached so far.

    Attributes:
        config: settings.
        made_by: command, commit and versions of whoever asks: a job knows only its own, and runs
            from a copy of the code without its history.
    """

    config: StudyConfig
    made_by: dict[str, Any] = field(default_factory=provenance)

    verb = "study"
    checkpoint = __submitit_checkpoint__ = again
    members = alone

    @property
    def folder(self) -> Path:
        """Inside the study's folder."""
        return Path(self.config.output, JOB_FOLDER)

    def prepare(self, cluster: ClusterConfig) -> None:
        """Ask for a folder."""
        require(bool(self.config.output), "output is empty; give a folder: output=STUDY")

    def __call__(self) -> str:
        """Analyse; return the verdict and where the report lies."""
        with requeued_if_stopped():
            from jobs.studies.report import write_study

            return write_study(self.config, self.made_by)
