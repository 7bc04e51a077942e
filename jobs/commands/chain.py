"""``simclr-chain``: from rasters to a published encoder with one command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from jobs import cli, launch
from jobs.cli.errors import explain, nearest
from jobs.cli.schema import as_meant, register, schema_of, to_settings
from jobs.commands.evaluate import Evaluate, Export
from jobs.commands.fetch import Fetch
from jobs.commands.pack import Pack
from jobs.commands.pretrain import Pretrain
from jobs.commands.verify import Verify
from jobs.config import ClusterConfig, Executor
from jobs.launch import Command
from jobs.run_dir import read_submission
from jobs.slurm.submit import live_job
from simclr.config import require

STAGES: dict[str, type[Command]] = {
    command.name: command for command in (Fetch, Pack, Verify, Pretrain, Evaluate, Export)
}
_SOON = "JOB"  # stands for the number of a job that is not submitted yet


def run_chain(arguments: Sequence[str], say: Callable[[str], None]) -> None:
    """Run the stages in order; those on Slurm become jobs that wait for one another.

    Completed stages are skipped, and later stages wait for jobs that are already queued.

    Raises:
        ValueError: a stage cannot run; nothing was started.
        RuntimeError: a stage failed; the later ones were not started.
    """
    jobs: list[tuple[str, str]] = []
    stages = plan(arguments)
    # what comes after a stage that is not done was made from other inputs
    left = [*dropwhile(lambda stage: stage[0].is_done, stages)]
    for number, (command, cluster) in enumerate(left):
        queued = [one.name for one, place in left[:number] if place.executor is Executor.slurm]
        waits = [name for name in queued if name in _awaited_by(command.name)]
        require(
            cluster.executor is Executor.slurm or not waits,
            f"{command.name}: cluster.executor is {cluster.executor.value}, which does not wait "
            f"for {' and '.join(waits)} on Slurm; give it a cluster of Slurm too, or leave it out "
            "until they are done",
        )
    for command, _ in stages[: len(stages) - len(left)]:
        say(f"{command.name:<9} done before, with the same settings")
    for command, cluster in left:
        name, result = command.name, _start(command, cluster, jobs)
        say(f"{name}\n{result}" if "\n" in result else f"{name:<9} {result}")


def plan(arguments: Sequence[str]) -> list[tuple[Command, ClusterConfig]]:
    """Compose and check all stages; later ones read the output of earlier ones.

    Raises:
        ValueError: no stage is named, or one of them cannot run.
    """
    stages: list[tuple[Command, ClusterConfig]] = []
    for name, words in split_stages(arguments):
        settings = _compose(name, words)
        _fill_in(settings, name, [command for command, _ in stages])
        stages.append((STAGES[name].from_settings(settings), settings.cluster))
    dry_run = any(cluster.dry_run for _, cluster in stages)  # wherever it stands
    stages = [(command, replace(cluster, dry_run=dry_run)) for command, cluster in stages]
    for number, (command, cluster) in enumerate(stages):
        try:  # before an earlier stage has worked for hours
            command.validate(replace(cluster, after=_SOON if number else cluster.after))
        except ValueError as error:
            raise ValueError(f"{command.name}: {error}") from error
    return stages


def split_stages(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Cut ``A B pack C pretrain D`` into ``pack A B C`` and ``pretrain A B D``.

    A stage's own setting overrides the common one with the same key. ValueError: no command is
    named.
    """
    starts = [k for k, word in enumerate(arguments) if word in STAGES]
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    require(
        bool(starts),
        f"no stage is named; {nearest(words[0], [*STAGES]) if words else ''}give commands with "
        f"their settings: {', '.join(STAGES)}",
    )
    stages = []
    for start, end in zip(starts, [*starts[1:], len(arguments)], strict=True):
        own = arguments[start + 1 : end]
        keys = {_key(word) for word in own}
        common = [word for word in arguments[: starts[0]] if _key(word) not in keys]
        stages.append((arguments[start], [*common, *own]))
    return stages


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _compose(name: str, words: Sequence[str]) -> Any:
    command, folder = STAGES[name], None
    settings: list[str] = []
    for word in words:
        if _key(word) in cli.CONFIG_DIR:
            folder = word.partition("=")[2]
            continue
        require(
            "=" in word and not word.startswith("-"),
            f"{name}: {word!r} is not a setting; {nearest(word, [*STAGES])}write key=value, "
            "and options in front of the first command: --config-dir=DIR, --dry-run",
        )
        settings.append(as_meant(word, schema_of(command)))
    if folder is not None:  # what ``--config-dir`` does for a single command
        path = Path(cli.config_dir(folder)).absolute()
        settings.append(f"hydra.searchpath=['file://{path}']")
    register(command)
    try:
        with initialize_config_module("jobs.conf", version_base="1.3"):
            if folder is not None:
                runtime = compose(name, overrides=settings, return_hydra_config=True).hydra.runtime
                cli.check_own_files([folder], runtime.choices, command)
            return to_settings(compose(name, overrides=settings))
    except Exception as error:
        # An unknown key is explained with the keys of the command that it was typed for.
        raise ValueError(f"{name}: {explain(error, command)[0]}") from error


