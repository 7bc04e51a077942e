"""``simclr-status``: how runs fare, in plain words."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from jobs import cli, slurm
from jobs.monitor.records import RunRecord, describe, find_runs, job_of
from jobs.monitor.table import print_table

HELP = """\
simclr-status: say how runs fare: state, progress, last checkpoint, next action.

Examples:
  simclr-status                      every run in ./runs
  simclr-status runs/first runs/two  these runs
  simclr-status json=true            for programs

A run that waits, trains, stopped or died is described from its own folder and, where there
is Slurm, from squeue; accounting is not needed. torch is not needed either.

Output:
  a table on stdout, with the log and the next action of each run below it.

Exit codes: 0 all is well, 1 a run needs a person, 2 wrong use."""


def main() -> None:
    """Console script."""
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        cli.say(HELP)
        raise SystemExit(cli.DONE)
    records: list[RunRecord] = []
    code = cli.guarded("status", lambda: records.extend(show(arguments)))
    needed = any(record.needs_person for record in records)
    raise SystemExit(code or (cli.FAILED if needed else cli.DONE))


def show(arguments: list[str]) -> list[RunRecord]:
    """Print how the named runs fare, and return it.

    Raises:
        ValueError: an option is unknown, or a folder is no run.
    """
    options = [argument for argument in arguments if argument.startswith(("json=", "-"))]
    unknown = set(options) - {"json=true", "json=false"}
    if unknown:
        raise ValueError(f"{min(unknown)} is no option; there is json=true")
    named = [Path(argument) for argument in arguments if argument not in options]
    runs = named or find_runs(Path("runs"))
    jobs = ask_slurm(runs)
    records = [describe(run, jobs) for run in runs]
    if "json=true" in options:
        cli.say(json.dumps([asdict(record) for record in records], indent=1))
    elif records:
        print_table(records)
    else:
        cli.say("no runs in ./runs; name run folders: simclr-status RUN ...")
    return records


def ask_slurm(runs: list[Path]) -> dict[str, slurm.JobState]:
    """Return Slurm's word on the jobs of runs; nothing where there is no Slurm, or no answer."""
    job_ids = [job for job in map(job_of, runs) if job]
    if not job_ids or not slurm.is_available():
        return {}
    try:
        return slurm.queue(job_ids)
    except slurm.SlurmError as error:
        sys.stderr.write(f"simclr-status: {error}; shown is what the runs say of themselves\n")
        return {}


if __name__ == "__main__":
    main()
