"""Training, validation and test samples for each seed, with their leakage measured.

A split that the shards carry is taken as it is; drawn splits keep ground cells, or blocks, whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simclr.config import Positives, require
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.evaluation.config import SplitRule
from simclr.evaluation.metrics import BoolArray, Indices
from simclr.evaluation.task import Task, Texts, ground_blocks, touching
from simclr.model.pretrained import Pretrained

TRAIN, VALIDATION, TEST = "train", "validation", "test"
BLOCK_SIDE_M = 10_000.0

# Ground cells of one stratum are assigned in this cycle: of every ten 50 % train, 20 % validation,
# 30 % test; of two cells of a class one trains and one tests.
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
    """One split for each seed, and where it comes from.

    ``leakage`` is the share of test samples in a ground cell of a training sample, ``touching`` of
    those that share ground or an edge with one; NaN where cells or positions are unknown.
    """

    by_seed: tuple[Split, ...]  # the same one for all seeds unless redrawn
    redrawn: bool  # whether every seed draws its own test set
    origin: str  # a sentence for the report
    leakage: float
    touching: float

    @property
    def test_to_train(self) -> float:
        """Test samples over training samples if every seed drew its own split, else 0."""
        split = self.by_seed[0]
        return len(split.test) / len(split.train) if self.redrawn else 0.0

    def counts(self, targets: BoolArray) -> tuple[dict[str, int], dict[str, list[int]]]:
        """Return samples a part, and positives a class: the fewest over seeds, so none lacks one.

        ``targets`` are those of all samples, (N, C).
        """
        parts = (TRAIN, VALIDATION, TEST)
        positives = {}
        for part in parts:
            counted = [targets[getattr(one, part)].sum(axis=0) for one in self.by_seed]
            positives[part] = np.min(counted, axis=0).tolist()
        return {part: len(getattr(self.by_seed[0], part)) for part in parts}, positives

    @property
    def tested(self) -> Indices:
        """Samples (T,) that any seed tests, sorted."""
        return np.unique(np.concatenate([split.test for split in self.by_seed]))


def make_splits(task: Task, seeds: Sequence[int], rule: SplitRule = SplitRule.given) -> Splits:
    """Take the official split that the shards carry, else draw one for each seed.

    A drawn split is stratified by the rarest class of each ground cell and keeps a cell whole,
    since another date of a training cell is no test. If the shards name training and test patches
    but no validation patches, a third of the training cells is drawn for validation.

    With ``SplitRule.drawn``, squares of ground 10 km wide are kept whole, whatever split the
    shards carry, and training patches that touch a test or validation patch are left out.

    Raises:
        ValueError: a sample is in two splits, a split stays empty, or blocks of ground are asked
            for where it is not known where patches lie.
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
    """Return splits in which the validation samples are tested: the test samples stay unread."""
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
    """Return the splits with what is shared by training and test samples of the first one."""
    first, tested, near, leakage = splits[0], task.cells[splits[0].test], math.nan, math.nan
    if task.ground.known:
        near = float(touching(task.ground, first.test, first.train).mean())
    if (tested != "").all():
        leakage = float(np.isin(tested, task.cells[first.train]).mean())
    return Splits(tuple(splits), redrawn, origin, leakage, near)


def _whole(task: Task) -> Texts:
    """Return what a drawn split keeps whole: a ground cell, or a sample without one."""
    return np.where(task.cells == "", task.ids, task.cells)


def _assign(
    task: Task, samples: Indices, whole: Texts, pattern: tuple[str, ...], seed: int
) -> Texts:
    """Return the split (n,) of each of the given samples.

    Samples of one name in ``whole`` (N,) stay together, shuffled and assigned by stratum.
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
    """Return a share of the training samples (n,), sorted; a larger share holds the smaller ones.

    Strata are the rarest class of each sample. Every stratum keeps one sample at least, so that a
    small share still has each class to learn from; it may then be larger than asked for. The seed
    draws the order in which samples join.
    """
    if fraction >= 1:
        return train
    order = np.random.default_rng(seed).permutation(len(train))
    rank, sizes = _ranks(_strata(targets[train][order], np.arange(len(train))))
    first = rank == 0
    # by how far down its stratum a sample stands, and the first of every stratum before all
    joining = np.lexsort((sizes, rank / sizes, ~first))
    count = max(round(fraction * len(train)), int(first.sum()))
    return np.sort(train[order[joining[:count]]])


def _strata(targets: BoolArray, group: Indices) -> Indices:
    """Return for each group of samples (N,) the rank of its rarest class, C where it has none."""
    rarity = np.argsort(np.argsort(targets.sum(axis=0), kind="stable"))
    num_classes = targets.shape[1]
    rarest = np.where(targets, rarity, num_classes).min(axis=1)
    strata = np.full(int(group.max()) + 1, num_classes)
    np.minimum.at(strata, group, rarest)
    return strata


def _ranks(strata: Indices) -> tuple[Indices, Indices]:
    """Return for each sample its rank in its stratum, from 0, and the stratum's size."""
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

    A sample is the same if its pixels are (by checksum), or if its id and its position are. It is
    unknown where the shards of the pretraining cannot be read or have changed, and where only ids
    are equal that no position confirms, in shards of other bands or size. ``folder`` is where the
    shards of the data set lie now.
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
    located = equal_id & (epsg != 0)
    seen |= located & (corners == others).all(axis=1) & (epsg == trained.index("epsg")[pairs])
    if (equal_id & ~located & ~seen & ~alike[pairs]).any():
        return math.nan
    return float(seen.mean())
