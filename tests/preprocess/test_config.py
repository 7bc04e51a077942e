"""Settings of packing: defaults, canonical bands, and refusals that name the value."""

import dataclasses
import json
import typing
from enum import Enum

import pytest

from preprocess.config import (
    OnError,
    PackConfig,
    SelectConfig,
    SourceConfig,
    SplitConfig,
    VerifyConfig,
    parse_interval,
    read_polygons,
)
from preprocess.sources import SOURCES, open_source
from preprocess.sources.bigearthnet import BigEarthNetV1Config, BigEarthNetV2Config
from preprocess.sources.geotiff_files import GeotiffConfig
from preprocess.sources.l2a_files import CogL2AConfig, SafeL2AConfig
from preprocess.sources.simulated import SimulatedConfig

SOURCE_CONFIGS = [source.config for source in SOURCES.values()]


def test_every_source_has_settings_of_its_kind():
    assert [config().kind for config in SOURCE_CONFIGS] == list(SOURCES)


@pytest.mark.parametrize("config", SOURCE_CONFIGS)
def test_the_name_is_the_kind_unless_given(config):
    assert config().name == config().kind
    assert config(name="mine").name == "mine"


@pytest.mark.parametrize(
    "config", [*SOURCE_CONFIGS, SourceConfig, PackConfig, VerifyConfig], ids=lambda c: c.__name__
)
def test_every_setting_is_of_a_type_that_a_command_line_can_fill(config):
    # frozen classes, tuples, paths and literals cannot be overridden by hydra
    assert not config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        kind = typing.get_type_hints(config)[field.name]
        simple = kind in (
            str,
            int,
            float,
            bool,
            int | None,
            float | None,
            list[str],
            dict[str, float],
        )
        assert simple or dataclasses.is_dataclass(kind) or issubclass(kind, Enum), field.name


def test_bands_become_canonical():
    assert BigEarthNetV1Config(bands=["B2", "nir08"]).bands == ["B02", "B8A"]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: BigEarthNetV1Config(bands=["B13"]), "B13"),
        (lambda: BigEarthNetV2Config(tables=[]), "tables"),
        (lambda: GeotiffConfig(size_px=0), "size_px is 0"),
        (lambda: GeotiffConfig(ground_resolution_m=0), "ground_resolution_m is 0"),
        (lambda: SimulatedConfig(num_patches=0), "num_patches is 0"),
        (lambda: SimulatedConfig(seed=-1), "seed is -1"),
        (lambda: PackConfig(shard_size_mib=0), "shard_size_mib is 0"),
        (lambda: PackConfig(limit=-1), "limit is -1"),
        (lambda: PackConfig(max_rejected=1.5), "max_rejected is 1.5"),
    ],
)
def test_an_impossible_value_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_an_unknown_kind_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'safe'.*bigearthnet_v1"):
        open_source(SourceConfig(kind="safe", root="x"))


def test_an_empty_root_is_named():
    with pytest.raises(ValueError, match=r"source\.root is empty"):
        open_source(SimulatedConfig())


def test_bad_inputs_are_quarantined_by_default():
    assert PackConfig().on_error is OnError.quarantine


def test_all_impossible_values_are_named_at_once():
    with pytest.raises(
        ValueError, match=r"shard_size_mib is 0.*; limit is -1.*; max_rejected is 2"
    ):
        PackConfig(shard_size_mib=0, limit=-1, max_rejected=2)


@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: VerifyConfig(root="x"), r"root is 'x'.*add repair=true"),
        (lambda: VerifyConfig(quick=True, threads=2), r"threads is 2, but quick=true"),
        (lambda: SplitConfig(seed=3, test=0.2), r"test is 0\.2 and .*seed is 3.*block_km=10"),
    ],
)
def test_a_setting_without_effect_is_refused(make, fix):
    with pytest.raises(ValueError, match=fix):
        make()


@pytest.mark.parametrize("spelled", ["2019-07-01", "20190701", "2019-W27-1"])
def test_a_day_is_kept_as_it_compares_with_days_of_products(spelled):
    select = SelectConfig(date_from=spelled, date_to=spelled)
    assert select.date_from == select.date_to == "2019-07-01"
    assert parse_interval(spelled) == ("2019-07-01", "2019-07-01")
    assert parse_interval(f"{spelled}/20190930") == ("2019-07-01", "2019-09-30")


@pytest.mark.parametrize("interval", ["2019-07-01/", "/2019-07-01", "2019-07-01/..", "", "/"])
def test_an_interval_without_an_end_is_refused_and_not_one_day(interval):
    with pytest.raises(ValueError, match=r"give days or intervals such as 2019-01-01/2019-03-31"):
        parse_interval(interval)


@pytest.mark.parametrize("kind", [CogL2AConfig, GeotiffConfig, SafeL2AConfig])
def test_an_offset_of_the_wrong_sign_or_size_is_refused(kind):
    assert [kind(boa_offset=offset).boa_offset for offset in (-1000, 0, None)] == [-1000, 0, None]
    for offset in (1000, -100):
        with pytest.raises(ValueError, match=rf"source\.boa_offset is {offset}; give -1000 or 0"):
            kind(boa_offset=offset)
    with pytest.raises(ValueError, match=r"source\.reprocessed_offset is 1000; give"):
        GeotiffConfig(reprocessed_offset=1000)


@pytest.mark.parametrize(
    "coordinates", [[[1, 2, 3, 4]], [[["a", 1], [0, 0], [1, 1], [0, 0]]], [[[], [], [], []]], [5]]
)
def test_coordinates_that_are_no_points_are_one_error_that_names_the_file(tmp_path, coordinates):
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": coordinates}))
    with pytest.raises(ValueError, match=r"area\.geojson cannot be read as GeoJSON"):
        read_polygons(str(path))
