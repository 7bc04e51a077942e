"""Two dates of one place as a pair: who is paired, and that training sees just that."""

import os
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from make_data import packed_arrays
from rank_jobs import small_run

from preprocess.bands import L2A_BANDS
from preprocess.config import PackConfig
from preprocess.pack import pack
from preprocess.sources.simulated import SimulatedConfig
from simclr.augment.views import ViewMaker
from simclr.checkpoint.manager import newest_valid
from simclr.config import AugmentConfig, CheckpointConfig, DataConfig, Positives, TrainConfig
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.data.loader import training_batches
from simclr.data.sampler import DeterministicBatchSampler, TemporalPairSampler
from simclr.preemption import Preempted
from simclr.train import train

CPU = torch.device("cpu")
SEASON = DataConfig(global_batch_size=8, splits=["train"], positives=Positives.season)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Thirty-two places on three dates, half of the places for training."""
    return packed_arrays(tmp_path_factory.mktemp("shards"), 96, num_dates=3)


def dataset_of(*folders) -> ShardDataset:
    return open_dataset([str(folder) for folder in folders], L2A_BANDS)


def drawn(dataset: ShardDataset, seed=0, epoch=0) -> tuple[np.ndarray, np.ndarray]:
    pair_sampler = TemporalPairSampler(dataset, seed, weighted=False)
    return pair_sampler.pairs(
        np.arange(pair_sampler.num_places), np.full(pair_sampler.num_places, epoch)
    )


def test_a_pair_is_one_place_on_two_dates(shards):
    dataset = dataset_of(shards)
    place, date = dataset.index("place"), dataset.index("acquired")
    for epoch in range(5):
        first, second = drawn(dataset, epoch=epoch)
        assert np.array_equal(place[first], place[second])
        assert (date[first] != date[second]).all()
        assert len(set(place[first])) == 32


def test_every_pair_of_dates_is_as_likely_as_any_other_in_either_order(shards):
    dataset = dataset_of(shards)
    date = dataset.index("acquired")
    pairs = Counter(
        (date[a], date[b])
        for epoch in range(60)
        for a, b in zip(*drawn(dataset, epoch=epoch), strict=True)
    )
    expected = 60 * 32 / 6
    assert len(pairs) == 6
    # chi-square with 5 degrees of freedom stays below this in 999 of 1000 cases
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 20.5


def test_seeds_and_epochs_draw_dates_of_their_own_and_the_same_ones_again(shards):
    dataset = dataset_of(shards)
    draws = [drawn(dataset, *key) for key in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert np.array_equal(draws[0], draws[3])


def test_a_place_with_one_date_gives_one_sample_for_both_views(shards, tmp_path):
    single = packed_arrays(tmp_path, 8, source="single")
    dataset = dataset_of(shards, single)
    first, second = drawn(dataset)
    assert np.array_equal(first == second, dataset.source[first] == 1)
    assert (first == second).sum() == 8


def test_two_patches_of_one_day_are_no_pair(shards, tmp_path):
    # The same scenes in another release: as many places, and still three days of each.
    again = packed_arrays(tmp_path, 96, num_dates=3, source="again", ground="arrays", seed=5)
    dataset = dataset_of(shards, again)
    day, place = dataset.index("acquired"), dataset.index("place")
    sources = set()
    for epoch in range(4):
        first, second = drawn(dataset, epoch=epoch)
        assert len(first) == len(set(place[first])) == 32
        assert (day[first] != day[second]).all()
        sources |= set(zip(dataset.source[first], dataset.source[second], strict=True))
    assert len(sources) == 4  # a partner may be of either source


def test_patches_without_a_place_are_alone(shards, tmp_path):
    dataset = dataset_of(shards)
    nameless = np.where(np.arange(96) < 6, "", dataset.index("place"))
    dataset.index = {"place": nameless, "acquired": dataset.index("acquired")}.__getitem__
    pair_sampler = TemporalPairSampler(dataset, 0, weighted=False)
    assert (pair_sampler.num_places, pair_sampler.num_seasonal) == (36, 30)


def test_no_place_comes_twice_in_an_epoch_so_none_is_its_own_negative(shards):
    dataset = dataset_of(shards)
    pair_sampler = TemporalPairSampler(dataset, 3, weighted=False)
    sampler = DeterministicBatchSampler(pair_sampler.num_places, 8, seed=3)
    place = dataset.index("place")
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        shown = [place[pair_sampler.pairs(*sampler.plan(step))[0]] for step in steps]
        assert len(set(np.concatenate(shown))) == 32


def test_both_patches_reach_the_two_views_each_normalised_by_its_own_source(shards, tmp_path):
    other = packed_arrays(tmp_path, 32, source="other", ground="arrays", seed=9)
    dataset = dataset_of(shards, other)  # a fourth patch of each place, of another source
    pair_sampler = TemporalPairSampler(dataset, 1, weighted=False)
    sampler = DeterministicBatchSampler(pair_sampler.num_places, 8, seed=1)
    loader = training_batches(
        dataset,
        sampler,
        pair_sampler,
        start_step=5,
        num_steps=9,
        device=CPU,
        num_threads=2,
        num_slots=2,
    )
    maker = ViewMaker(dataset, AugmentConfig(preset="none"), 0, CPU)
    mixed = 0
    for step, batch in enumerate(loader, start=5):
        views = maker.training_views(batch, batch.epoch)
        samples = np.concatenate(pair_sampler.pairs(*sampler.plan(step)))
        assert views.shape == (16, 12, 12, 12)
        assert batch.sample_id.tolist() == dataset.sample_id[samples].tolist()
        for view, sample in zip(views, samples, strict=True):
            expected = one_view(dataset, sample)
            torch.testing.assert_close(view, expected)
        mixed += int((dataset.source[samples[:8]] != dataset.source[samples[8:]]).sum())
    assert mixed > 0


def one_view(dataset: ShardDataset, sample: int) -> torch.Tensor:
    """Return the bands that lie on the finest grid of views, z-scored by hand; others as NaN."""
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in dataset.layouts[0]}
    dataset.read_into(np.array([sample]), buffers, np.array([0]))
    table = dataset.normalisation[dataset.sources[dataset.source[sample]]]
    view = np.empty((12, 12, 12), np.float32)
    for group in dataset.layouts[0]:
        for band, stored in zip(group.bands, buffers[group.name][0], strict=True):
            score = (stored.astype(np.float32) - table[band]["mean"]) / table[band]["std"]
            grid = torch.from_numpy(score)[None, None]
            finer = torch.nn.functional.interpolate(grid, size=(12, 12), mode="bilinear")
            view[L2A_BANDS.index(band)] = finer[0, 0]
    return torch.from_numpy(view)


def test_views_of_a_pair_differ_in_their_draws_as_those_of_one_patch_do(shards):
    dataset = dataset_of(shards)
    pair_sampler = TemporalPairSampler(dataset, 0, weighted=False)
    loader = training_batches(
        dataset, DeterministicBatchSampler(32, 8, 0), pair_sampler,
        start_step=0, num_steps=1, device=CPU, num_threads=1, num_slots=2,
    )  # fmt: skip
    batch = next(iter(loader))
    parameters = ViewMaker(dataset, AugmentConfig(), 0, CPU).draw(batch, batch.epoch)
    assert len(parameters) == 16
    assert len(set(parameters.noise_window.tolist())) == 16


def test_a_fraction_takes_places_with_all_their_dates(shards):
    dataset = open_dataset([str(shards)], L2A_BANDS, fraction=0.25, seed=4, whole_places=True)
    assert list(Counter(dataset.index("place").tolist()).values()) == [3] * 8


def test_weights_mix_places_of_sources(shards, tmp_path):
    other = packed_arrays(tmp_path, 16, num_dates=2, source="other")
    data = replace(SEASON, weights=[1.0, 1.0], splits=["train", "validation", "test"])
    pair_sampler = TemporalPairSampler(dataset_of(shards, other), 0, weighted=bool(data.weights))
    assert pair_sampler.sizes == (32, 8)


def test_weights_are_refused_where_sources_share_places(shards, tmp_path):
    other = packed_arrays(tmp_path, 16, num_dates=2, source="other", ground="arrays")
    with pytest.raises(
        ValueError, match=r"16 patches lie in places of another source.*arrays_0000"
    ):
        TemporalPairSampler(dataset_of(shards, other), 0, weighted=True)


def test_shards_without_two_dates_of_a_place_are_refused(tmp_path):
    single = packed_arrays(tmp_path / "shards", 48)
    with pytest.raises(ValueError, match=r"no place in arrays has two dates \(24 of 24 .*=same"):
        train(small_run(single, tmp_path / "run", data=SEASON))


def test_a_batch_of_more_places_than_there_are_is_refused(shards, tmp_path):
    data = replace(SEASON, global_batch_size=64)
    with pytest.raises(ValueError, match="is 64 but the selected shards hold 16 places"):
        train(small_run(shards, tmp_path / "run", data=data))


class StopAt:
    """Asks for a stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, record) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_resumed_run_on_seasons_ends_with_the_same_bits(shards, tmp_path):
    def run(name: str) -> TrainConfig:
        saving = CheckpointConfig(every_steps=100)
        return small_run(
            shards, tmp_path / name, data=SEASON, epochs=2, log_every_steps=1, checkpoint=saving
        )

    unbroken = train(run("unbroken"))
    assert unbroken.name == "step-000000004"  # 16 places, 8 a step, 2 epochs
    for stop in (1, 3):
        with pytest.raises(Preempted):
            train(run("stopped"), [StopAt(stop)])
    assert train(run("stopped")).name == unbroken.name
    left, right = (
        torch.load(newest_valid(tmp_path / name) / "state.pt", weights_only=True)
        for name in ("unbroken", "stopped")
    )
    for part in ("encoder", "head"):
        assert all(torch.equal(left[part][key], right[part][key]) for key in left[part])


@pytest.mark.slow
def test_rasters_of_several_dates_are_packed_and_trained_on(tmp_path):
    source = SimulatedConfig(root=str(tmp_path / "rasters"), num_patches=40)
    pack(PackConfig(source=source, output=str(tmp_path / "shards")), progress=False)
    dataset = dataset_of(tmp_path / "shards")
    places = set(dataset.index("place"))
    split_of = set(zip(dataset.index("place"), dataset.index("split"), strict=True))
    assert len(split_of) == len(places) == 40 // 2  # no place in two splits
    first, second = drawn(dataset)
    date = dataset.index("acquired")
    assert (date[first] != date[second]).all()
    data = DataConfig(global_batch_size=4, positives=Positives.season, splits=["train"])
    augment = AugmentConfig(view_size_px=32)
    config = small_run(tmp_path / "shards", tmp_path / "run", data=data, augment=augment, epochs=1)
    steps = sum(split == "train" for _, split in split_of) // 4
    assert int(train(config).name[5:]) == steps > 0
