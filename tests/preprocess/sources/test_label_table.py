"""Tables of labels: missing is None or NaN and nothing else; every line means one patch."""

import logging
import unicodedata
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import write_geotiff

from preprocess.sources import open_source
from preprocess.sources.geotiff_files import GeotiffConfig

PIXELS = np.full((1, 8, 8), 900, np.uint16)


def source(root, **settings):
    for name in settings.pop("files", [f"p{number}" for number in range(6)]):
        path = root / "tifs" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_geotiff(path, PIXELS)
    return open_source(
        GeotiffConfig(
            root=str(root / "tifs"), file_bands=["B02"], size_px=8, boa_offset=0,
            label_table=str(root / "table"), **settings,
        )
    )  # fmt: skip


def parquet(root, labels):
    path = root / "labels.parquet"
    pq.write_table(pa.table({"id": [f"p{number}" for number in range(6)], "label": labels}), path)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "classes", "given"),
    [
        ([0, 1, 2, 0, 1, 2], ("0", "1", "2"), ["0", "1", "2", "0", "1", "2"]),
        (
            [False, True, False, True, False, True],
            ("False", "True"),
            ["False", "True", "False", "True", "False", "True"],
        ),
        # as pandas writes whole numbers of which one is missing
        ([0.0, 1.0, float("nan"), 0.0, 1.0, 2.0], ("0", "1", "2"), ["0", "1", None, "0", "1", "2"]),
        ([0, None, 2, 0, 1, 2], ("0", "1", "2"), ["0", None, "2", "0", "1", "2"]),
        ([0.5, 0.0, 1.0, 0.5, 0.0, 1.0], ("0", "0.5", "1"), ["0.5", "0", "1", "0.5", "0", "1"]),
        (["a", " ", "b", None, "a;b", ""], ("a", "b"), ["a", None, "b", None, "a;b", None]),
        (["a", "nan", "b", "NaN", "a", "b"], ("a", "b"), ["a", None, "b", None, "a", "b"]),
        ([b"a", b"b", None, b"a", b"b", b""], ("a", "b"), ["a", "b", None, "a", "b", None]),
        (
            [None if n is None else Decimal(n) for n in ("0.0", "1.0", None, "0.5", "0.0", "1.0")],
            ("0", "0.5", "1"),
            ["0", "1", None, "0.5", "0", "1"],
        ),
    ],
)
def test_only_none_nan_and_blank_text_are_missing(tmp_path, labels, classes, given):
    opened = source(tmp_path)
    opened.config.label_table = parquet(tmp_path, labels)
    assert opened.layout().label_sets[0].classes == classes
    found = [";".join(ref.labels["geotiff"]) if ref.labels else None for ref in opened.discover()]
    assert found == given


@pytest.mark.parametrize(
    ("cells", "given"),
    [
        (["0.0", "1.0", "", "0.0", "1.0", "2.0"], ["0", "1", None, "0", "1", "2"]),
        (["0", "1", "nan", "0", "1", "2"], ["0", "1", None, "0", "1", "2"]),
        (["001", "002", "", "001", "002", "010"], ["001", "002", None, "001", "002", "010"]),
        (["v1.0", "v2.0", "", "1.0", "v2.0", ""], ["v1.0", "v2.0", None, "1.0", "v2.0", None]),
        (["0", "False", "", "0.0", "False", "x"], ["0", "False", None, "0.0", "False", "x"]),
    ],
)
def test_a_csv_of_pandas_gives_the_classes_of_its_parquet(tmp_path, cells, given):
    rows = "".join(f"p{number},{cell}\n" for number, cell in enumerate(cells))
    (tmp_path / "table").write_text("id,label\n" + rows)
    refs = list(source(tmp_path).discover())
    assert [";".join(ref.labels["geotiff"]) if ref.labels else None for ref in refs] == given


