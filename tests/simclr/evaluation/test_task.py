"""A label set of real shards becomes a task, or says why it cannot; ground is measured."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import packed_arrays

from simclr.data.dataset import open_dataset
from simclr.evaluation.task import Footprints, ground_blocks, open_task, touching

BANDS = ["B02", "B03"]


def relabel(shards, rows, value):
    """Overwrite label rows of every shard, as a partly labelled source has them."""
    for path in shards.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            labels = file["labels/labels"][()]
            labels[rows] = value
            file["labels/labels"][()] = labels


def test_unlabelled_patches_leave_the_corpus_and_the_rest_stay_in_order(tmp_path):
    shards = packed_arrays(tmp_path, 24, num_shards=2)
    relabel(shards, [0, 5], 255)
    dataset = open_dataset([str(shards)], BANDS)
    ids = dataset.index("id")
    task = open_task(dataset, "labels")
    kept = np.delete(np.arange(24), [0, 5, 12, 17])
    np.testing.assert_array_equal(dataset.sample_id, kept)
    assert task.ids.tolist() == [f"arrays/{name}" for name in ids[kept]]
    np.testing.assert_array_equal(task.targets.argmax(axis=1), kept % 4)
    assert task.num_unlabelled == 4


def test_two_exclusive_classes_are_asked_as_yes_or_no(tmp_path):
    dataset = open_dataset([str(packed_arrays(tmp_path, 12, classes=("dry", "wet")))], BANDS)
    task = open_task(dataset, "labels")
    assert (task.kind, task.classes) == ("binary", ("wet",))
    np.testing.assert_array_equal(task.targets[:, 0], np.arange(12) % 2 == 1)


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    dataset = open_dataset([str(packed_arrays(tmp_path, 8))], BANDS)
    with pytest.raises(ValueError, match="no label set 'eurosat' in these shards; they hold: labe"):
        open_task(dataset, "eurosat")


def test_shards_without_any_answer_stop(tmp_path):
    shards = packed_arrays(tmp_path, 8)
    relabel(shards, slice(None), 255)
    with pytest.raises(ValueError, match="none of the 8 patches has a label"):
        open_task(open_dataset([str(shards)], BANDS), "labels")


def test_a_single_class_stops_and_is_named(tmp_path):
    shards = packed_arrays(tmp_path, 8)
    relabel(shards, slice(None), [0, 1, 0, 0])
    with pytest.raises(ValueError, match="all 8 labelled patches are forest"):
        open_task(open_dataset([str(shards)], BANDS), "labels")


@pytest.mark.parametrize(
    ("row", "message"),
    [([1, 1, 0, 0], "2 patches have no class or several"), ([1, 255, 0, 0], "holds 255")],
)
def test_rows_that_the_kind_forbids_stop(tmp_path, row, message):
    shards = packed_arrays(tmp_path, 8)
    relabel(shards, [1], row)
    with pytest.raises(ValueError, match=message):
        open_task(open_dataset([str(shards)], BANDS), "labels")


def ground_of(left, top, epsg=None, side=1200.0):
    zone = np.full(len(left), 32633, np.int32) if epsg is None else np.array(epsg, np.int32)
    return Footprints(zone, np.array(left, float), np.array(top, float), side)


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.sampled_from([600.0, 1200.0, 950.0]))
def test_touching_equals_a_look_at_every_pair(seed, step):
    random = np.random.default_rng(seed)
    left, top = random.integers(-8, 8, (2, 60)) * step
    zone = random.choice([32632, 32633], 60)
    ground = ground_of(left, top, zone)
    test, train = np.arange(25), np.arange(25, 60)
    near = np.maximum(abs(left[:25, None] - left[25:]), abs(top[:25, None] - top[25:])) <= 1200
    same = zone[:25, None] == zone[25:]
    np.testing.assert_array_equal(touching(ground, test, train), (near & same).any(axis=1))


def test_neighbours_of_a_grid_touch_and_the_next_but_one_do_not():
    ground = ground_of([0, 1200, 2400, 1200], [0, 0, 0, 1200])
    assert touching(ground, np.array([0]), np.array([1]))[0]
    assert touching(ground, np.array([0]), np.array([3]))[0]  # a corner
    assert not touching(ground, np.array([0]), np.array([2]))[0]


def test_without_a_coordinate_system_nothing_is_known():
    assert not ground_of([0, 0], [0, 0], [0, 32633]).known
    assert ground_of([0, 0], [0, 0]).known


def test_blocks_are_squares_of_ground_in_their_zone():
    ground = ground_of([0, 9999, 10000, -1], [0, 0, 0, 0], [1, 1, 1, 1])
    assert ground_blocks(ground, 10_000).tolist() == ["1/0/0", "1/0/0", "1/1/0", "1/-1/0"]


def test_blocks_of_patches_in_degrees_are_as_wide_as_those_in_metres():
    # 0.09 degrees are 10 km to the north; at 60 degrees north 0.18 are 10 km to the east
    left = np.array([10.0, 10.05, 10.3, 10.0, 370.0])
    top = np.array([60.03, 60.03, 60.03, 60.3, 60.03])
    ground = Footprints(np.full(5, 4326, np.int32), left, top, 0.0237)
    first, near, east, north, round_the_world = ground_blocks(ground, 10_000).tolist()
    assert first == round_the_world
    assert len({first, near}) <= 2
    assert len({first, east, north}) == 3
    across = Footprints(np.full(2, 4326, np.int32), np.array([-180.0, 180.0]), top[:2], 0.0237)
    assert len(set(ground_blocks(across, 10_000).tolist())) == 1
