"""Writing a shard: whole or absent, the same bytes each time, refusing what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocess.shards import GroupLayout, LabelSet, ShardLayout, ShardReader
from preprocess.shards.format import FractionSet, Patch
from preprocess.shards.manifest import ShardOrigin
from preprocess.shards.writer import BLOCK_ROWS, write_shard

LAYOUT = ShardLayout(
    (GroupLayout("b10", ("B02", "B04"), 6, 10.0), GroupLayout("b20", ("B11",), 3, 20.0)),
    (LabelSet("kind", "single", ("a", "b")), LabelSet("all", "multi", ("x", "y", "z"))),
)
ORIGIN = ShardOrigin("test", simulated=True)


def patch_of(number, **facts):
    random = np.random.default_rng(number)
    pixels = {
        group.name: random.integers(0, 65536, group.shape, np.uint16) for group in LAYOUT.groups
    }
    return Patch(**{"id": f"p{number:04d}", "pixels": pixels, **facts})


def written(path, patches, capacity):
    entry = write_shard(path, LAYOUT, patches, capacity, ORIGIN)
    return entry, ShardReader(path.parent, entry, LAYOUT)


@pytest.mark.parametrize("rows", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS])
@pytest.mark.parametrize("spare", [0, 1, 100])
def test_a_shorter_shard_equals_one_made_for_its_rows(tmp_path, rows, spare):
    patches = [patch_of(number) for number in range(rows)]
    exact, _ = written(tmp_path / "exact.h5", patches, rows)
    shorter, reader = written(tmp_path / "shorter.h5", iter(patches), rows + spare)
    assert (tmp_path / "exact.h5").read_bytes() == (tmp_path / "shorter.h5").read_bytes()
    assert (shorter.rows, shorter.sha256) == (rows, exact.sha256)
    for row, patch in enumerate(patches):
        sample = reader.read(row)
        assert all(np.array_equal(sample[name], patch.pixels[name]) for name in sample)


@settings(max_examples=25)
@given(
    pixels=hnp.arrays(np.uint16, (2, 6, 6)),
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    kind=st.sampled_from(["a", "b", None]),
    several=st.one_of(st.none(), st.sets(st.sampled_from(["x", "y", "z"]))),
    transform=st.tuples(*[st.floats(allow_nan=False, width=64)] * 6),
)
def test_whatever_goes_in_comes_out(tmp_path_factory, pixels, text, kind, several, transform):
    labels = {"kind": (kind,)} if kind else {}
    labels |= {"all": tuple(several)} if several is not None else {}
    patch = patch_of(0, product=text, labels=labels, transform=transform, epsg=32633, offset=-1000)
    patch.pixels["b10"] = pixels
    _, reader = written(tmp_path_factory.mktemp("trip") / "s.h5", [patch, patch_of(1)], 2)
    assert np.array_equal(reader.read(0)["b10"], pixels)
    assert reader.index("product")[0] == text
    assert tuple(reader.index("transform")[0]) == transform
    assert (reader.index("epsg")[0], reader.index("offset")[0]) == (32633, -1000)
    assert reader.labels("kind")[0].tolist() == ([kind == "a", kind == "b"] if kind else [255, 255])
    expected = [name in several for name in "xyz"] if several is not None else [255] * 3
    assert reader.labels("all")[0].tolist() == expected


def test_no_patch_makes_no_file(tmp_path):
    assert write_shard(tmp_path / "s.h5", LAYOUT, [], 4, ORIGIN) is None
    assert list(tmp_path.iterdir()) == []


def test_the_share_of_valid_pixels_counts_a_pixel_without_any_one_band_as_nodata(tmp_path):
    patch = patch_of(0)
    patch.pixels["b10"][:] = 5
    patch.pixels["b10"][0, 0, :3] = 0
    patch.pixels["b10"][1, 5, 5] = 0
    _, reader = written(tmp_path / "s.h5", [patch], 1)
    assert reader.index("valid_fraction")[0] == np.float32(32 / 36)


def wrong_side(patch):
    patch.pixels["b20"] = np.zeros((1, 4, 4), np.uint16)


def wrong_type(patch):
    patch.pixels["b20"] = np.zeros((1, 3, 3), np.int32)


def wrong_class(patch):
    patch.labels["kind"] = ("c",)


def two_classes(patch):
    patch.labels["kind"] = ("a", "b")


@pytest.mark.parametrize("spoil", [wrong_side, wrong_type, wrong_class, two_classes])
def test_a_patch_that_does_not_fit_is_named_and_leaves_nothing(tmp_path, spoil):
    patch = patch_of(7)
    spoil(patch)
    with pytest.raises(ValueError, match="p0007"):
        write_shard(tmp_path / "s.h5", LAYOUT, [patch_of(0), patch], 2, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_more_patches_than_rows_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="more than 2"):
        write_shard(tmp_path / "s.h5", LAYOUT, map(patch_of, range(3)), 2, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_source_leaves_nothing(tmp_path):
    def failing():
        yield patch_of(0)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_shard(tmp_path / "s.h5", LAYOUT, failing(), 2, ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_fractions_come_out_as_they_went_in_and_unknown_is_nan(tmp_path):
    shares = FractionSet("cover", ("a", "b", "c"))
    layout = replace(LAYOUT, fraction_sets=(shares,))
    known = patch_of(0, fractions={"cover": np.float32([0.25, 0.5, 0])}, block="north")
    entry = write_shard(tmp_path / "s.h5", layout, [known, patch_of(1)], 2, ORIGIN)
    reader = ShardReader(tmp_path, entry, ShardLayout.from_json(layout.to_json()))
    assert reader.fractions("cover")[0].tolist() == [0.25, 0.5, 0]
    assert np.isnan(reader.fractions("cover")[1]).all()
    assert reader.index("block").tolist() == ["north", ""]
    assert ShardLayout.from_json(layout.to_json()) == layout


def test_fractions_of_other_classes_are_refused(tmp_path):
    layout = replace(LAYOUT, fraction_sets=(FractionSet("cover", ("a", "b", "c")),))
    odd = patch_of(0, fractions={"cover": np.float32([1])})
    with pytest.raises(ValueError, match="1 fractions for the 3 classes of cover"):
        write_shard(tmp_path / "s.h5", layout, [odd], 1, ORIGIN)
