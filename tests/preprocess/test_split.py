"""Blocks of ground: whole in one split, the same from any tile, with room between splits."""

from math import cos, hypot, radians

from hypothesis import given
from hypothesis import strategies as st

from preprocess.config import SplitConfig
from preprocess.tiling import KM_PER_DEGREE, block_and_split, block_of, split_of

CONFIG = SplitConfig(block_km=12, buffer_km=1.2, validation=0.3, test=0.3)
ANTIMERIDIAN = st.tuples(st.floats(179.9, 180.1), st.floats(-20, -15))
VALLEY = st.tuples(st.floats(-122.5, -119), st.floats(35, 40))


def apart_km(a, b):
    north = (a[1] - b[1]) * KM_PER_DEGREE
    return hypot(north, (a[0] - b[0]) * KM_PER_DEGREE * cos(radians(a[1])))


@given(VALLEY | ANTIMERIDIAN, st.floats(-0.08, 0.08), st.floats(-0.08, 0.08))
def test_kept_patches_of_two_splits_are_twice_the_buffer_apart(point, east, north):
    other = (point[0] + east, point[1] + north)
    (_, split), (_, other_split) = (block_and_split(*place, CONFIG) for place in (point, other))
    if split and other_split and split != other_split:
        # from edge to edge: half a patch on either side
        assert apart_km(point, other) - 1.2 >= 2 * 1.2 * 0.99


@given(VALLEY)
def test_a_kept_patch_has_the_split_of_its_block(point):
    block, split = block_and_split(*point, CONFIG)
    assert block == block_of(*point, CONFIG.block_km)
    assert split in ("", split_of(block, CONFIG))


def test_blocks_are_dealt_by_their_shares_and_anew_by_the_seed():
    blocks = [f"k12r{row}c{column}" for row in range(60) for column in range(60)]
    splits = [split_of(block, CONFIG) for block in blocks]
    for name, share in (("train", 0.4), ("validation", 0.3), ("test", 0.3)):
        assert abs(splits.count(name) / len(blocks) - share) < 0.03
    assert splits != [split_of(block, SplitConfig(block_km=12, seed=1)) for block in blocks]


@given(ANTIMERIDIAN)
def test_a_point_across_180_degrees_has_one_block_however_it_is_written(point):
    longitude, latitude = point
    assert block_of(longitude, latitude, 12) == block_of(longitude - 360, latitude, 12)