def _fill_in(settings: Any, name: str, earlier: Sequence[Command]) -> None:
    """Let a stage read the output of earlier ones, unless the user has set other inputs."""
    fetched = [command.root for command in earlier if isinstance(command, Fetch)]
    if fetched and name == "pack" and not settings.source.root:
        settings.source.root = fetched[-1]
    packed = [command.config.output for command in earlier if command.name == "pack"]
    runs = [command.config.run_dir for command in earlier if command.name == "pretrain"]
    if packed and name != "pack" and not getattr(settings, "shards", "none"):
        settings.shards = packed if name == "pretrain" else packed[-1]
    if runs and not getattr(settings, "run", "none"):
        settings.run = runs[-1]


def _start(command: Command, cluster: ClusterConfig, jobs: list[tuple[str, str]]) -> str:
    """Run or submit a stage, or find its active job; add the job and its stage to ``jobs``."""
    if cluster.executor is not Executor.slurm:
        # in a dry run, nothing has written the inputs that plan has checked
        return launch.run(command, replace(cluster, after=_SOON) if cluster.dry_run else cluster)
    waiting = "" if cluster.dry_run else _at_work(command)
    if waiting:
        jobs.append((command.name, waiting))
        return f"job {waiting}, submitted before"
    after = [job for name, job in jobs if name in _awaited_by(command.name)]
    awaited = ":".join(filter(None, (cluster.after, *after))) or None
    submitted = launch.run(command, replace(cluster, after=awaited))
    jobs.append((command.name, _SOON if cluster.dry_run else submitted))
    waits = f", after {' '.join(after)}" if after else ""
    if cluster.dry_run:
        return f"would be submitted{waits}:\n{submitted}"
    return f"job {submitted}{waits}"


def _awaited_by(name: str) -> Collection[str]:
    """Return the stages whose jobs a stage waits for; sources may be packed in parallel."""
    return {"fetch": (), "pack": ("fetch",)}.get(name, tuple(STAGES))


def _at_work(command: Command) -> str:
    """Return the unfinished jobs of a command and its settings, in the form of a dependency."""
    for each in (command.follow_up(), command):  # the one that ends last comes first
        earlier = read_submission(each.job_dir, each.name) if each else None
        # one with other settings is refused when this one is submitted
        same = each is not None and earlier and earlier.settings in ("", each.settings)
        if each and earlier and same and live_job(each.job_dir, each.name):
            return earlier.job_id.replace(",", ":")
    return ""


HELP = """\
simclr-chain: run several commands in order; on Slurm, submit them as jobs that
wait for one another, and return.

Examples:
  simclr-chain pack source=bigearthnet_v2 source.root=BigEarthNet \\
               output=shards \\
               pretrain recipe=recommended run_dir=runs/first \\
               evaluate task=bigearthnet19 \\
               export output=encoder
  simclr-chain fetch area=central_valley dates=[2019-01-01/2019-03-31] \\
               output=cogs pack source=california_cog output=shards \\
               pretrain run_dir=runs/california
  simclr-chain --config-dir=$HOME/clusters cluster=mine \\
               pretrain shards=[shards] run_dir=runs/two export output=encoder
  simclr-chain --dry-run cluster=slurm_example \\
               pack ... cluster=slurm_cpu_example pretrain ...

Each command is followed by its own settings, the same as those of
simclr-COMMAND. Settings in front of the first command apply to all. Later
commands read what earlier ones leave: shards, run and output folders need to
be named once. All settings are checked before the first command starts.
--dry-run holds for all commands, wherever it stands.

The same chain again continues: what is done is left out, and jobs that are
queued are kept. If a job fails, Slurm cancels those that wait for it.

Output:
  a line for each command: what it did, or its job; simclr-status shows more.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use;
inside a job also 75: stopped and saved, run it again."""


def main() -> None:
    """Console script."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(
        level=logging.INFO, format=form, datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )

    def act(arguments: Sequence[str]) -> None:
        """Run the chain."""
        run_chain([cli.SPELLINGS.get(word, word) for word in arguments], cli.say)

    cli.main_without_settings("chain", HELP, act)


if __name__ == "__main__":
    main()
