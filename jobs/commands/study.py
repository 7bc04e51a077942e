"""``simclr-study``: pretrain and score arms x seeds, and report what the scores support."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import cli, launch
from jobs.commands.evaluate import Evaluate
from jobs.commands.pretrain import Pretrain
from jobs.config import ClusterConfig, Executor
from jobs.launch import Command
from jobs.run_dir import provenance
from jobs.slurm.environment import RankEnvironment
from jobs.study.arms import StudyConfig, StudyName, StudyRun, count_patches, most_steps, runs_of
from preprocess.shards.manifest import read_manifest
from simclr.checkpoint.manifest import CHECKPOINTS
from simclr.config import require
from simclr.evaluation.config import SCORES, EvaluateConfig, kind_of
from simclr.monitoring.metrics import METRICS_NAME, read_metrics

_SOON = "JOB"  # stands for a job that a dry run does not submit
_log = logging.getLogger("simclr")


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """One run folder of a study, and all that it is scored on: one for each label set."""

    run: str
    evaluations: list[EvaluateConfig] = field(default_factory=list)


@dataclass(frozen=True)
class Score(Command):
    """Score one run on every label set of a study."""

    config: ScoreConfig

    name = "evaluate"
    Config = ScoreConfig
    uses_gpu = True

    def validate(self, cluster: ClusterConfig) -> None:
        """Check each evaluation."""
        for config in self.config.evaluations:
            Evaluate(config).validate(cluster)

    def inputs(self) -> str:
        """Return those of the evaluations."""
        return " ".join(Evaluate(config).inputs() for config in self.config.evaluations)

    def run(self, env: RankEnvironment) -> str:
        """Evaluate on each label set in turn; return the run folder."""
        for config in self.config.evaluations:
            Evaluate(config).run(env)
        return self.config.run


@dataclass(frozen=True)
class Study(Command):
    """Pretrain and score the arms of a study with several seeds, and report the differences.

    Run again, it completes what is missing. As a job it writes the report from the scores so far.
    """

    config: StudyConfig
    # command, commit and versions of the submitting process: a job knows only its own, and runs
    # from a copy of the code without history
    made_by: dict[str, Any] = field(default_factory=provenance)

    name = "study"
    Config = StudyConfig
    home = ("output",)
    groups = ("recipe", "scale", "cluster")
    examples = (
        "simclr-study study=published output=studies/2021",
        "simclr-study study=rate recipe=laptop shards=[v1] tasks=[eurosat] output=out",
        "simclr-study study=augmentation shards=[shards] tasks=[eurosat] output=out",
    )
    main_settings = (
        *("study", "output", "shards", "labelled", "tasks", "seeds", "arms", "protocol"),
        *("fractions", "max_runs", "max_hours"),
    )
    results = (
        "report.html, figures and every number as CSV in output; a study of augmentation also "
        "writes a recipe without the lowest couplets: --config-dir=OUTPUT recipe=allowed. All "
        "settings of simclr-pretrain apply to every arm. stdout shows the verdict, or the jobs."
    )
    memory_fix = Pretrain.memory_fix

    def run(self, env: RankEnvironment) -> str:
        """Write the report; return the verdict and the path of the report."""
        from jobs.study.report import write_study

        return write_study(self.config, self.made_by)


def check_budget(config: StudyConfig, runs: Sequence[StudyRun], cluster: ClusterConfig) -> str:
    """Return the cost of the remaining runs; ValueError: it exceeds ``max_hours``."""
    left = [run.config for run in runs if not Pretrain(run.config).is_done]
    patches = count_patches(config.shards)
    pairs = sum(most_steps(run, patches) * run.data.global_batch_size for run in left)
    paths = [Path(run.config.run_dir, METRICS_NAME) for run in runs]
    records = [read_metrics(path) for path in paths if path.is_file()]
    # the latest record of each run: the first ones include warm-up
    measured = [float(lines[-1]["patches_per_s"]) for lines in records if lines]
    rate = statistics.median(measured) if measured else config.expected_rate
    hours = pairs / rate / 3600 * cluster.num_ranks
    source = "measured" if measured else "expected_rate; the first run will measure it"
    cost = (
        f"{len(left)} runs with {pairs:,} pairs in total remain: about {hours:.2g} device hours "
        f"at {rate:,.0f} pairs/s ({source})"
    )
    require(
        hours <= config.max_hours,
        f"{cost}; that is more than max_hours={config.max_hours:g}. Raise max_hours to "
        f"{hours * 1.1:.2g}, or cut the cost by fewer arms=[...] or seeds=[...], or data.fraction",
    )
    return cost


def run_study(config: StudyConfig, cluster: ClusterConfig) -> str:
    """Run the missing parts of a study; return the verdict, or on Slurm the jobs.

    A repeated call skips completed work; results do not depend on interruptions.

    Raises:
        ValueError: the study is not possible; nothing was started.
        RuntimeError: a run failed.
    """
    require(bool(config.output), "output is empty; give a folder for the study: output=STUDY")
    require(
        not Path(config.output, CHECKPOINTS).exists(),
        f"output is {config.output}, the folder of a run; give one of its own: output=STUDY",
    )
    if config.study is not StudyName.published:
        require(bool(config.shards), "shards is empty; give packed folders: shards=[SHARDS]")
        fix = "name label sets of the shards: tasks=[irrigation_regular]"
        require(bool(config.tasks), f"tasks is empty; {fix}")
    runs = runs_of(config)
    if runs and not cluster.after:  # a previous job packs the shards
        _check_before_training(config, runs)
    trainings = [Pretrain(run.config) for run in runs]
    for training in trainings:  # all arms, before the first takes hours
        training.validate(cluster)
    if runs:
        _log.info("%s", check_budget(config, runs, cluster))
    scores = [Score(scoring(config, run, first=k == 0)) for k, run in enumerate(runs)]
    if cluster.executor is Executor.slurm:
        untrained = [one for one in trainings if not one.is_done]
        changing = {one.config.run_dir for one in untrained}
        unscored = [s for s in scores if s.config.run in changing or not s.is_done]
        stages: dict[str, Sequence[Command]] = {"pretrain": untrained, "score": unscored}
        return "\n".join(_submit({**stages, "report": [Study(config)]}, cluster))
    # score each run at once, so that a study cut short has scores to report
    for number, (training, score) in enumerate(zip(trainings, scores, strict=True), 1):
        for line in launch.run_all([(training, cluster)]):
            _log.info("pretrain: %s", line)
        for line in launch.run_all([(score, cluster)]):
            _log.info("scored %d of %d: %s", number, len(runs), line.rpartition("\n")[2])
    return launch.run(Study(config), replace(cluster, executor=Executor.here, tasks_per_node=1))


def scoring(config: StudyConfig, run: StudyRun, *, first: bool) -> ScoreConfig:
    """Return the settings for scoring a run.

    Only the first run gets the controls, which are the same for all; but in a study of labels all
    do, as the controls are what is compared, with each seed's labels.
    """
    run_dir, controls = run.config.run_dir, first or config.study is StudyName.labels
    evaluations = [
        EvaluateConfig(
            run=run_dir,
            shards=config.scored_shards,
            task=task,
            protocols=[config.protocol],
            fractions=config.shares,
            seeds=[run.seed],
            split=config.split,
            controls=controls,
        )
        for task in config.tasks
    ]
    return ScoreConfig(run=run_dir, evaluations=evaluations)


def _check_before_training(config: StudyConfig, runs: Sequence[StudyRun]) -> None:
    """Refuse what scoring would refuse hours later, and a batch larger than an epoch."""
    layout, score = read_manifest(Path(config.scored_shards)).layout, config.score
    sets = [layout.label_set(task) for task in config.tasks]
    scores = {each.name: SCORES[kind_of(each.kind, len(each.classes))] for each in sets}
    known = [{name.removesuffix("_macro") for name in names} for names in scores.values()]
    lacking = [
        task for task, names in scores.items() if not {score, f"{score}_macro"}.intersection(names)
    ]
    require(
        not lacking,
        f"score is {score}, which {' and '.join(lacking)} cannot have; give one of "
        f"{', '.join(sorted(set.intersection(*known)))}",
    )
    from simclr.data.dataset import open_dataset  # here, since torch is slow to import

    largest = max(runs, key=lambda one: one.config.data.global_batch_size)
    data = largest.config.data
    held = open_dataset(largest.config.shards, data.bands, data.splits, data.fraction).num_samples
    fitting = [one.arm for one in runs if one.config.data.global_batch_size <= held]
    require(
        largest.arm in fitting,
        f"arm {largest.arm} has {data.global_batch_size} pairs a step but the selected shards hold "
        f"{held} patches; give more shards, or leave it out: "
        f"arms=[{','.join(dict.fromkeys(fitting))}]",
    )


def _submit(stages: Mapping[str, Sequence[Command]], cluster: ClusterConfig) -> list[str]:
    """Submit each stage as an array that waits for the previous one; return one line per stage."""
    lines, waiting = [], cluster
    for name, tasks in stages.items():
        jobs = list(launch.run_all([(one, waiting) for one in tasks], skip_done=False))
        if not jobs:
            lines.append(f"{name:<9} done before, with the same settings")
            continue
        said = f", after {waiting.after}" if waiting.after else ""
        text = "\n".join(jobs)
        lines.append(f"{name}{said}\n{text}" if cluster.dry_run else f"{name:<9} job {text}{said}")
        after = _SOON if cluster.dry_run else ":".join(jobs)
        # afterany: if a run fails, the others are still scored, and the report names missing scores
        extra = {**cluster.extra, "dependency": f"afterany:{after}"}
        waiting = replace(cluster, after=after, extra=extra)
    return lines


def main() -> None:
    """Console script."""
    cli.main(Study, lambda study, cluster: run_study(study.config, cluster))


if __name__ == "__main__":
    main()
