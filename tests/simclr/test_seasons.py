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
from simclr.data.dataset import Corpus, open_corpus
from simclr.data.loader import training_batches
from simclr.data.sampler import Order
from simclr.data.temporal_pairs import seasons_of
from simclr.preemption import Preempted
from simclr.train import train

CPU = torch.device("cpu")
SEASON = DataConfig(global_batch_size=8, splits=["train"], positives=Positives.season)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Thirty-two places on three dates, half of the places for training."""
    return packed_arrays(tmp_path_factory.mktemp("shards"), 96, num_dates=3)


def corpus_of(*folders) -> Corpus:
    return open_corpus([str(folder) for folder in folders], L2A_BANDS)


def drawn(corpus: Corpus, seed=0, epoch=0) -> tuple[np.ndarray, np.ndarray]:
    seasons = seasons_of(corpus, seed, weighted=False)
    return seasons.pairs(np.arange(seasons.num_places), np.full(seasons.num_places, epoch))


def test_a_pair_is_one_place_on_two_dates(shards):
    corpus = corpus_of(shards)
    place, date = corpus.index("place"), corpus.index("acquired")
    for epoch in range(5):
        first, second = drawn(corpus, epoch=epoch)
        assert np.array_equal(place[first], place[second])
        assert (date[first] != date[second]).all()
        assert len(set(place[first])) == 32


def test_every_pair_of_dates_is_as_likely_as_any_other_in_either_order(shards):
    corpus = corpus_of(shards)
    date = corpus.index("acquired")
    pairs = Counter(
        (date[a], date[b])
        for epoch in range(60)
        for a, b in zip(*drawn(corpus, epoch=epoch), strict=True)
    )
    expected = 60 * 32 / 6
    assert len(pairs) == 6
    # chi-square with 5 degrees of freedom stays below this in 999 of 1000 cases
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 20.5


def test_seeds_and_epochs_draw_dates_of_their_own_and_the_same_ones_again(shards):
    corpus = corpus_of(shards)
    draws = [drawn(corpus, *key) for key in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert np.array_equal(draws[0], draws[3])


def test_a_place_with_one_date_gives_one_sample_for_both_views(shards, tmp_path):
    single = packed_arrays(tmp_path, 8, source="single")
    corpus = corpus_of(shards, single)
    first, second = drawn(corpus)
    assert np.array_equal(first == second, corpus.source[first] == 1)
    assert (first == second).sum() == 8


def test_two_patches_of_one_day_are_no_pair(shards, tmp_path):
    # The same scenes in another release: as many places, and still three days of each.
    again = packed_arrays(tmp_path, 96, num_dates=3, source="again", ground="arrays", seed=5)
    corpus = corpus_of(shards, again)
    day, place = corpus.index("acquired"), corpus.index("place")
    sources = set()
    for epoch in range(4):
        first, second = drawn(corpus, epoch=epoch)
        assert len(first) == len(set(place[first])) == 32
        assert (day[first] != day[second]).all()
        sources |= set(zip(corpus.source[first], corpus.source[second], strict=True))
    assert len(sources) == 4  # a partner may be of either source


def test_patches_without_a_place_are_alone(shards, tmp_path):
    corpus = corpus_of(shards)
    nameless = np.where(np.arange(96) < 6, "", corpus.index("place"))
    corpus.index = {"place": nameless, "acquired": corpus.index("acquired")}.__getitem__
    seasons = seasons_of(corpus, 0, weighted=False)
    assert (seasons.num_places, seasons.num_seasonal) == (36, 30)


def test_no_place_comes_twice_in_an_epoch_so_none_is_its_own_negative(shards):
    corpus = corpus_of(shards)
    seasons = seasons_of(corpus, 3, weighted=False)
    order = Order(seasons.num_places, 8, seed=3)
    place = corpus.index("place")
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        shown = [place[seasons.pairs(*order.plan(step))[0]] for step in steps]
        assert len(set(np.concatenate(shown))) == 32


def test_both_patches_reach_the_two_views_each_normalised_by_its_own_source(shards, tmp_path):
    other = packed_arrays(tmp_path, 32, source="other", ground="arrays", seed=9)
    corpus = corpus_of(shards, other)  # a fourth patch of each place, of another source
    seasons = seasons_of(corpus, 1, weighted=False)
    order = Order(seasons.num_places, 8, seed=1)
    loader = training_batches(
        corpus, order, seasons, start_step=5, num_steps=9, device=CPU, num_threads=2, num_slots=2
    )
    maker = ViewMaker(corpus, AugmentConfig(preset="none"), 0, CPU)
    mixed = 0
    for step, batch in enumerate(loader, start=5):
        views = maker.two_views(batch, batch.epoch)
        samples = np.concatenate(seasons.pairs(*order.plan(step)))
        assert views.shape == (16, 12, 12, 12)
        assert batch.sample_id.tolist() == corpus.sample_id[samples].tolist()
        for view, sample in zip(views, samples, strict=True):
            expected = one_view(corpus, sample)
            torch.testing.assert_close(view, expected)
        mixed += int((corpus.source[samples[:8]] != corpus.source[samples[8:]]).sum())
    assert mixed > 0


def one_view(corpus: Corpus, sample: int) -> torch.Tensor:
    """Return the bands that lie on the finest grid of views, z-scored by hand; others as NaN."""
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in corpus.groups}
    corpus.read_into(np.array([sample]), buffers, np.array([0]))
    table = corpus.normalisation[corpus.sources[corpus.source[sample]]]
    view = np.empty((12, 12, 12), np.float32)
    for group in corpus.groups:
        for band, stored in zip(group.bands, buffers[group.name][0], strict=True):
            score = (stored.astype(np.float32) - table[band]["mean"]) / table[band]["std"]
            grid = torch.from_numpy(score)[None, None]
            finer = torch.nn.functional.interpolate(grid, size=(12, 12), mode="bilinear")
            view[L2A_BANDS.index(band)] = finer[0, 0]
    return torch.from_numpy(view)


def test_views_of_a_pair_differ_in_their_draws_as_those_of_one_patch_do(shards):
    corpus = corpus_of(shards)
    seasons = seasons_of(corpus, 0, weighted=False)
    loader = training_batches(
        corpus, Order(32, 8, 0), seasons,
        start_step=0, num_steps=1, device=CPU, num_threads=1, num_slots=2,
    )  # fmt: skip
    batch = next(iter(loader))
    parameters = ViewMaker(corpus, AugmentConfig(), 0, CPU).draw(batch, batch.epoch)
    assert len(parameters) == 16
    assert len(set(parameters.noise_window.tolist())) == 16


def test_a_fraction_takes_places_with_all_their_dates(shards):
    corpus = open_corpus([str(shards)], L2A_BANDS, fraction=0.25, seed=4, whole_places=True)
    assert list(Counter(corpus.index("place").tolist()).values()) == [3] * 8


def test_weights_mix_places_of_sources(shards, tmp_path):
    other = packed_arrays(tmp_path, 16, num_dates=2, source="other")
    data = replace(SEASON, weights=[1.0, 1.0], splits=["train", "validation", "test"])
    seasons = seasons_of(corpus_of(shards, other), 0, weighted=bool(data.weights))
    assert seasons.sizes == (32, 8)


def test_weights_are_refused_where_sources_share_places(shards, tmp_path):
    other = packed_arrays(tmp_path, 16, num_dates=2, source="other", ground="arrays")
    with pytest.raises(
        ValueError, match=r"16 patches lie in places of another source.*arrays_0000"
    ):
        seasons_of(corpus_of(shards, other), 0, weighted=True)


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
    corpus = corpus_of(tmp_path / "shards")
    places = set(corpus.index("place"))
    split_of = set(zip(corpus.index("place"), corpus.index("split"), strict=True))
    assert len(split_of) == len(places) == 40 // 2  # no place in two splits
    first, second = drawn(corpus)
    date = corpus.index("acquired")
    assert (date[first] != date[second]).all()
    data = DataConfig(global_batch_size=4, positives=Positives.season, splits=["train"])
    augment = AugmentConfig(view_size_px=32)
    config = small_run(tmp_path / "shards", tmp_path / "run", data=data, augment=augment, epochs=1)
    steps = sum(split == "train" for _, split in split_of) // 4
    assert int(train(config).name[5:]) == steps > 0
