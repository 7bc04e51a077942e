"""``simclr-chain``: from rasters to a published encoder by one command."""

from __future__ import annotations

import sys

from jobs import cli
from jobs.arguments import SPELLINGS
from jobs.chain import run_chain

HELP = """\
simclr-chain: run several verbs in order; on Slurm, submit them as jobs that wait for one
another, and return.

Examples:
  simclr-chain pack source=bigearthnet_v2 source.root=BigEarthNet output=shards \\
               pretrain recipe=recommended run_dir=runs/first \\
               evaluate task=bigearthnet19 \\
               export output=encoder
  simclr-chain --config-dir=$HOME/clusters cluster=mine pretrain shards=[shards] \\
               run_dir=runs/two export output=encoder
  simclr-chain --dry-run cluster=slurm_example pack ... cluster=slurm_cpu_example pretrain ...

Each verb is followed by its own settings, the same as those of simclr-VERB. Settings in front of
the first verb are for all. What an earlier verb leaves behind is read by the later ones: shards,
run and output folders need to be named once. All settings are checked before the first verb starts.

The same command again goes on: what is done is left out, and jobs that are queued are kept. If a
job fails, Slurm cancels those that wait for it.

Output:
  a line for each verb: what it did, or its job; simclr-status shows how it fares.

Exit codes: 0 done or submitted, 1 the work failed, 2 wrong use; inside a job also
75, stopped and saved: run again."""


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
