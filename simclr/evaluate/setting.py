"""All that an evaluation fixes before anything is scored."""

from __future__ import annotations

from dataclasses import dataclass

from simclr.checkpoint.pretrained import Pretrained
from simclr.corpus import Corpus
from simclr.evaluate.bootstrap import Blocks
from simclr.evaluate.config import EvaluateConfig
from simclr.evaluate.ranking import Indices
from simclr.evaluate.splits import Splits
from simclr.evaluate.task import Task

PRETRAINED = "pretrained"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of which encoder, on which samples.

    Attributes:
        config: as the user gave it.
        pretrained: the encoder in question.
        corpus: the labelled samples alone.
        task: their truth.
        splits: one a seed.
        blocks: what the bootstrap draws, over the tested samples.
    """

    config: EvaluateConfig
    pretrained: Pretrained
    corpus: Corpus
    task: Task
    splits: Splits
    blocks: Blocks

    @property
    def name(self) -> str:
        """Under which everything of this task and these shards is kept."""
        return f"{self.task.name}-{self.corpus.fingerprint}"

    @property
    def tested(self) -> Indices:
        """Samples (T,) that any seed tests, sorted: those that ``blocks`` speaks of."""
        return self.splits.tested
