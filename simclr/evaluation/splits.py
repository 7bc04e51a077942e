"""Training, validation and test samples for each seed, and their measured leakage.

A split stored in the shards is used unchanged; drawn splits never divide a ground cell or block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from simclr.config import Positives, require
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.evaluation.config import SplitRule
from simclr.evaluation.metrics import BoolArray, Indices
from simclr.evaluation.task import Task, Texts, ground_blocks, touching
from simclr.model.pretrained import Pretrained

TRAIN, VALIDATION, TEST = "train", "validation", "test"
BLOCK_SIDE_M = 10_000.0

# Ground cells of a stratum are assigned in this cycle: of every ten, 5 train, 2 validation, 3 test;
# with only two cells of a class, one trains and one tests.
_CYCLE = (TRAIN, TEST, VALIDATION, TRAIN, TEST, TRAIN, VALIDATION, TRAIN, TEST, TRAIN)
_CYCLE_TRAIN = (TRAIN, TRAIN, VALIDATION)


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the labelled samples in each part."""

    train: Indices
    validation: Indices
    test: Indices


@dataclass(frozen=True, slots=True)
class Splits:
    """One split per seed, and its origin.

    ``leakage`` is the share of test samples in the ground cell of a training sample, ``touching``
    the share overlapping or adjacent to one; NaN if cells or positions are unknown.
    """

    by_seed: tuple[Split, ...]  # the same one for all seeds unless redrawn
    redrawn: bool  # whether every seed draws its own test set
    origin: str  # sentence for the report
    leakage: float  # of the first split
    touching: float  # of the first split

    @property
    def test_to_train(self) -> float:
        """Ratio of test to training samples if every seed drew its own split, else 0."""
        split = self.by_seed[0]
        return len(split.test) / len(split.train) if self.redrawn else 0.0

    def counts(self, targets: BoolArray) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Return samples per part (of the first seed), and positives per part and class.

        Positives are the minimum over seeds. ``targets`` are those of all samples, (N, C).
        """
        parts = (TRAIN, VALIDATION, TEST)
        positives = {}
        for part in parts:
            counted = [targets[getattr(one, part)].sum(axis=0) for one in self.by_seed]
            positives[part] = np.min(counted, axis=0).tolist()
        return {part: len(getattr(self.by_seed[0], part)) for part in parts}, positives

    @property
    def tested(self) -> Indices:
        """Samples (T,) in the test split of any seed, sorted."""
        return np.unique(np.concatenate([split.test for split in self.by_seed]))


def make_splits(task: Task, seeds: Sequence[int], rule: SplitRule = SplitRule.given) -> Splits:
    """Return the official split if the shards carry one, else draw one per seed.

    A drawn split is stratified by the rarest class of each ground cell and never divides a cell,
    since another date of a training cell is no fair test. If the shards define training and test
    but no validation patches, a third of the training cells is drawn for validation.

    ``SplitRule.drawn`` ignores the official split, keeps blocks (the source's own, else 10 km wide
    squares) together, and excludes training patches that touch a test or validation patch.

    Raises:
        ValueError: a sample is in two splits, a split is empty, or blocks are requested but the
            positions of some patches are unknown.
    """
    if rule is SplitRule.drawn:
        return _drawn_blocks(task, seeds)
    named = set(np.unique(task.given_splits).tolist()) - {""}
    if {TRAIN, TEST} <= named:
        return _official(task, seeds, named)
    everything, whole = np.arange(len(task.ids)), _whole(task)
    splits = [_indices(_assign(task, everything, whole, _CYCLE, seed)) for seed in seeds]
    origin = "drawn for each seed: 50 % train, 20 % validation, 30 % test, ground cells kept whole"
    if named:
        origin += f"; the shards name only {', '.join(sorted(named))}"
    return _measured(task, splits, origin, redrawn=True)


def on_validation(task: Task, splits: Splits) -> Splits:
    """Return splits that test on the validation samples and leave the test samples unused."""
    parts = [Split(one.train, one.validation, one.validation) for one in splits.by_seed]
    return _measured(task, parts, splits.origin, redrawn=splits.redrawn)


def _official(task: Task, seeds: Sequence[int], named: set[str]) -> Splits:
    pairs = np.unique(np.stack([task.ids, task.given_splits]), axis=1)
    ids, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        shared = str(ids[counts > 1][0])
        found = ", ".join(sorted(pairs[1][pairs[0] == shared].tolist()))
        raise ValueError(
            f"patch {shared} is in the splits {found}; a test patch must not be seen in "
            "training: take it out of all lists but one, and pack again"
        )
    names, origin = task.given_splits.astype("U10"), "official split of the shards"
    if VALIDATION not in named:
        train = np.flatnonzero(names == TRAIN)
        names[train] = _assign(task, train, _whole(task), _CYCLE_TRAIN, seeds[0])
        origin += f"; a third of its training cells drawn for validation with seed {seeds[0]}"
    return _measured(task, [_indices(names)] * len(seeds), origin, redrawn=False)


def _drawn_blocks(task: Task, seeds: Sequence[int]) -> Splits:
    if (task.blocks != "").all():
        blocks, origin = task.blocks, "blocks of ground as the shards name them"
    elif task.ground.known:
        blocks = ground_blocks(task.ground, BLOCK_SIDE_M)
        origin = f"squares of ground {BLOCK_SIDE_M / 1000:.0f} km wide"
    else:
        raise ValueError(
            "split is drawn, but it is not known where all patches lie; use split=given, or pack "
            "files with a coordinate system"
        )
    everything, splits = np.arange(len(task.ids)), []
    for seed in seeds:
        split = _indices(_assign(task, everything, blocks, _CYCLE, seed))
        if task.ground.known:
            others = np.concatenate([split.validation, split.test])
            train = split.train[~touching(task.ground, split.train, others)]
            require(
                len(train) > 0,
                "every training patch touches a test or validation patch; the ground is too small "
                "to be split by blocks, use split=given",
            )
            split = Split(train, split.validation, split.test)
        splits.append(split)
    first = splits[0]
    left_out = len(everything) - len(first.train) - len(first.validation) - len(first.test)
    sentence = (
        f"drawn for each seed: {len(np.unique(blocks))} {origin}, kept whole; {left_out} training "
        "patches that touch others left out"
    )
    return _measured(task, splits, sentence, redrawn=True)


def _measured(task: Task, splits: Sequence[Split], origin: str, *, redrawn: bool) -> Splits:
    """Return the splits with leakage and touching measured on the first one."""
    first, tested, near, leakage = splits[0], task.cells[splits[0].test], math.nan, math.nan
    if task.ground.known:
        near = float(touching(task.ground, first.test, first.train).mean())
    if (tested != "").all():
        leakage = float(np.isin(tested, task.cells[first.train]).mean())
    return Splits(tuple(splits), redrawn, origin, leakage, near)


def _whole(task: Task) -> Texts:
    """Return the unit (N,) a drawn split keeps together: the ground cell, or else the sample."""
    return np.where(task.cells == "", task.ids, task.cells)


def _assign(
    task: Task, samples: Indices, whole: Texts, pattern: tuple[str, ...], seed: int
) -> Texts:
    """Return the split (n,) of each given sample.

    Samples with the same name in ``whole`` (N,) stay together; each stratum is shuffled.
    """
    _, group = np.unique(whole[samples], return_inverse=True)
    strata = _strata(task.targets[samples], group)
    order = np.random.default_rng(seed).permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    rank, _ = _ranks(strata[order])
    assigned = np.empty(len(strata), "U10")
    assigned[order] = np.array(pattern)[rank % len(pattern)]
    return assigned[group]


def _indices(names: Texts) -> Split:
    parts = {name: np.flatnonzero(names == name) for name in (TRAIN, VALIDATION, TEST)}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    require(
        all(map(len, parts.values())),
        f"{len(names)} labelled patches give {counts}; each part needs at least one, so label "
        "more patches, or fewer classes",
    )
    return Split(*parts.values())


def label_subset(targets: BoolArray, train: Indices, fraction: float, seed: int) -> Indices:
    """Return a share of the training samples (n,), sorted; larger shares contain smaller ones.

    Samples are stratified by their rarest class. Every stratum keeps at least one sample, so that
    small shares contain each class; they may thus exceed ``fraction``. The seed determines the
    order in which samples are added.
    """
    if fraction >= 1:
        return train
    order = np.random.default_rng(seed).permutation(len(train))
    rank, sizes = _ranks(_strata(targets[train][order], np.arange(len(train))))
    first = rank == 0
    # the first of every stratum come first, then samples by relative rank in their stratum
    joining = np.lexsort((sizes, rank / sizes, ~first))
    count = max(round(fraction * len(train)), int(first.sum()))
    return np.sort(train[order[joining[:count]]])


def _strata(targets: BoolArray, group: Indices) -> Indices:
    """Return the rarity rank of the rarest class of each group of samples (N,), C if none."""
    rarity = np.argsort(np.argsort(targets.sum(axis=0), kind="stable"))
    num_classes = targets.shape[1]
    rarest = np.where(targets, rarity, num_classes).min(axis=1)
    strata = np.full(int(group.max()) + 1, num_classes)
    np.minimum.at(strata, group, rarest)
    return strata


def _ranks(strata: Indices) -> tuple[Indices, Indices]:
    """Return each sample's rank in its stratum, from 0, and the size of the stratum."""
    by_stratum = np.argsort(strata, kind="stable")
    ordered = strata[by_stratum]
    starts = np.searchsorted(ordered, ordered)
    rank, sizes = np.empty_like(starts), np.empty_like(starts)
    rank[by_stratum] = np.arange(len(strata)) - starts
    sizes[by_stratum] = np.searchsorted(ordered, ordered, side="right") - starts
    return rank, sizes


