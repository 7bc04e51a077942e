"""``simclr-chain``: from rasters to a published encoder by one command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from hydra import compose, initialize_config_module

from jobs.cli import main as cli
from jobs.cli.errors import explain, nearest
from jobs.cli.options import CONFIG_DIR, SPELLINGS, config_dir
from jobs.cli.schema import narrow, register, to_app
from jobs.command import Task
from jobs.commands.evaluate import Evaluate, Export
from jobs.commands.pack import Pack, Verify
from jobs.commands.pretrain import Pretrain
from jobs.config import ClusterConfig, Executor
from jobs.launch import dispatch
from jobs.run_dir import is_done, read_submission
from jobs.slurm.submit import live_job
from simclr.config import require

TASKS: dict[str, type[Any]] = {
    task.verb: task for task in (Pack, Verify, Pretrain, Evaluate, Export)
}
_SOON = "JOB"  # stands for the number of a job that is not submitted yet


@dataclass(frozen=True, slots=True)
class Words:
    """One verb of a chain as it was typed.

    Attributes:
        verb: ``pack``, ...
        arguments: its settings, those in front of the first verb included.
    """

    verb: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One verb of a chain, checked.

    Attributes:
        verb: ``pack``, ...
        task: its work.
        cluster: where it runs.
    """

    verb: str
    task: Task
    cluster: ClusterConfig


