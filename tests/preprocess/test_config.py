"""Settings of packing: defaults, canonical bands, and refusals that name the value."""

import dataclasses
import typing
from enum import Enum

import pytest

from preprocess.config import OnError, PackConfig, SourceConfig, SplitConfig, VerifyConfig
from preprocess.sources import SOURCES, open_source
from preprocess.sources.bigearthnet import BigEarthNetV1Config, BigEarthNetV2Config
from preprocess.sources.geotiff_files import GeotiffConfig
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
