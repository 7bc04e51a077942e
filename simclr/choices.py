"""The choices of the settings in ``config.py``; members are what people type."""

from __future__ import annotations

from enum import Enum, StrEnum


class Device(Enum):
    """Where tensors live; ``auto`` takes a GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Number format of the encoder's forward pass; the loss is float32 in either case.

    ``auto`` is bfloat16 on devices that are fast in it, else float32; a run keeps what it began in.
    """

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class EncoderName(Enum):
    """ResNets of He et al. 2016 as torchvision builds them."""

    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    resnet152 = "resnet152"


class Stem(Enum):
    """``standard``: 7x7 stride 2 and max pooling; ``small``: 3x3 stride 1, for patches <= 64 px."""

    standard = "standard"
    small = "small"


class HeadName(Enum):
    """Projection heads: the post's 1024-512-128 with ReLU; SimCLR's with BatchNorm."""

    post = "post"
    simclr2 = "simclr2"
    simclr3 = "simclr3"


class BatchNormGroup(Enum):
    """Whose views BatchNorm joins while training: all ranks', those of a node, or its rank's."""

    world = "world"
    node = "node"
    none = "none"


class LossName(Enum):
    """NT-Xent (SimCLR eq. 1) or decoupled contrastive learning (arXiv 2110.06848)."""

    ntxent = "ntxent"
    dcl = "dcl"


class OptimizerName(Enum):
    """Optimisers; ``lars`` is You et al. 2017 as SimCLR uses it."""

    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"
    lars = "lars"


class Schedule(Enum):
    """Learning rate after warm-up: cosine to zero at the end of the last epoch, or constant."""

    cosine = "cosine"
    constant = "constant"


class RateScaling(Enum):
    """How the learning rate follows the global batch, relative to ``reference_batch_size``."""

    none = "none"
    sqrt = "sqrt"
    linear = "linear"


class PresetName(StrEnum):
    """Named sets of augmentations; ``list`` and ``couplets`` take theirs from other settings."""

    paper = "paper"
    standard = "standard"
    simclr = "simclr"
    geometric_standard = "geometric_standard"
    none = "none"
    all = "all"
    geometric = "geometric"
    pixel = "pixel"
    list = "list"
    couplets = "couplets"


class Positives(Enum):
    """What a pair's two views show: ``same`` patch, or one place on two dates (``season``)."""

    same = "same"
    season = "season"


class Rotation(Enum):
    """``quarter``: by 90, 180 or 270 degrees; ``free``: by any angle, filled by reflection."""

    quarter = "quarter"
    free = "free"
