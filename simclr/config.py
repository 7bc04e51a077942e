"""Settings of a training run: one dataclass per section, checked on construction.

They define the schema of files and command line and the text of ``--help``. An invalid value from
a file, the command line or Python raises ``ValueError`` with the key, the value and the fix.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar, get_args, get_type_hints

from preprocess.bands import L2A_BANDS, canonical_names

# The choices; users type the names of their members.
# Device of tensors; ``auto`` uses a GPU if there is one.
Device = StrEnum("Device", "auto cpu cuda")
# Number format of the encoder's forward pass; the loss is float32 in either case. ``auto`` is
# bfloat16 on devices that are fast in it, else float32; a run keeps its initial format.
Precision = StrEnum("Precision", "auto float32 bfloat16")
# ResNets of He et al. 2016 as torchvision builds them.
EncoderName = StrEnum("EncoderName", "resnet18 resnet34 resnet50 resnet101 resnet152")
# ``standard``: 7x7 stride 2 and max pooling; ``small``: 3x3 stride 1, for patches <= 64 px.
Stem = StrEnum("Stem", "standard small")
# Projection heads: the post's 1024-512-128 with ReLU; SimCLR's with BatchNorm.
HeadName = StrEnum("HeadName", "post simclr2 simclr3")
# Ranks over which BatchNorm computes statistics in training: all, those of a node, or each alone.
BatchNormGroup = StrEnum("BatchNormGroup", "world node none")
# NT-Xent (SimCLR eq. 1) or decoupled contrastive learning (arXiv 2110.06848).
LossName = StrEnum("LossName", "ntxent dcl")
# ``lars`` is You et al. 2017 as in SimCLR.
OptimizerName = StrEnum("OptimizerName", "adam adamw sgd lars")
# Learning rate after warm-up: cosine to zero at the end of the last epoch, or constant.
Schedule = StrEnum("Schedule", "cosine constant")
# How the learning rate follows the global batch, relative to ``reference_batch_size``.
RateScaling = StrEnum("RateScaling", "none sqrt linear")
# Named sets of augmentations; ``list`` and ``couplets`` are defined by other settings.
PresetName = StrEnum(
    "PresetName", "paper standard simclr geometric_standard none all geometric pixel list couplets"
)
# The two views of a pair: of the ``same`` patch, or of one place on two dates (``season``).
Positives = StrEnum("Positives", "same season")
# ``quarter``: by 90, 180 or 270 degrees; ``free``: by any angle, padded by reflection.
Rotation = StrEnum("Rotation", "quarter free")

_Config = TypeVar("_Config")


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_even_share(global_batch_size: int, ranks: int) -> None:
    """Refuse a batch that the ranks cannot share equally; ValueError: with the nearest sizes."""
    below = global_batch_size - global_batch_size % ranks
    choices = f"{below} or {below + ranks}" if below else f"{ranks}"
    require(
        below == global_batch_size,
        f"data.global_batch_size is {global_batch_size} but {ranks} ranks need a multiple of "
        f"{ranks}; use {choices}",
    )


def parse_choices(config: Any, section: str = "") -> None:
    """Convert strings in enum fields of a settings dataclass, and in lists of enums, to members.

    Every dataclass calls it first in ``__post_init__``, with its ``section`` of the settings, so
    that later comparisons see members, never strings.

    Raises:
        ValueError: a value names no member; the message lists them.
    """
    for name, hint in get_type_hints(type(config)).items():
        value, key = getattr(config, name), f"{section}.{name}" if section else name
        if isinstance(hint, type) and issubclass(hint, Enum):
            setattr(config, name, _member(hint, value, key))
        elif isinstance(value, list):
            (kind,) = get_args(hint)
            if issubclass(kind, Enum):
                setattr(config, name, [_member(kind, item, key) for item in value])


def _member(kind: type[Enum], value: Any, key: str) -> Enum:
    if isinstance(value, kind):
        return value
    names = ", ".join(kind.__members__)
    if not isinstance(value, str) or value not in kind.__members__:
        raise ValueError(f"{key} is {value!r}; give one of {names}")
    return kind[value]


def to_plain(config: Any) -> dict[str, Any]:
    """Return a dataclass of settings as plain JSON types, with choices by member name."""
    text = json.dumps(asdict(config), default=lambda choice: choice.name)
    plain: dict[str, Any] = json.loads(text)
    return plain


def from_plain(kind: type[_Config], data: dict[str, Any]) -> _Config:
    """Rebuild a dataclass of settings from ``to_plain``.

    Raises:
        ValueError: a key is unknown, or a value is invalid.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    require(not unknown, f"unknown settings of {kind.__name__}: {', '.join(unknown)}")
    return kind(
        **{
            name: from_plain(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in data.items()
        }
    )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Encoder and projection head.

    Attributes:
        encoder: a torchvision ResNet.
        stem: ``standard`` for patches of about 120 px, ``small`` for 64 px and less.
        head: projection head, thrown away after pretraining.
        projection_size: width of the projection z.
        batchnorm: over which ranks BatchNorm takes its statistics: ``world``, ``node``, ``none``.
        weights: file of encoder weights to start from, .safetensors or .pt, with torchvision's
            names; empty starts untrained. Its first layer is adapted to ``data.bands``.
        weights_bands: bands of that file's input channels, in their order; empty if unknown.
        compile: compile the network with torch.compile (slower start, faster steps on a GPU).
        activation_checkpointing: keep only the input of each residual block and compute the rest
            again in backward: about a third more time, for batches that would not fit.
    """

    encoder: EncoderName = EncoderName.resnet50
    stem: Stem = Stem.standard
    head: HeadName = HeadName.simclr2
    projection_size: int = 128
    batchnorm: BatchNormGroup = BatchNormGroup.none
    weights: str = ""
    weights_bands: list[str] = field(default_factory=list)
    compile: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        parse_choices(self, "model")
        self.weights_bands = canonical_names(self.weights_bands)
        size = self.projection_size
        require(size >= 1, f"model.projection_size is {size}; give 1 or more")
        require(
            bool(self.weights) or not self.weights_bands,
            "model.weights_bands names the bands of a file, and model.weights names none",
        )
        require(
            not (self.compile and self.activation_checkpointing),
            "model.compile and model.activation_checkpointing exclude each other: a compiled "
            "network already decides what to compute again; switch one off",
        )


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    """A labelled task on which the encoder is probed while it trains; it decides no weight.

    Attributes:
        shards: folder with labelled packed patches, held out from training; empty: no probing.
        task: name of a label set in those shards: eurosat, bigearthnet19, ...
        every_steps: steps between probes; the last step is always probed.
        max_samples: labelled patches used at most, the same ones every time.
        neighbours: neighbours of the k-NN classifier.
    """

    shards: str = ""
    task: str = ""
    every_steps: int = 500
    max_samples: int = 4000
    neighbours: int = 20

    def __post_init__(self) -> None:
        require(
            bool(self.shards) == bool(self.task),
            f"monitor.shards is {self.shards!r} and monitor.task is {self.task!r}; give both or "
            "neither",
        )
        require(self.every_steps >= 1, f"monitor.every_steps is {self.every_steps}; give >= 1")
        num = self.max_samples
        require(num >= 10, f"monitor.max_samples is {num}; a probe needs at least 10")
        require(self.neighbours >= 1, f"monitor.neighbours is {self.neighbours}; give 1 or more")


@dataclass(kw_only=True, slots=True)
class WorldConfig:
    """Devices and process group.

    Attributes:
        device: auto, cpu or cuda.
        timeout_s: seconds after which a collective that still waits for a rank ends the job.
        threads_per_rank: CPU threads of torch in each rank; 0 shares the cores of the node.
        deterministic: use deterministic GPU kernels only, so that a resumed run ends in the same
            bits as an unbroken one; slower on a GPU, always so on a CPU.
    """

    device: Device = Device.auto
    timeout_s: int = 600
    threads_per_rank: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        parse_choices(self, "world")
        require(self.timeout_s > 0, f"world.timeout_s is {self.timeout_s}; give seconds above 0")
        threads = self.threads_per_rank
        require(threads >= 0, f"world.threads_per_rank is {threads}; give 0 for all, or a number")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which samples are read, and how many at a time.

    Attributes:
        bands: input channels of the encoder, in this order.
        splits: splits to train on; an empty name stands for patches without a split.
        positives: what the two views of a pair show: the same patch, or one place on two dates;
            with ``season`` an epoch shows every place once.
        fraction: share of the samples to use, a fixed subset for each seed, in (0, 1]; with
            ``positives=season`` share of the places, with all their dates.
        weights: share of the batches that each folder of ``shards`` fills, in their order and to
            any scale; empty: every sample once an epoch.
        global_batch_size: pairs per step over all ranks.
        num_threads: reader threads in each rank.
        num_slots: batches in memory, at least 2: one in use, the others read ahead.
    """

    bands: list[str] = field(default_factory=lambda: list(L2A_BANDS))
    splits: list[str] = field(default_factory=lambda: ["train", ""])
    positives: Positives = Positives.same
    fraction: float = 1.0
    weights: list[float] = field(default_factory=list)
    global_batch_size: int = 256
    num_threads: int = 2
    num_slots: int = 3

    def __post_init__(self) -> None:
        parse_choices(self, "data")
        self.bands = canonical_names(self.bands)
        require(bool(self.bands), "data.bands is empty; name at least one band")
        require(0 < self.fraction <= 1, f"data.fraction is {self.fraction}; give a share in (0, 1]")
        require(
            all(0 < weight < math.inf for weight in self.weights),
            f"data.weights is {self.weights}; give numbers above 0, and leave out of shards what "
            "is not to be read",
        )
        size = self.global_batch_size
        require(size >= 2, f"data.global_batch_size is {size}; a negative needs 2 pairs")
        require(self.num_threads >= 1, f"data.num_threads is {self.num_threads}; give 1 or more")
        require(self.num_slots >= 2, f"data.num_slots is {self.num_slots}; give 2 or more")


@dataclass(kw_only=True, slots=True)
class AugmentConfig:
    """How two views are made of one patch.

    Attributes:
        preset: named set of augmentations; ``list`` and ``couplets`` take the operations below.
        operations: for ``preset=list``: the operations of every view, always applied, in order.
        couplets: for ``preset=couplets``: pairs such as ``blur+gain``; each view gets one of them.
        probabilities: per-operation probabilities that override the preset's; on a command line
            ``+augment.probabilities.blur=0.2``.
        strengths: per-operation strengths that override the preset's,
            ``+augment.strengths.gain=1.1``; docs/adding-an-augmentation.md lists them.
        rotation: by quarter turns, or freely by any angle (slower; nine operations only).
        band_drop: chance that a band of a view is blanked, at most 0.5.
        view_size_px: side of a view; 0 keeps the side of the finest band group.
    """

    preset: PresetName = PresetName.standard
    operations: list[str] = field(default_factory=list)
    couplets: list[str] = field(default_factory=list)
    probabilities: dict[str, float] = field(default_factory=dict)
    strengths: dict[str, float] = field(default_factory=dict)
    rotation: Rotation = Rotation.quarter
    band_drop: float = 0.0
    view_size_px: int = 0

    def __post_init__(self) -> None:
        parse_choices(self, "augment")
        for preset, field_name in (("list", "operations"), ("couplets", "couplets")):
            given = getattr(self, field_name)
            require(
                (self.preset == preset) == bool(given),
                f"augment.preset is {self.preset} and augment.{field_name} is {given}; "
                f"name {field_name} with preset={preset}, and only there",
            )
        drop = self.band_drop
        require(0 <= drop <= 0.5, f"augment.band_drop is {drop}; give a chance from 0 to 0.5")
        size = self.view_size_px
        require(size >= 0, f"augment.view_size_px is {size}; give 0 for the patch's, or pixels")


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Contrastive loss over all ranks' negatives.

    Attributes:
        name: ntxent or dcl.
        temperature: divides the cosine similarities; 0.1 in the study of 2021.
    """

    name: LossName = LossName.ntxent
    temperature: float = 0.1

    def __post_init__(self) -> None:
        parse_choices(self, "loss")
        divisor = self.temperature
        require(0 < divisor < math.inf, f"loss.temperature is {divisor}; give a value above 0")


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimiser and schedule, both per step.

    Attributes:
        name: adam, adamw, sgd or lars.
        learning_rate: peak rate at ``reference_batch_size`` pairs.
        scaling: how the rate follows the global batch size.
        reference_batch_size: pairs for which ``learning_rate`` is meant.
        momentum: for sgd and lars.
        weight_decay: off for biases and normalisation weights.
        schedule: cosine to zero at the end of the last epoch, or constant.
        decay_steps: length of the cosine decay after warm-up in steps, after which the rate is 0;
            0 decays over the whole run (the study of 2021 used 1000 whatever the length).
        warmup_epochs: epochs of linear warm-up.
        accumulate_steps: 1; anything else is refused, since it would not add negatives.
    """

    name: OptimizerName = OptimizerName.adam
    learning_rate: float = 5e-4
    scaling: RateScaling = RateScaling.none
    reference_batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 1e-6
    schedule: Schedule = Schedule.cosine
    decay_steps: int = 0
    warmup_epochs: float = 0.0
    accumulate_steps: int = 1

    def __post_init__(self) -> None:
        parse_choices(self, "optim")
        rate = self.learning_rate
        require(0 < rate < math.inf, f"optim.learning_rate is {rate}; give a value above 0")
        size = self.reference_batch_size
        require(size >= 1, f"optim.reference_batch_size is {size}; give pairs, 1 or more")
        # at 1 a velocity never decays, and above 1 it grows forever
        require(0 <= self.momentum < 1, f"optim.momentum is {self.momentum}; give 0 to below 1")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optim.{name} is {value}; give >= 0")
        require(self.decay_steps >= 0, f"optim.decay_steps is {self.decay_steps}; give >= 0")
        require(
            self.accumulate_steps == 1,
            f"optim.accumulate_steps is {self.accumulate_steps}; summing gradients of small "
            "batches adds no negatives, each would be compared with itself alone. For more "
            "negatives raise data.global_batch_size: more ranks, precision=bfloat16 or "
            "model.activation_checkpointing=true make room",
        )


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay.

    Attributes:
        every_steps: steps between checkpoints; the last step is always saved.
        keep: newest checkpoints kept, at least 2; the best by a probe stays beside them.
        asynchronous: write beside the training; needs host memory for a copy of the state.
    """

    every_steps: int = 500
    keep: int = 2
    asynchronous: bool = False

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, f"checkpoint.every_steps is {self.every_steps}; give >= 1")
        keep = self.keep
        require(keep >= 2, f"checkpoint.keep is {keep}; keep at least 2, one may be damaged")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A pretraining run.

    Attributes:
        shards: folders with packed sources, each with its manifest.
        run_dir: run folder: metrics, checkpoints, logs.
        seed: of initial weights, shuffling, augmentation and the subset of ``data.fraction``.
        epochs: passes over the samples.
        max_steps: end after this many steps even if epochs are left; 0 means no limit. The schedule
            keeps the length of all epochs, and the same run goes on with a higher limit.
        precision: number format of the forward pass.
        gradient_precision: number format in which gradients travel between ranks.
        max_skipped_steps: abort after this many consecutive steps with a non-finite gradient;
            shorter streaks are skipped.
        log_every_steps: steps between metric lines.
        world: devices and process group.
        data: which samples, and how many at a time.
        augment: how views are made.
        model: encoder and projection head.
        loss: contrastive loss.
        optim: optimiser and schedule.
        checkpoint: when the run is saved.
        monitor: held-out labels that the encoder is probed on.
    """

    shards: list[str] = field(default_factory=list)
    run_dir: str = ""
    seed: int = 0
    epochs: int = 50
    max_steps: int = 0
    precision: Precision = Precision.float32
    gradient_precision: Precision = Precision.float32
    max_skipped_steps: int = 10
    log_every_steps: int = 10
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        parse_choices(self)
        require(
            self.gradient_precision is not Precision.auto,
            "gradient_precision is auto; give float32 or bfloat16",
        )
        require(self.epochs >= 1, f"epochs is {self.epochs}; give 1 or more")
        require(
            len(self.data.weights) in (0, len(self.shards)),
            f"data.weights has {len(self.data.weights)} numbers for {len(self.shards)} folders of "
            "shards; give one for each, or none",
        )
        require(self.max_steps >= 0, f"max_steps is {self.max_steps}; give 0 or more")
        seed, skipped = self.seed, self.max_skipped_steps
        require(0 <= seed < 2**63, f"seed is {seed}; give a whole number from 0 to 2^63 - 1")
        require(skipped >= 1, f"max_skipped_steps is {skipped}; give >= 1")
        require(self.log_every_steps >= 1, f"log_every_steps is {self.log_every_steps}; give >= 1")
