"""``simclr-evaluate``: an encoder and labelled shards become scores."""

from __future__ import annotations

from jobs import cli
from jobs.help import Help
from jobs.launch import dispatch
from jobs.schema import EvaluateApp, narrow
from jobs.tasks.encoders import Evaluate
from simclr.evaluate.config import EvaluateConfig

HELP = Help(
    sentence="score a run's encoder on labelled patches by k-NN, linear probe or fine-tuning, "
    "beside controls that learnt nothing.",
    examples=(
        "simclr-evaluate run=runs/first shards=shards task=bigearthnet19",
        "simclr-evaluate run=runs/first shards=shards/eurosat task=eurosat",
        "simclr-evaluate run=runs/first shards=shards task=eurosat protocols=[finetune_all]",
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
