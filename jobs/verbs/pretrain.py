"""``simclr-pretrain``: shards become an encoder."""

from __future__ import annotations

from jobs import cli
from jobs.help import Help
from jobs.launch import dispatch
from jobs.schema import PretrainApp, narrow
from jobs.tasks.pretraining import Pretrain
from simclr.config import TrainConfig

HELP = Help(
    sentence="pretrain an encoder by SimCLR, or go on with a run; on Slurm print the job id "
    "and return.",
    examples=(
        "simclr-pretrain recipe=laptop shards=[shards] run_dir=runs/first",
        "simclr-pretrain recipe=laptop shards=[shards] run_dir=runs/two cluster=laptop",
        "simclr-pretrain recipe=paper shards=[shards] run_dir=runs/paper cluster=slurm_example",
    ),
    groups=("recipe", "cluster"),
    settings={
        "shards": "folders with packed sources, a list: shards=[a,b]",
        "run_dir": "folder of the run; give it again to go on",
        "epochs": "passes over the samples",
        "max_steps": "stop after so many steps; 0 means no limit",
        "data.global_batch_size": "pairs a step, over all ranks",
        "data.bands": "input bands of the encoder, in order",
        "data.positives": "two views of the same patch, or of one place on two dates: season",
        "model.encoder": "resnet18, 34, 50, 101 or 152",
        "optim.learning_rate": "peak rate at optim.reference_batch_size pairs",
        "loss.temperature": "divides the similarities",
        "monitor.shards": "labelled shards to probe on while training, with monitor.task",
        "tracking": "none or tensorboard, beside metrics.jsonl",
    },
    output="run_dir holds config.yaml, provenance.json, attempts.jsonl, metrics.jsonl, "
    "curves.png, checkpoints and logs; simclr-status reads them. stdout names the last "
    "checkpoint, or the job id. A recipe sets many of the values above; --cfg job shows the "
    "outcome.",
)


def work(app: PretrainApp, member: str | None) -> str:
    """Train, or submit the training; return the checkpoint or the job."""
    config = narrow(app, TrainConfig)
    config.run_dir = member or config.run_dir
    task = Pretrain(config, tracking=app.tracking)
    return dispatch(task, app.cluster, in_sweep=member is not None)


def main() -> None:
    """Console script."""
    cli.main("pretrain", work, HELP)


if __name__ == "__main__":
    main()
