"""Sources of different patch sizes and band groups in one batch: each sample stays what it is."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batches import sequential_batches
from make_data import packed_arrays

from simclr.augment import parameters
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, CheckpointConfig, DataConfig, ModelConfig, TrainConfig
from simclr.data.dataset import open_dataset
from simclr.data.loader import Loader, training_batches
from simclr.data.sampler import DeterministicBatchSampler, TemporalPairSampler
from simclr.evaluation.splits import seen_in_pretraining
from simclr.train import train

CPU = torch.device("cpu")
BANDS = ["B04", "B11", "B02", "B08"]
SIDE_PX = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Native 12 px patches on three grids, 24 px patches on one, and native ones of other bands."""
    root = tmp_path_factory.mktemp("shards")
    return [
        str(packed_arrays(root / "a", 24, source="native", seed=1)),
        str(packed_arrays(root / "b", 20, source="flat", seed=2, size_px=24, native=False)),
        str(packed_arrays(root / "c", 16, source="fewer", seed=3, bands=BANDS[::-1])),
    ]


@pytest.fixture(scope="module")
def dataset(folders):
    return open_dataset(folders, BANDS)


def pixels_of(dataset, sample):
    (layout,) = dataset.layout_of(np.array([sample])).tolist()
    groups = dataset.layouts[layout]
    buffers = {group.name: np.empty((1, *group.shape), np.uint16) for group in groups}
    dataset.read_into(np.array([sample]), buffers, np.array([0]))
    return layout, {name: buffer[0] for name, buffer in buffers.items()}


def batches_of(dataset, sampler, pairs=None, steps=6):
    """Return the loader's batches; each is valid until the next."""
    return training_batches(
        dataset, sampler, pairs, start_step=0, num_steps=steps, device=CPU, num_threads=3,
        num_slots=2,
    )  # fmt: skip


def test_every_sample_of_a_batch_arrives_with_its_own_layout(dataset):
    assert len(dataset.layouts) == 3
    sampler, layouts_seen = DeterministicBatchSampler(60, 8, seed=0), set()
    for step, batch in enumerate(batches_of(dataset, sampler)):
        planned = sampler.plan(step)[0]
        assert batch.sample_id.tolist() == dataset.sample_id[planned].tolist()
        found = torch.cat([positions for positions, _ in batch.parts]).sort().values
        assert found.tolist() == list(range(8))
        for positions, part in batch.parts:
            assert torch.equal(part.sample_id, batch.sample_id[positions])
            assert torch.equal(part.source, batch.source[positions])
            for row, position in enumerate(positions.tolist()):
                layout, expected = pixels_of(dataset, int(planned[position]))
                assert part.layout == layout
                assert part.groups.keys() == expected.keys()
                for name, pixels in expected.items():
                    assert np.array_equal(part.groups[name][row].numpy(), pixels)
            layouts_seen.add(part.layout)
    assert layouts_seen == {0, 1, 2}


def shuffled_batch(dataset):
    order = np.random.default_rng(5).permutation(dataset.num_samples)
    return order, next(
        iter(Loader(dataset, lambda _: order, num_batches=1, batch_size=60, device=CPU))
    )


@pytest.mark.parametrize("on_host", [True, False])
def test_plain_views_are_those_of_each_source_alone(folders, dataset, monkeypatch, on_host):
    monkeypatch.setattr(parameters, "on_host", lambda device: on_host)
    config = AugmentConfig(preset="none", view_size_px=SIDE_PX)
    order, batch = shuffled_batch(dataset)
    mixed = ViewMaker(dataset, config, 0, CPU).eval_views(batch)
    alone = []
    for folder in folders:
        single = open_dataset([folder], BANDS)
        maker = ViewMaker(single, config, 0, CPU)
        alone += [maker.eval_views(one) for one in sequential_batches(single, 30, CPU)]
    assert torch.equal(mixed, torch.cat(alone)[order])


def test_training_views_do_not_change_when_a_source_of_another_layout_joins(folders, dataset):
    config = AugmentConfig(band_drop=0.2, view_size_px=SIDE_PX)
    order, batch = shuffled_batch(dataset)
    both = ViewMaker(dataset, config, 7, CPU).training_views(batch, batch.epoch)
    single = open_dataset(folders[:1], BANDS)  # its samples have the same ids in both
    alone = next(iter(sequential_batches(single, 24, CPU)))
    expected = ViewMaker(single, config, 7, CPU).training_views(alone, alone.epoch)
    where = np.argsort(order)[:24]
    assert torch.equal(both[where], expected[:24])
    assert torch.equal(both[60 + where], expected[24:])


