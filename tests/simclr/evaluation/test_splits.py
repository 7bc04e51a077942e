"""Splits and label subsets are stratified and seeded, and keep cells and classes whole."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simclr.config import TrainConfig
from simclr.evaluation import splits as module
from simclr.evaluation.splits import label_subset, make_splits
from simclr.evaluation.task import Footprints, Task


def make_task(truth, cells=None, given=None, ids=None, ground=None):
    num_samples = len(truth)
    blank = np.full(num_samples, "")
    blank_corner = (np.zeros(num_samples), np.zeros(num_samples))
    return Task(
        name="land",
        kind="single",
        classes=tuple(f"class {c}" for c in range(truth.shape[1])),
        targets=truth.astype(bool),
        ids=np.array([f"s/{i}" for i in range(num_samples)]) if ids is None else np.array(ids),
        cells=blank if cells is None else np.array(cells),
        blocks=blank,
        tiles=blank,
        ground=ground or Footprints(np.zeros(num_samples, np.int32), *blank_corner, 0.0),
        given_splits=blank if given is None else np.array(given),
        num_unlabelled=0,
    )


def balanced(num_classes=10, per_class=20):
    return np.repeat(np.eye(num_classes), per_class, axis=0)


def parts(split):
    return split.train, split.validation, split.test


def test_a_drawn_split_is_stratified_and_holds_every_sample_once():
    truth = balanced()
    for split in make_splits(make_task(truth), [0, 1, 2]).by_seed:
        joined = np.sort(np.concatenate(parts(split)))
        np.testing.assert_array_equal(joined, np.arange(200))
        for part, expected in zip(parts(split), (10, 4, 6), strict=True):
            np.testing.assert_array_equal(truth[part].sum(axis=0), expected)


def test_the_seed_alone_decides_a_drawn_split():
    task = make_task(balanced())
    first, again, other = (make_splits(task, [seed]).by_seed[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.test, again.test)
    assert set(first.test) != set(other.test)


def test_dates_of_one_place_stay_together():
    cells = np.repeat([f"cell-{i}" for i in range(40)], 5)
    splits = make_splits(make_task(balanced(), cells=cells), [0, 1])
    for split in splits.by_seed:
        sets = [set(cells[part]) for part in parts(split)]
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert splits.leakage == 0


def test_the_rarest_class_of_several_decides_the_stratum():
    truth = np.zeros((100, 2))
    truth[:, 0] = 1
    truth[:10, 1] = 1  # rare, and always beside the common class
    split = make_splits(make_task(truth), [0]).by_seed[0]
    assert [int(truth[part, 1].sum()) for part in parts(split)] == [5, 2, 3]


def test_official_splits_are_taken_as_they_are_and_the_rest_is_left_out():
    given = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3 + [""]
    splits = make_splits(make_task(balanced(2, 5), given=given), [0, 1])
    assert not splits.redrawn
    assert splits.origin == "official split of the shards"
    for split in splits.by_seed:
        np.testing.assert_array_equal(split.train, np.arange(4))
        np.testing.assert_array_equal(split.test, [6, 7, 8])
    assert np.isnan(splits.leakage)


def test_leakage_is_the_share_of_test_samples_at_a_training_place():
    given = ["train"] * 5 + ["validation"] + ["test"] * 4
    cells = ["a", "b", "c", "d", "e", "f", "a", "b", "x", "y"]
    splits = make_splits(make_task(balanced(2, 5), cells, given), [0])
    assert splits.leakage == 0.5


def test_missing_validation_is_drawn_from_official_training_patches_only():
    given = ["train", "train", "train", "test", "test"] * 6
    splits = make_splits(make_task(balanced(2, 15), given=given), [0])
    split = splits.by_seed[0]
    official = np.array(given)
    assert set(official[split.train]) == set(official[split.validation]) == {"train"}
    np.testing.assert_array_equal(split.test, np.flatnonzero(official == "test"))
    assert len(split.validation) == 6
    assert "a third of its training cells" in splits.origin


class Indexed:
    """The index of patches without pixels; their names begin with ``name``."""

    fingerprint = "ff"
    manifests = (SimpleNamespace(layout=SimpleNamespace(groups=())),)

    def __init__(self, name, checksums):
        num = len(checksums)
        self.source = np.zeros(num, int)
        self._index = {
            "crc32": checksums,
            "id": np.char.add(name, np.arange(num).astype(str)),
            "epsg": np.zeros(num, int),
            "transform": np.zeros((num, 6)),
        }

    def index(self, field):
        return self._index[field]


def test_checksums_that_agree_by_chance_are_no_patches_seen_in_pretraining(monkeypatch):
    random = np.random.default_rng(0)
    trained = Indexed("a", random.integers(0, 2**32, 240_000, np.uint32))
    monkeypatch.setattr(module, "open_dataset", lambda *_, **__: trained)
    run = SimpleNamespace(config=TrainConfig(), dataset={"fingerprint": "ff"})

    def share(name, checksums):
        tested = Indexed(name, checksums)
        return module.seen_in_pretraining(run, tested, "shards", np.arange(len(checksums)))

    others = random.integers(0, 2**32, 120_000, np.uint32)
    assert np.isin(others, trained.index("crc32")).sum() > 0
    assert share("b", others) == 0
    others[:60] = trained.index("crc32")[:60]  # copies under other names
    assert share("b", others) >= 60 / 120_000
    assert share("a", trained.index("crc32")[:5]) == 1  # the same patches
    assert share("b", trained.index("crc32")[:1]) == 1  # one of one is no chance


def test_shards_that_name_only_training_patches_are_split_anew_and_the_report_says_so():
    splits = make_splits(make_task(balanced(), given=["train"] * 200), [0])
    assert splits.redrawn
    assert "the shards name only train" in splits.origin


def test_a_sample_in_two_splits_stops():
    given = ["train"] * 5 + ["validation"] + ["test"] * 4
    ids = ["s/a", *(f"s/{i}" for i in range(8)), "s/a"]
    with pytest.raises(ValueError, match="patch s/a is in the splits test, train"):
        make_splits(make_task(balanced(2, 5), given=given, ids=ids), [0])


def test_five_samples_of_two_classes_can_be_split_and_of_five_classes_cannot():
    split = make_splits(make_task(np.eye(2)[[0, 0, 0, 1, 1]]), [0]).by_seed[0]
    assert [len(part) for part in parts(split)] == [2, 1, 2]
    with pytest.raises(ValueError, match="5 train, 0 validation, 0 test"):
        make_splits(make_task(np.eye(5)), [0])


SHARES = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0)


def make_truth(counts):
    return np.repeat(np.eye(len(counts), dtype=bool), counts, axis=0)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 2**31))
def test_each_share_holds_the_smaller_ones_and_every_class(counts, seed):
    truth = make_truth(counts)
    train = np.flatnonzero(np.random.default_rng(seed).random(len(truth)) < 0.8)
    assume(len(train))  # a split without training patches is refused
    before: set[int] = set()
    for share in SHARES:
        chosen = label_subset(truth, train, share, seed)
        assert before <= set(chosen) <= set(train)
        assert (truth[chosen].any(axis=0) == truth[train].any(axis=0)).all()
        before = set(chosen)
    assert before == set(train)


def test_strata_keep_their_shares():
    truth = make_truth([600, 300, 100])
    chosen = label_subset(truth, np.arange(1000), 0.1, 3)
    np.testing.assert_array_equal(truth[chosen].sum(axis=0), [60, 30, 10])


def test_the_rarest_class_of_several_is_kept_in_proportion():
    truth = np.zeros((400, 2), bool)
    truth[:, 0] = True
    truth[:40, 1] = True
    assert truth[label_subset(truth, np.arange(400), 0.25, 0), 1].sum() == 10


def test_another_seed_draws_other_samples_of_the_same_number():
    truth = make_truth([50, 50])
    first, again, other = (label_subset(truth, np.arange(100), 0.2, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(other) == 20
    assert set(first) != set(other)


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_a_share_too_small_for_the_classes_takes_one_of_each(share):
    truth = make_truth([20, 20, 20])
    np.testing.assert_array_equal(
        truth[label_subset(truth, np.arange(60), share, 0)].sum(axis=0), 1
    )
