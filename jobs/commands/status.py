"""``simclr-status``: state, progress, restarts and next action of runs and packings."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs import cli
from jobs.run_dir import CONFIG_NAME
from jobs.status.records import (
    INTERVAL_S,
    PackingRecord,
    RunRecord,
    SlurmPoller,
    describe,
    describe_packing,
    find_runs,
    is_packing,
    jobs_of,
    packing_job,
)
from jobs.status.render import LiveRecords, print_records

REFRESH_S = 5.0  # of the runs' own files; Slurm is asked less often

HELP = """\
simclr-status: show runs and packings: state and reason, progress, restarts
and their causes, newest checkpoint, work at risk, next action.

Examples:
  simclr-status                      every run in ./runs
  simclr-status runs/first           one run, in full
  simclr-status runs/sweep shards/v1 a sweep, and a packing array
  simclr-status --short runs         one line per run, as squeue shows jobs
  simclr-status --watch runs/first   refreshed in place until Ctrl-C or the end
  simclr-status --json               for programs
  simclr-status --report runs/first  one HTML page: curves, attempts, probe

Options:
  --short            one line per run and nothing else
  --watch[=SECONDS]  show again every 5 s; Slurm is asked every SECONDS (30),
                     10 or more
  --json             records as JSON
  --report           write RUN/report.html for each run and name it

A run that waits, trains, stopped or died is described from its own folder and,
where there is Slurm, from squeue and sacct; neither is needed, nor is torch.
One run alone has the checksums of its newest checkpoint compared (verified); of
several, only the sizes (whole).

Exit codes: 0 all is well, 1 a run needs a person, 2 wrong use."""


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed arguments."""

    folders: tuple[Path, ...]  # runs, packings, or folders of runs
    as_json: bool  # for programs
    report: bool  # write a page for each run
    short: bool  # one line per run
    watch_s: float  # interval of queries to Slurm while watching; 0 shows once


def main() -> None:
    """Console script."""
    cli.main_without_settings("status", HELP, lambda arguments: show(parse(arguments)))


def parse(arguments: Sequence[str]) -> Options:
    """Parse the arguments; ValueError: an option, or its value, is unknown."""
    flags = {word for word in arguments if word.startswith("-") or word == "json=true"}
    watch = next((word for word in flags if word.partition("=")[0] == "--watch"), "")
    if unknown := flags - {"--json", "json=true", "--report", "--short", watch}:
        raise ValueError(
            f"{min(unknown)} is not an option; choose from --short, --json, --watch[=SECONDS], "
            "--report"
        )
    text = watch.partition("=")[2] or str(INTERVAL_S)
    if not text.replace(".", "", 1).isdigit() or float(text) < 10:
        raise ValueError(f"{watch} is not an interval; give seconds, 10 or more: --watch=60")
    return Options(
        # drop duplicates, such as from a wildcard beside a name
        tuple(dict.fromkeys(Path(word) for word in arguments if word not in flags)),
        as_json=bool(flags & {"--json", "json=true"}),
        report="--report" in flags,
        short="--short" in flags,
        watch_s=float(text) if watch else 0.0,
    )


def show(options: Options) -> bool:
    """Print the records of runs and packings, once or repeatedly; return if one needs a person.

    Raises:
        ValueError: a folder is neither run nor packing, nor holds runs.
    """
    poller = SlurmPoller(options.watch_s or INTERVAL_S)
    runs, packings = _look(options, poller)
    if not options.watch_s or options.report or options.as_json or not (runs or packings):
        _print(options, runs, packings)
    else:
        with LiveRecords(short=options.short) as screen, contextlib.suppress(KeyboardInterrupt):
            while True:
                screen.update(runs, packings)
                over = [run.needs_person or run.state == "finished" for run in runs]
                over += [each.needs_person or each.state == "packed" for each in packings]
                if all(over):  # one failed run of a sweep does not end the view of the others
                    break
                time.sleep(REFRESH_S)
                runs, packings = _look(options, poller)
    return any([run.needs_person for run in runs] + [each.needs_person for each in packings])


def _look(options: Options, poller: SlurmPoller) -> tuple[list[RunRecord], list[PackingRecord]]:
    runs: list[Path] = [] if options.folders else find_runs(Path("runs"))
    packings: list[Path] = []
    for folder in options.folders:
        if (folder / CONFIG_NAME).exists():
            runs.append(folder)
        elif is_packing(folder):
            packings.append(folder)
        elif inside := find_runs(folder):
            runs += inside
        else:
            raise ValueError(
                f"{folder} is not a run folder: it has no {CONFIG_NAME}; nor does it hold shards"
            )
    job_ids = [job for run in runs for job in jobs_of(run)]
    job_ids += [job for folder in packings for job in packing_job(folder)]
    answer = poller.ask(job_ids)
    # Reading one checkpoint for its checksums is affordable; reading many would keep the disk busy.
    thorough = len(runs) == 1 and not options.watch_s
    return (
        [describe(run, answer, thorough=thorough) for run in runs],
        [describe_packing(folder, answer) for folder in packings],
    )


def _print(options: Options, runs: Sequence[RunRecord], packings: Sequence[PackingRecord]) -> None:
    if options.report:
        # Here, since matplotlib is slow to import and a status should be quick.
        from jobs.figures.run_report import write_report

        for record in runs:
            cli.say(str(write_report(record)))
    elif options.as_json:
        records = [*map(asdict, runs), *map(asdict, packings)]
        cli.say(json.dumps(records, indent=1))
    elif runs or packings:
        print_records(runs, packings, short=options.short)
    else:
        cli.say("no runs in ./runs; name run folders: simclr-status RUN ...")


if __name__ == "__main__":
    main()