def test_a_list_of_codes_keeps_zero(tmp_path):
    opened = source(tmp_path)
    opened.config.label_table = parquet(tmp_path, [[0], [0, 3], [], [3], None, [0]])
    given = [ref.labels.get("geotiff", ()) for ref in opened.discover()]
    assert given == [("0",), ("0", "3"), (), ("3",), (), ("0",)]


def test_a_class_with_a_comma_needs_quotes_and_is_never_cut(tmp_path):
    (tmp_path / "table").write_text('id,label\np0,"Beaches, dunes"\np1,Pastures,\n')
    assert source(tmp_path).layout().label_sets[0].classes == ("Beaches, dunes", "Pastures")
    (tmp_path / "table").write_text("id,label\np0,Pastures\np1,Beaches, dunes\n")
    with pytest.raises(ValueError, match=r"table cannot be read \(line 3 has more cells.* quotes"):
        source(tmp_path).layout()


@pytest.mark.parametrize("cell", ["['a', 'b']", "['a' 'b']", "[0, 3]", "[]"])
def test_a_list_written_as_text_is_no_class(tmp_path, cell):
    (tmp_path / "table").write_text(f'id,label\np0,"{cell}"\np1,[unknown]\n')
    with pytest.raises(ValueError, match=r"the classes of p0 are \[.*\], a list written as text"):
        source(tmp_path).layout()
    (tmp_path / "table").write_text("id,label\np0,[unknown]\n")
    assert source(tmp_path).layout().label_sets[0].classes == ("[unknown]",)


def test_unlisted_patches_and_unused_lines_are_counted_in_one_line(tmp_path, caplog):
    (tmp_path / "table").write_text("id,label\np0,x\np1,y\np0,x\nelsewhere,x\n")
    with caplog.at_level(logging.INFO):
        refs = list(source(tmp_path).discover())
    assert [bool(ref.labels) for ref in refs] == [True, True, False, False, False, False]
    (line,) = [record.message for record in caplog.records if "listed" in record.message]
    assert (
        "4 of 6 patches are not listed, 1 lines name no patch that is there, 1 repeat another line"
        in line
    )


def test_one_line_for_two_files_of_one_name_is_refused_with_both_names(tmp_path):
    (tmp_path / "table").write_text("id,label\np,x\nq,y\n")
    with pytest.raises(ValueError, match=r"lists p, which are a/p and b/p"):
        list(source(tmp_path, files=["a/p", "b/p", "a/q"]).discover())
    (tmp_path / "table").write_text("id,label\na/p,x\nb/p,y\nq,y\n")
    labels = {ref.id: ref.labels["geotiff"] for ref in source(tmp_path).discover() if ref.labels}
    assert labels == {"a/p": ("x",), "a/q": ("y",), "b/p": ("y",)}


def test_ids_and_classes_compare_in_unicode_nfc(tmp_path):
    composed = unicodedata.normalize("NFC", "für")
    apart = unicodedata.normalize("NFD", "für")
    (tmp_path / "table").write_text(f"id,label\n{composed}1,{composed}\n{apart}2,{apart}\n")
    opened = source(tmp_path, files=[f"{apart}1", f"{composed}2"])
    assert opened.layout().label_sets[0].classes == (composed,)
    refs = list(opened.discover())
    assert [(ref.id, ref.labels["geotiff"]) for ref in refs] == [
        (f"{composed}1", (composed,)),
        (f"{composed}2", (composed,)),
    ]
    layout = opened.layout()
    assert [opened.read(ref, layout).id for ref in refs] == [ref.id for ref in refs]


def test_all_settings_without_a_table_are_refused_in_one_message():
    with pytest.raises(
        ValueError, match=r"source\.id_column is 'a', .*source\.split_column is 'b'"
    ):
        GeotiffConfig(id_column="a", split_column="b")


@pytest.mark.parametrize("setting", ["split_column", "id_column", "label_column"])
def test_columns_without_a_table_are_refused(setting):
    with pytest.raises(ValueError, match=rf"source\.{setting} is 'foo', but there is no table"):
        GeotiffConfig(**{setting: "foo"})
