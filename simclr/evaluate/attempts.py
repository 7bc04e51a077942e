"""Candidates, protocols, label fractions and seeds come in; what has to be tried goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simclr.evaluate.candidates import Candidate
from simclr.evaluate.config import CHEAP, Protocol
from simclr.evaluate.fractions import label_subset
from simclr.evaluate.setting import Setting
from simclr.evaluate.splits import Split


@dataclass(frozen=True, slots=True)
class Attempt:
    """One classifier to be fitted.

    Attributes:
        candidate: whose features or weights it starts from.
        protocol: how.
        fraction: share of the training labels.
        seed: of split, label subset and first weights.
        split: with the training labels that the fraction leaves; validation and test are whole.
    """

    candidate: Candidate
    protocol: Protocol
    fraction: float
    seed: int
    split: Split

    @property
    def encoder(self) -> str:
        """Name of the row that it belongs to."""
        return self.candidate.name_under(self.protocol)

    @property
    def is_finetune(self) -> bool:
        """Whether a network is trained."""
        return self.protocol not in CHEAP


def list_attempts(setting: Setting, candidates: Sequence[Candidate]) -> list[Attempt]:
    """Return all attempts of an evaluation, the whole labels first.

    A candidate without a seed is tried once where no seed changes anything: features on one split
    with all labels.
    """
    config = setting.config
    return [
        Attempt(candidate, protocol, fraction, seed, split)
        for fraction in sorted(set(config.fractions), reverse=True)
        for protocol in config.protocols
        for candidate in candidates
        if candidate.network is not None or protocol in CHEAP
        for seed, split in _splits_of(setting, candidate, protocol, fraction)
    ]


def _splits_of(
    setting: Setting, candidate: Candidate, protocol: Protocol, fraction: float
) -> list[tuple[int, Split]]:
    pairs = [
        (seed, replace(split, train=label_subset(setting.task.truth, split.train, fraction, seed)))
        for seed, split in zip(setting.config.seeds, setting.splits.by_seed, strict=True)
    ]
    if candidate.seed is not None:
        return [pair for pair in pairs if pair[0] == candidate.seed]
    trained = protocol not in CHEAP
    return pairs if setting.splits.redrawn or fraction < 1 or trained else pairs[:1]
