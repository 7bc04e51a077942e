"""What the page on tasks says of tables and of sources is what packing and evaluation do."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY
from make_data import write_geotiff
from test_pages import blocks

from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.shards.format import GroupLayout, Patch, ShardLayout
from preprocess.sources.geotiff_files import GeotiffConfig
from simclr.data.dataset import open_dataset
from simclr.evaluation.task import open_task

PAGE = REPOSITORY / "docs" / "adding-a-task.md"
BANDS = ["B02", "B03", "B04", "B08"]


def packed(folder, table):
    """Pack three fields and one that no table names, with the settings of the page."""
    for number in range(1, 5):
        pixels = np.full((4, 12, 12), 1000 + number, np.uint16)
        write_geotiff(folder / "fields" / f"field-{number:02}.tif", pixels)
    (folder / "fields" / "crops.csv").write_text(table)
    source = GeotiffConfig(
        root=str(folder / "fields"),
        size_px=12,
        boa_offset=0,
        file_bands=BANDS,
        label_table="crops.csv",
        split_column="split",
        label_set="crops",
    )
    output = folder / "shards"
    pack(PackConfig(source=source, output=str(output)), progress=False)
    return open_dataset([str(output)], BANDS, None, 1.0, 0)


def test_the_table_of_the_page_is_a_task_of_several_classes(tmp_path):
    (table,) = blocks(PAGE, "")
    task = open_task(packed(tmp_path, table), "crops")
    assert (task.kind, task.classes) == ("multi", ("maize", "rape", "wheat"))
    assert task.targets.tolist() == [
        [False, True, True],
        [True, False, False],
        [False, False, True],
    ]
    assert task.given_splits.tolist() == ["train", "validation", "test"]
    assert task.num_unlabelled == 1


@pytest.mark.parametrize("answers", [("dry", "wet"), ("none", "fire")])
def test_of_two_classes_the_second_in_the_alphabet_is_the_yes(tmp_path, answers):
    rows = "".join(f"field-0{n},{answers[n % 2]},train\n" for n in (1, 2, 3))
    task = open_task(packed(tmp_path, f"id,label,split\n{rows}"), "crops")
    assert (task.kind, task.classes) == ("binary", (max(answers),))


def test_the_example_of_the_page_adds_a_label_set_and_knows_who_was_not_looked_at():
    page = SimpleNamespace()
    exec(blocks(PAGE, "python")[0], page.__dict__)
    layout = page.with_crops(ShardLayout((GroupLayout("b10", ("B02",), 12, 10.0),)))
    assert [labels.name for labels in layout.label_sets] == ["crops"]
    patches = [Patch(id=name, pixels={}) for name in ("a", "b")]
    assert [page.labelled(patch, {"a": ("maize",)}).labels for patch in patches] == [
        {"crops": ("maize",)},
        {},
    ]