def seen_in_pretraining(
    pretrained: Pretrained, dataset: ShardDataset, folder: str, tested: Indices
) -> float:
    """Return the share of test samples that the encoder was pretrained on; NaN if unknown.

    Samples match by pixels (checksum), unless so few do as would by chance, or by id and position.
    The share is unknown if the pretraining shards cannot be read or have changed, or if some ids
    match without a position to confirm them, in shards with other bands or patch size. ``folder``
    is the current folder of the evaluated shards.
    """
    config, data = pretrained.config, pretrained.config.data
    fingerprint = pretrained.dataset["fingerprint"]
    folders = [folder] if fingerprint == dataset.fingerprint else config.shards
    options = folders, data.bands, data.splits, data.fraction, config.seed
    try:
        trained = open_dataset(*options, whole_places=data.positives is Positives.season)
    except (ValueError, OSError):
        return math.nan
    if trained.fingerprint != fingerprint:
        return math.nan
    groups = dataset.manifests[0].layout.groups
    alike = np.array([one.layout.groups == groups for one in trained.manifests])[trained.source]
    seen = np.isin(dataset.index("crc32")[tested], trained.index("crc32")[alike])
    known = {str(name): row for row, name in enumerate(trained.index("id"))}
    pairs = np.array([known.get(str(name), -1) for name in dataset.index("id")[tested]], np.intp)
    epsg = dataset.index("epsg")[tested]
    corners, others = (
        of.index("transform").reshape(-1, 6)[rows][:, [2, 5]]
        for of, rows in ((dataset, tested), (trained, pairs))
    )
    equal_id = pairs >= 0
    # among millions of pairs, some unequal patches have the same 32 bits
    by_chance = stats.poisson.ppf(0.999, len(tested) * int(alike.sum()) / 2**32)
    if (seen & ~equal_id).sum() <= by_chance:
        seen &= equal_id
    located = equal_id & (epsg != 0)
    seen |= located & (corners == others).all(axis=1) & (epsg == trained.index("epsg")[pairs])
    if (equal_id & ~located & ~seen & ~alike[pairs]).any():
        return math.nan
    return float(seen.mean())
