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
        "seeds": "seeds of random splits and of the control",
        "batch_size": "patches a forward pass",
        "neighbours": "neighbours of the k-NN classifier",
        "bootstrap": "resamples behind the 95 % intervals",
    },
    output="evaluation.json and evaluation.md in the run folder; stdout shows the table.",
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
