"""A study and a cluster come in; its runs are made, scored and reported, here or as Slurm jobs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from jobs.cluster import ClusterConfig, Executor
from jobs.done import is_done
from jobs.launch import collecting, dispatch
from jobs.studies.arms import Member
from jobs.studies.budget import budget, check_budget
from jobs.studies.config import StudyConfig, StudyName
from jobs.studies.rounds import due, foreseen
from jobs.sweep import submit_members
from jobs.tasks.pretraining import Pretrain
from jobs.tasks.studies import Analyse, Score, ScoreConfig
from jobs.tasks.together import Together, TogetherConfig
from preprocess.shards.manifest import read_manifest
from simclr.checkpoint.manifest import CHECKPOINTS
from simclr.config import require
from simclr.evaluate.config import SCORES, EvaluateConfig

T = TypeVar("T")
_SOON = "JOB"  # stands for a job that a dry run does not submit
_log = logging.getLogger("simclr")


def run_study(config: StudyConfig, cluster: ClusterConfig) -> str:
    """Run what is missing of a study; return the verdict, or on Slurm the jobs.

    The same call again leaves out what is done, and numbers do not depend on how often it was cut.

    Raises:
        ValueError: the study cannot be; nothing was started.
        RuntimeError: a run failed.
    """
    _check(config)
    if config.study is not StudyName.published and not cluster.after:  # a job before packs them
        _check_scoring(config)
    members = due(config)
    if members and not cluster.after:
        _check_batch(members)
    if members:
        cost = budget(config, foreseen(config), cluster)  # of all rounds
        _log.info("%s", cost)
        check_budget(config, cost)
    if cluster.executor is Executor.slurm:
        return "\n".join(_submit([*_tasks(config, members), [Analyse(config)]], cluster))
    _run_rounds(config, cluster)
    return dispatch(Analyse(config), replace(cluster, executor=Executor.here, tasks_per_node=1))


def _run_rounds(config: StudyConfig, cluster: ClusterConfig) -> None:
    """Make one run after the other, or as many as share a job, until scores ask for no more."""
    done = 0
    while len(members := due(config)) > done:
        for group in batched(members[done:], config.runs_per_job):
            for task in _trainings(config, group):
                _log.info("%s: %s", task.verb, dispatch(task, cluster, in_sweep=True))
            for member in group:  # scored at once: what is cut short has a report
                score = Score(scoring(config, member, first=not done))
                said = dispatch(score, cluster, in_sweep=True).rpartition("\n")[2]
                done += 1
                _log.info("%s %d of %d: %s", score.verb, done, len(members), said)


def _tasks(config: StudyConfig, members: Sequence[Member]) -> list[Sequence[Any]]:
    return [
        _trainings(config, members),
        [Score(scoring(config, member, first=not k)) for k, member in enumerate(members)],
    ]


def _trainings(config: StudyConfig, members: Sequence[Member]) -> list[Any]:
    alone = [Pretrain(member.run) for member in members]
    if config.runs_per_job == 1:
        return alone
    left = [task.config for task in alone if not is_done(task)]
    groups = batched(left, config.runs_per_job)
    return [Together(TogetherConfig(runs=group)) for group in groups]


def batched(items: Sequence[T], size: int) -> list[list[T]]:
    """Cut a sequence into lists of ``size``; the last may be shorter."""
    # itertools.batched comes with Python 3.12
    return [list(items[first : first + size]) for first in range(0, len(items), size)]


def scoring(config: StudyConfig, member: Member, *, first: bool) -> ScoreConfig:
    """Return how a run is scored.

    Only the first has the controls, which are the same for all; but in a study of labels they are
    what is compared, with each seed's labels.
    """
    run, controls = member.run.run_dir, first or config.study is StudyName.labels
    evaluations = [
        EvaluateConfig(
            run=run,
            shards=config.labelled or config.shards[0],
            task=task,
            protocols=[config.protocol],
            fractions=config.shares,
            seeds=[member.seed],
            split=config.split,
            controls=controls,
        )
        for task in config.tasks
    ]
    return ScoreConfig(run=run, evaluations=evaluations)


def _check(config: StudyConfig) -> None:
    require(bool(config.output), "output is empty; give a folder for the study: output=STUDY")
    require(
        not Path(config.output, CHECKPOINTS).exists(),
        f"output is {config.output}, the folder of a run; give one of its own: output=STUDY",
    )
    if config.study is not StudyName.published:
        require(bool(config.shards), "shards is empty; give packed folders: shards=[SHARDS]")
        require(
            bool(config.tasks),
            "tasks is empty; name label sets of the shards: tasks=[irrigation_regular]",
        )


def _check_scoring(config: StudyConfig) -> None:
    """Refuse before hours of training what their scoring would refuse."""
    layout = read_manifest(Path(config.labelled or config.shards[0])).layout
    for task in config.tasks:
        layout.label_set(task)
    scores = sorted({name.removesuffix("_macro") for kind in SCORES.values() for name in kind})
    require(
        config.score.removesuffix("_macro") in scores,
        f"score is {config.score}; give one of {', '.join(scores)}",
    )


def _check_batch(members: Sequence[Member]) -> None:
    """Refuse a batch that no epoch fills, before the hours of the arms ahead of it."""
    from simclr.corpus import open_corpus

    largest = max(members, key=lambda one: one.run.data.global_batch_size)
    data = largest.run.data
    held = open_corpus(largest.run.shards, data.bands, data.splits, data.fraction).num_samples
    fitting = [one.arm for one in members if one.run.data.global_batch_size <= held]
    require(
        largest.arm in fitting,
        f"arm {largest.arm} has {data.global_batch_size} pairs a step but the selected shards hold "
        f"{held} patches; give more shards, or leave it out: "
        f"arms=[{','.join(dict.fromkeys(fitting))}]",
    )


def _submit(stages: Sequence[Sequence[Any]], cluster: ClusterConfig) -> list[str]:
    """Submit each stage as an array that waits for the one before; return a line for each."""
    lines, after = [], cluster.after
    for name, tasks in zip(("pretrain", "score", "report"), stages, strict=True):
        waiting = _after(cluster, after) if after else cluster
        jobs = [dispatch(tasks[0], waiting)] if name == "report" else _array(tasks, waiting)
        if not jobs:
            lines.append(f"{name:<9} done before, with the same settings")
            continue
        said = f", after {after}" if after else ""
        text = "\n".join(jobs)
        lines.append(f"{name}{said}\n{text}" if cluster.dry_run else f"{name:<9} job {text}{said}")
        after = _SOON if cluster.dry_run else ":".join(jobs)
    return lines


def _array(tasks: Sequence[Any], cluster: ClusterConfig) -> list[str]:
    with collecting() as requests:
        for task in tasks:
            dispatch(task, cluster, in_sweep=True)
    return submit_members(requests)


def _after(cluster: ClusterConfig, jobs: str) -> ClusterConfig:
    # afterany: what one failed run lacks is named in the report, the others are scored all the same
    return replace(cluster, after=jobs, extra={**cluster.extra, "dependency": f"afterany:{jobs}"})