def run_chain(arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Run the stages in order; those on Slurm become jobs that wait for one another.

    What is done is left out, and a job that is already queued is waited for.

    Raises:
        ValueError: a stage cannot be; nothing was started.
        RuntimeError: a stage failed; the later ones were not started.
    """
    stages = plan(arguments)
    jobs: list[str] = []
    redone = False
    for stage in stages:
        if not redone and is_done(stage.task):
            say(f"{stage.verb:<9} done before, with the same settings")
            continue
        redone = True  # what comes after it was made from something else
        said = _start(stage, jobs)
        say(f"{stage.verb}\n{said}" if "\n" in said else f"{stage.verb:<9} {said}")


def plan(arguments: Sequence[str]) -> list[Stage]:
    """Compose and check all stages; what one leaves behind is what the next ones read.

    Raises:
        ValueError: there is no stage, or one of them cannot be.
    """
    register()
    stages: list[Stage] = []
    for words in split_stages(arguments):
        app: Any = _compose(words)
        _fill_in(app, words.verb, stages)
        kind = TASKS[words.verb]
        task = kind(narrow(app, get_type_hints(kind)["config"]))
        stages.append(Stage(words.verb, task, app.cluster))
    for number, stage in enumerate(stages):
        _check(stage, first=number == 0)
    return stages


def split_stages(arguments: Sequence[str]) -> list[Words]:
    """Cut ``A B pack C pretrain D`` into ``pack A B C`` and ``pretrain A B D``.

    A setting of a stage takes the place of the common one of the same key.

    Raises:
        ValueError: no verb is named.
    """
    starts = [k for k, word in enumerate(arguments) if word in TASKS]
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    require(
        bool(starts),
        f"no stage is named; {nearest(words[0], [*TASKS]) if words else ''}give verbs with their "
        f"settings: {', '.join(TASKS)}",
    )
    common = arguments[: starts[0]]
    ends = [*starts[1:], len(arguments)]
    return [
        Words(arguments[start], tuple(_merged(common, arguments[start + 1 : end])))
        for start, end in zip(starts, ends, strict=True)
    ]


def _merged(common: Sequence[str], own: Sequence[str]) -> Iterator[str]:
    keys = {_key(word) for word in own}
    yield from (word for word in common if _key(word) not in keys)
    yield from own


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _compose(words: Words) -> Any:
    folders = [w.partition("=")[2] for w in words.arguments if _key(w) in CONFIG_DIR]
    settings = [w for w in words.arguments if _key(w) not in CONFIG_DIR]
    wrong = [word for word in settings if word.startswith("-") or "=" not in word]
    require(
        not wrong,
        f"{words.verb}: {' '.join(wrong)!r} is no setting; write key=value, and options in front "
        "of the first verb: --config-dir=DIR, --dry-run",
    )
    if folders:
        # what ``--config-dir`` means to a verb
        folder = Path(config_dir(folders[-1])).absolute()
        settings.append(f"hydra.searchpath=['file://{folder}']")
    try:
        with initialize_config_module("jobs.conf", version_base="1.3"):
            return to_app(compose(words.verb, overrides=settings))
    except Exception as error:
        # A key that is wrong is explained with the keys of the verb that it was typed for.
        raise ValueError(f"{words.verb}: {explain(error, words.verb)[0]}") from error


def _fill_in(app: Any, verb: str, earlier: Sequence[Stage]) -> None:
    """Let a stage read what earlier ones leave, where the user has not said otherwise."""
    packed = [stage.task.config.output for stage in earlier if stage.verb == "pack"]
    runs = [stage.task.config.run_dir for stage in earlier if stage.verb == "pretrain"]
    if packed and verb != "pack" and not getattr(app, "shards", "none"):
        app.shards = packed if verb == "pretrain" else packed[-1]
    if runs and not getattr(app, "run", "none"):
        app.run = runs[-1]


def _check(stage: Stage, *, first: bool) -> None:
    """Let a stage refuse its settings before an earlier one has worked for hours."""
    awaited = stage.cluster.after if first else _SOON
    try:
        stage.task.prepare(replace(stage.cluster, after=awaited, dry_run=True))
    except ValueError as error:
        raise ValueError(f"{stage.verb}: {error}") from error


def _start(stage: Stage, jobs: list[str]) -> str:
    """Run a stage, submit it, or find it at work; a job is added to those to wait for."""
    cluster = stage.cluster
    if cluster.executor is not Executor.slurm:
        return dispatch(stage.task, cluster)
    waiting = "" if cluster.dry_run else _at_work(stage)
    if waiting:
        jobs.append(waiting)
        return f"job {waiting}, submitted before"
    after = [] if stage.verb == "pack" else jobs  # sources may be packed side by side
    awaited = ":".join([*([cluster.after] if cluster.after else []), *after]) or None
    said = dispatch(stage.task, replace(cluster, after=awaited))
    jobs.append(_SOON if cluster.dry_run else said)
    waits = f", after {' '.join(after)}" if after else ""
    return f"would be submitted{waits}:\n{said}" if cluster.dry_run else f"job {said}{waits}"


def _at_work(stage: Stage) -> str:
    """Return the jobs that were submitted for a stage, as a dependency, if they have not ended."""
    earlier = read_submission(stage.task.folder, stage.verb)
    if earlier is None or live_job(stage.task.folder, stage.verb) is None:
        return ""
    return earlier.job_id.replace(",", ":")


HELP = """\
simclr-chain: run several verbs in order; on Slurm, submit them as jobs that
wait for one another, and return.

Examples:
  simclr-chain pack source=bigearthnet_v2 source.root=BigEarthNet \\
               output=shards \\
               pretrain recipe=recommended run_dir=runs/first \\
               evaluate task=bigearthnet19 \\
               export output=encoder
  simclr-chain --config-dir=$HOME/clusters cluster=mine \\
               pretrain shards=[shards] run_dir=runs/two export output=encoder
  simclr-chain --dry-run cluster=slurm_example \\
               pack ... cluster=slurm_cpu_example pretrain ...

Each verb is followed by its own settings, the same as those of simclr-VERB.
Settings in front of the first verb are for all. What an earlier verb leaves
behind is read by the later ones: shards, run and output folders need to be
named once. All settings are checked before the first verb starts.

The same command again goes on: what is done is left out, and jobs that are
queued are kept. If a job fails, Slurm cancels those that wait for it.

Output:
  a line for each verb: what it did, or its job; simclr-status shows how it
  fares.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use;
inside a job also 75, stopped and saved: run again."""


def main() -> None:
    """Console script."""
    arguments = [SPELLINGS.get(word, word) for word in sys.argv[1:]]
    if {"--help", "-h"} & set(arguments):
        cli.say(HELP)
        raise SystemExit(cli.DONE)
    cli.log_to_stderr()
    debug = "debug=true" in arguments
    raise SystemExit(cli.guarded("chain", lambda: run_chain(arguments, cli.say), debug=debug))


if __name__ == "__main__":
    main()
