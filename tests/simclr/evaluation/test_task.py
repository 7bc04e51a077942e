"""A label set of real shards becomes a task, or says why it cannot."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from make_data import packed_arrays

from simclr.data.dataset import open_dataset
from simclr.evaluation.task import open_task

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
