"""The settings of encoder and projection head; checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field

from preprocess.bands import canonical_names
from simclr.checks import require
from simclr.choices import BatchNormGroup, EncoderName, HeadName, Stem


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
        self.weights_bands = canonical_names(self.weights_bands)
        require(
            self.projection_size >= 1,
            f"model.projection_size is {self.projection_size}; give 1 or more",
        )
        require(
            bool(self.weights) or not self.weights_bands,
            "model.weights_bands names the bands of a file, and model.weights names none",
        )
        require(
            not (self.compile and self.activation_checkpointing),
            "model.compile and model.activation_checkpointing exclude each other: a compiled "
            "network already decides what to compute again; switch one off",
        )
