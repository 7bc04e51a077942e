"""LabelledPatches touch if they share ground or an edge; blocks are squares of ground."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr.evaluation.task import Footprints, ground_blocks, touching


def ground_of(left, top, epsg=None, side=1200.0):
    zone = np.full(len(left), 32633, np.int32) if epsg is None else np.array(epsg, np.int32)
    return Footprints(zone, np.array(left, float), np.array(top, float), side)


@settings(max_examples=100, deadline=None)
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
