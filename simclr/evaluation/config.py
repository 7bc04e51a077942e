"""Settings of an evaluation, checked on construction, and the scores of each kind of task."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from simclr.config import Precision, parse_choices, require

# Row names: the evaluated encoder, and the controls, which have learnt nothing from images.
PRETRAINED = "pretrained"
FROM_SCRATCH = "training from scratch"
RANDOM_ENCODER = "random encoder"
RANDOM_CONVOLUTIONS = "random convolutions"
IMAGE_STATISTICS = "image statistics"
BALANCED = "-balanced"  # ends the name of a balanced task
CONTROLS = (RANDOM_ENCODER, RANDOM_CONVOLUTIONS, IMAGE_STATISTICS, FROM_SCRATCH)


class Protocol(Enum):
    """How an encoder is scored; ``finetune_...`` names what is trained beside the classifier."""

    knn = "k-NN"
    probe = "linear probe"
    finetune_frozen = "fine-tune frozen"
    finetune_last_stage = "fine-tune last stage"
    finetune_all = "fine-tune all"


# These fit a classifier to stored features; all others train a network.
ON_FEATURES = (Protocol.knn, Protocol.probe)

# The scores of each kind of task; the first is the primary metric, which makes all choices on the
# validation split. ``single``: exactly one of three or more classes; ``multi``: any number of
# classes; ``binary``: yes or no, scored on the positives alone, since at 2 % prevalence negatives
# would dominate. Balanced scores reweight the same predictions to equal numbers of both.
SCORES = {
    "single": (
        *("accuracy", "f1_macro", "average_precision_macro", "roc_auc_macro"),
        *("calibration_error", "brier"),
    ),
    "binary": (
        *("average_precision", "f1", "roc_auc", "accuracy"),
        *("average_precision_balanced", "f1_balanced", "calibration_error", "brier"),
    ),
    "multi": (
        *("average_precision_micro", "average_precision_macro", "f1_micro", "f1_macro"),
        *("roc_auc_macro", "calibration_error", "brier"),
    ),
}


def kind_of(labelling: str, num_classes: int) -> str:
    """Return the kind of task of a label set: two exclusive classes, or one, are yes or no."""
    return "binary" if (labelling, num_classes) in (("single", 2), ("multi", 1)) else labelling


# The plug-in estimate of the calibration error is biased upwards by its own noise, and a resample
# adds as much again: bootstrap intervals would not cover it, so it gets none, nor differences.
WITHOUT_INTERVAL = ("calibration_error",)


class SplitRule(Enum):
    """``given``: the split that the shards carry; ``drawn``: blocks of ground for each seed."""

    given = "given"
    drawn = "drawn"


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """How a network is trained on labels: pretrained and untrained ones alike.

    Attributes:
        epochs: passes over the labelled patches.
        max_steps: optimizer steps at most; a large training set ends here.
        batch_size: patches a step.
        learning_rates: peak rates of AdamW; the one with the best validation score counts.
        weight_decay: off for biases and normalisation weights.
        checks: how often the validation score is taken; the best of these states counts.
        symmetries: turn and flip the training patches at random.
        precision: number format of the forward pass.
    """

    epochs: int = 50
    max_steps: int = 5000
    batch_size: int = 64
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-4])
    weight_decay: float = 1e-2
    checks: int = 10
    symmetries: bool = True
    precision: Precision = Precision.float32

    def __post_init__(self) -> None:
        parse_choices(self, "finetune")
        rates, size, decay = self.learning_rates, self.batch_size, self.weight_decay
        require(
            self.precision is not Precision.auto,
            "finetune.precision is auto; give float32 or bfloat16",
        )
        for name in ("epochs", "max_steps", "checks"):
            value = getattr(self, name)
            require(value >= 1, f"finetune.{name} is {value}; give 1 or more")
        require(size >= 2, f"finetune.batch_size is {size}; BatchNorm needs 2 patches or more")
        require(
            bool(rates) and min(rates) > 0,
            f"finetune.learning_rates is {rates}; give at least one, all above 0",
        )
        require(decay >= 0, f"finetune.weight_decay is {decay}; give 0 or more")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """An evaluation of a run's encoder on labelled shards.

    Attributes:
        run: run folder; its newest valid checkpoint is evaluated.
        shards: folder with labelled packed patches.
        task: name of a label set in the shards: eurosat, bigearthnet19, irrigation_regular, ...
        balanced: in a binary task, leave out patches of the commoner answer until every split has
            as many of both. The study of 2021 did; nature is not balanced.
        step: checkpoint to evaluate; 0 takes the newest valid one.
        all_checkpoints: score every checkpoint on the validation split instead, and name the
            best; the test split is left alone.
        protocols: how encoders are scored, and controls with them. Fine-tuning trains whole
            networks, several for each seed: use it where there is a GPU, or time.
        fractions: shares of the training labels, nested, stratified and drawn by seed.
        others: further encoders for the same table: run folders, exports, or files of weights
            with torchvision's names (.pt, .pth, .safetensors).
        controls: put untrained encoders and image statistics into the table. Off only where the
            same table holds them elsewhere, as in a study.
        split: where training, validation and test patches come from.
        seeds: seeds of drawn splits, label subsets and untrained controls.
        batch_size: patches per forward pass.
        neighbours: neighbours of the k-NN classifier.
        bootstrap: resamples for the 95 % intervals.
        test_time: average each patch's features or predictions over its 8 turns and flips.
        stages: classify the pooled outputs of the encoder's four stages side by side, instead of
            the last one alone. Earlier stages keep texture and colour that the last has lost.
        finetune: how networks are trained on labels.
    """

    run: str = ""
    shards: str = ""
    task: str = ""
    balanced: bool = False
    step: int = 0
    all_checkpoints: bool = False
    protocols: list[Protocol] = field(default_factory=lambda: [Protocol.probe, Protocol.knn])
    fractions: list[float] = field(default_factory=lambda: [1.0])
    others: list[str] = field(default_factory=list)
    controls: bool = True
    split: SplitRule = SplitRule.given
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    batch_size: int = 256
    neighbours: int = 20
    bootstrap: int = 1000
    test_time: bool = False
    stages: bool = False
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        parse_choices(self)
        seeds, fractions = self.seeds, self.fractions
        require(bool(seeds), "seeds is empty; give at least one, seeds=[0]")
        require(
            all(0 <= seed < 2**63 for seed in seeds),
            f"seeds is {seeds}; give whole numbers from 0 to 2^63 - 1",
        )
        require(len(set(seeds)) == len(seeds), f"seeds is {seeds}; give each seed once")
        require(bool(self.protocols), "protocols is empty; give at least one, protocols=[probe]")
        require(
            bool(fractions) and all(0 < share <= 1 for share in fractions),
            f"fractions is {fractions}; give shares in (0, 1], fractions=[0.01,0.1,1]",
        )
        require(self.step >= 0, f"step is {self.step}; give 0 for the newest, or a saved step")
        trained = [one.name for one in self.protocols if one not in ON_FEATURES]
        if self.all_checkpoints:
            require(
                self.step == 0,
                f"step is {self.step} and all_checkpoints is true; leave one of them out",
            )
            require(
                not trained,
                f"protocols holds {', '.join(trained)}; all_checkpoints=true scores by probe and "
                "knn: protocols=[probe,knn]",
            )
            require(
                len(fractions) == 1,
                f"fractions is {fractions}; all_checkpoints=true takes one share, fractions=[1]",
            )
        require(
            not self.stages or len(trained) < len(self.protocols),
            "stages is true, but fine-tuning reads the last stage; add probe or knn to protocols, "
            "or leave stages out",
        )
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; give 1 or more")
        require(self.neighbours >= 1, f"neighbours is {self.neighbours}; give 1 or more")
        require(
            100 <= self.bootstrap <= 1_000_000,
            f"bootstrap is {self.bootstrap}; give 100 to 1,000,000",
        )
