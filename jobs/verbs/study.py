"""``simclr-study``: arms x seeds become a report that says what may be concluded."""

from __future__ import annotations

from jobs import cli
from jobs.help import Help
from jobs.schema import StudyApp, narrow
from jobs.studies.config import StudyConfig
from jobs.studies.run import run_study
from simclr.config import require

HELP = Help(
    sentence="pretrain and score every arm of a study with several seeds, and report what may be "
    "concluded; run again, it does what is missing.",
    examples=(
        "simclr-study study=published output=studies/2021",
        "simclr-study study=rate recipe=laptop shards=[shards] tasks=[eurosat] output=rates",
        "simclr-study study=augmentation shards=[shards] tasks=[eurosat] output=couplets",
    ),
    groups=("recipe", "scale", "cluster"),
    settings={
        "study": "augmentation (36 couplets and four controls), bans, optimizer, rate, labels, "
        "batch_size, temperature; published analyses the table of 2021",
        "output": "folder for runs, tables and report",
        "shards": "folders with packed sources to pretrain on",
        "labelled": "folder with labelled shards to score on; default the first of shards",
        "tasks": "label sets that are scored",
        "seeds": "an arm is run once for each",
        "arms": "only these arms, by name; default all",
        "protocol": "how encoders are scored: probe, knn, finetune_all, ...",
        "fractions": "shares of the training labels; more than one with study=labels",
        "max_runs": "more pretrainings are refused",
        "max_hours": "a study that is expected to take more device hours is refused",
        "halving": "after each seed give up the lower half of the arms",
    },
    output="report.html, pictures and every number as CSV in output; a study of augmentation "
    "leaves its couplets as a recipe: --config-dir=OUTPUT recipe=allowed. All settings of "
    "simclr-pretrain are those of every arm. stdout tells the verdict, or the jobs.",
)


def work(app: StudyApp, member: str | None) -> str:
    """Run what is missing, or submit it; return the verdict or the jobs."""
    require(member is None, "a study is a sweep itself; name one study, without -m")
    return run_study(narrow(app, StudyConfig), app.cluster)


def main() -> None:
    """Console script."""
    cli.main("study", work, HELP)


if __name__ == "__main__":
    main()