def test_two_dates_of_a_place_may_come_in_two_layouts(tmp_path):
    native = packed_arrays(tmp_path / "a", 16, source="native", ground="here", seed=1)
    flat = packed_arrays(
        tmp_path / "b", 32, source="flat", ground="here", seed=2, size_px=24, native=False,
        num_dates=2,
    )  # fmt: skip
    dataset = open_dataset([str(native), str(flat)], BANDS)
    pairs = TemporalPairSampler(dataset, 1, weighted=False)
    sampler = DeterministicBatchSampler(pairs.num_places, 8, seed=1)
    config = AugmentConfig(preset="none", view_size_px=SIDE_PX)
    maker, crossing = ViewMaker(dataset, config, 0, CPU), 0
    every = Loader(dataset, lambda _: np.arange(48), num_batches=1, batch_size=48, device=CPU)
    plain = maker.eval_views(next(iter(every)))
    for step, batch in enumerate(batches_of(dataset, sampler, pairs, steps=4)):
        first, second = pairs.pairs(*sampler.plan(step))
        crossing += int((dataset.source[first] != dataset.source[second]).sum())
        views = maker.training_views(batch, batch.epoch)
        torch.testing.assert_close(views, plain[np.concatenate([first, second])])
    assert crossing > 0


def test_the_side_of_the_views_must_be_said_where_patches_differ_in_it(folders, dataset):
    with pytest.raises(ValueError, match=r"12 px in native and 24 px in flat .*view_size_px=64"):
        ViewMaker(dataset, AugmentConfig(), 0, CPU)
    same = open_dataset([folders[0], folders[2]], BANDS)
    assert len(same.layouts) == 2  # of one side: no question
    assert ViewMaker(same, AugmentConfig(), 0, CPU).view_size_px == SIDE_PX


def test_a_band_that_one_of_the_sources_lacks_is_refused_with_its_name(folders):
    with pytest.raises(ValueError, match="band B03 not in the shards of fewer"):
        open_dataset(folders, ["B04", "B03"])


def test_sources_that_agree_in_the_selected_bands_are_of_one_layout(tmp_path):
    first = packed_arrays(tmp_path / "a", 12, source="first")
    second = packed_arrays(tmp_path / "b", 12, source="second", bands=["B02", "B03", "B04", "B08"])
    dataset = open_dataset([str(first), str(second)], ["B04", "B02"])
    assert len(dataset.layouts) == 1
    assert not next(iter(sequential_batches(dataset, 24, CPU))).parts


@pytest.mark.parametrize("number", [0, 1, 2])
def test_test_samples_are_known_again_from_each_source_of_a_mix(folders, dataset, number):
    splits = ["train", "validation", "test"]
    config = TrainConfig(shards=folders, data=DataConfig(bands=BANDS, splits=splits))
    run = SimpleNamespace(config=config, dataset={"fingerprint": dataset.fingerprint})
    tested = open_dataset(folders[number : number + 1], BANDS)
    rows = np.arange(tested.num_samples)
    assert seen_in_pretraining(run, tested, folders[number], rows) == 1
    config.data.splits = ["train"]
    share = (tested.index("split") == "train").mean()
    assert seen_in_pretraining(run, tested, folders[number], rows) == share < 1


@pytest.mark.parametrize("fate", ["as it was", "gone", "packed again with other patches"])
def test_it_is_unknown_what_was_seen_where_neither_pixels_nor_positions_tell(fate, tmp_path):
    trained = packed_arrays(tmp_path / "trained", 24, source="land")
    dataset = open_dataset([str(trained)], BANDS)
    config = TrainConfig(shards=[str(trained)], data=DataConfig(bands=BANDS, splits=["train"]))
    run = SimpleNamespace(config=config, dataset={"fingerprint": dataset.fingerprint})
    other_pixels = packed_arrays(tmp_path / "tested", 24, source="land", native=False, size_px=24)
    tested = open_dataset([str(other_pixels)], BANDS)
    known_ids = np.flatnonzero(tested.index("split") == "train")
    if fate != "as it was":
        shutil.rmtree(trained)
    if fate.startswith("packed"):
        packed_arrays(trained, 24, source="land", seed=5)
    assert math.isnan(seen_in_pretraining(run, tested, str(other_pixels), known_ids))
    if fate == "as it was":  # patches of other ids are told apart
        others = np.flatnonzero(tested.index("split") != "train")
        assert seen_in_pretraining(run, tested, str(other_pixels), others) == 0


def test_a_run_trains_on_a_mix_by_weight_and_goes_on_where_it_stopped(folders, tmp_path):
    def run(name: str, steps: int) -> TrainConfig:
        return TrainConfig(
            shards=folders,
            run_dir=str(tmp_path / name),
            max_steps=steps,
            data=DataConfig(
                bands=BANDS,
                splits=["train", "validation", "test"],
                global_batch_size=8,
                weights=[1.0, 2.0, 1.0],
            ),
            augment=AugmentConfig(view_size_px=SIDE_PX),
            model=ModelConfig(encoder="resnet18", stem="small"),
            checkpoint=CheckpointConfig(every_steps=100),
        )

    whole = train(run("whole", 4))
    train(run("parts", 2))
    parts = train(run("parts", 4))
    first, second = (
        torch.load(folder / "state.pt", weights_only=True) for folder in (whole, parts)
    )
    for name, weight in first["encoder"].items():
        assert torch.equal(weight, second["encoder"][name]), name
