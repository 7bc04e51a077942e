"""Views of stored patches: normalised by source, in the order of the bands, the same everywhere."""

import numpy as np
import pytest
import torch
from batches import sequential_batches
from make_data import packed_arrays
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preprocess.bands import L2A_BANDS
from simclr.augment import parameters
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, Rotation
from simclr.data.dataset import open_dataset
from simclr.data.loader import Batch

CPU = torch.device("cpu")
PRESETS = [
    "paper", "standard", "geometric_standard", "none", "all", "geometric", "pixel",
]  # fmt: skip


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Take the way that a GPU takes: all views at once, and no lists of them."""
    monkeypatch.setattr(parameters, "on_host", lambda device: False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    first = packed_arrays(tmp_path_factory.mktemp("a"), 16, seed=1, source="first")
    second = packed_arrays(tmp_path_factory.mktemp("b"), 16, seed=2, source="second")
    return [str(first), str(second)]


@pytest.fixture(scope="module")
def dataset(shards):
    return open_dataset(shards, L2A_BANDS)


@pytest.fixture(scope="module")
def batch(dataset):
    return next(iter(sequential_batches(dataset, 32, CPU)))


# What CUDA's kernels do with unsigned integers of more than eight bits: copies and views.
COPIES = {
    "_to_copy", "alias", "as_strided", "clone", "contiguous", "copy_", "detach", "empty",
    "empty_like", "empty_strided", "permute", "select", "slice", "transpose", "unsqueeze", "view",
}  # fmt: skip
UNSIGNED = {torch.uint16, torch.uint32, torch.uint64}


class AsOnCuda(TorchDispatchMode):
    """Refuses what torch has a CPU kernel for, and no CUDA kernel: work on unsigned integers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and value.dtype in UNSIGNED and name not in COPIES:
                raise NotImplementedError(f'"{name}" not implemented for {value.dtype}')
        return func(*args, **(kwargs or {}))


def part(batch: Batch, rows: torch.Tensor) -> Batch:
    groups = {name: torch.from_numpy(t.numpy()[rows.numpy()]) for name, t in batch.groups.items()}
    return Batch(groups, batch.source[rows], batch.sample_id[rows], batch.epoch[rows])


def test_plain_views_are_z_scores_of_each_samples_own_source(dataset, batch):
    views = ViewMaker(dataset, AugmentConfig(), 0, CPU).eval_views(batch)
    assert views.shape == (32, 12, 12, 12)
    for name in ("first", "second"):
        rows = batch.source == dataset.sources.index(name)
        table = dataset.normalisation[name]["B03"]
        stored = torch.from_numpy(batch.groups["b10"].numpy().astype(np.float32))[rows, 1]
        channel = views[rows, L2A_BANDS.index("B03")]
        torch.testing.assert_close(channel, (stored - table["mean"]) / table["std"])
        assert abs(views[rows].mean((0, 2, 3))).max() < 0.05


def test_channels_follow_the_order_of_the_bands(shards, batch):
    forth = ViewMaker(open_dataset(shards, L2A_BANDS), AugmentConfig(), 0, CPU)
    bands = ["B12", "B02", "B01", "B08"]
    back = ViewMaker(open_dataset(shards, bands), AugmentConfig(), 0, CPU)
    expected = forth.eval_views(batch)[:, [L2A_BANDS.index(band) for band in bands]]
    torch.testing.assert_close(back.eval_views(batch), expected)


def test_the_guard_refuses_what_cuda_would():
    stored = torch.zeros(2, 2, 2, 2, dtype=torch.uint16)
    with AsOnCuda(), pytest.raises(NotImplementedError, match="index"):
        stored[:, torch.tensor([1, 0])]


@pytest.mark.parametrize("bands", [list(L2A_BANDS), ["B12", "B02", "B01", "B08"]])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_no_view_needs_integers_that_cuda_does_not_know(shards, batch, bands):
    maker = ViewMaker(open_dataset(shards, bands), AugmentConfig(preset="all"), 0, CPU)
    expected = maker.training_views(batch, epoch=0), maker.eval_views(batch)
    with AsOnCuda():
        views = maker.training_views(batch, epoch=0), maker.eval_views(batch)
    assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))


def test_values_beyond_half_the_range_stay_positive(shards, batch):
    bright = part(batch, torch.arange(2))
    bright.groups["b10"].view(torch.int16)[...] = -5536  # the bits of 60,000
    maker = ViewMaker(open_dataset(shards, ["B08", "B02"]), AugmentConfig(), 0, CPU)
    assert (maker.eval_views(bright) > 0).all()


def test_nodata_becomes_the_mean(dataset, batch):
    emptied = part(batch, torch.arange(1))
    emptied.groups["b10"].view(torch.int16)[0, 0, 3, 4] = 0
    views = ViewMaker(dataset, AugmentConfig(), 0, CPU).eval_views(emptied)
    assert views[0, L2A_BANDS.index("B02"), 3, 4] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_gets_the_same_views_in_any_batch(dataset, batch, preset):
    maker = ViewMaker(dataset, AugmentConfig(preset=preset), 3, CPU)
    together = maker.training_views(batch, epoch=2)
    rows = torch.tensor([30, 4, 17])
    alone = maker.training_views(part(batch, rows), epoch=2)
    both = torch.cat([rows, rows + 32])
    torch.testing.assert_close(alone, together[both], rtol=1e-5, atol=1e-5)


def test_views_are_the_same_to_the_last_bit_on_any_number_of_threads(dataset, batch):
    maker = ViewMaker(dataset, AugmentConfig(), 3, CPU)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(maker.training_views(batch, epoch=1))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(torch.equal(views, made[0]) for views in made[1:])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_gpu_that_cannot_list_views_makes_the_same_ones(dataset, batch, preset, monkeypatch):
    maker = ViewMaker(dataset, AugmentConfig(preset=preset), 3, CPU)
    listed = maker.training_views(batch, epoch=1)
    monkeypatch.setattr(parameters, "on_host", lambda device: False)
    torch.testing.assert_close(maker.training_views(batch, epoch=1), listed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_views_are_finite_distinct_and_channels_last(dataset, batch, preset):
    views = ViewMaker(dataset, AugmentConfig(preset=preset), 0, CPU).training_views(batch, epoch=0)
    assert views.shape == (64, 12, 12, 12)
    assert torch.isfinite(views).all()
    assert views.is_contiguous(memory_format=torch.channels_last)
    first, second = views.chunk(2)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(first, second, strict=True)])
    assert same.all() if preset == "none" else same.float().mean() < 0.1


def test_the_view_may_be_larger_than_the_patch(dataset, batch):
    views = ViewMaker(dataset, AugmentConfig(view_size_px=32), 0, CPU).training_views(
        batch, epoch=0
    )
    assert views.shape[-2:] == (32, 32)


def test_free_rotation_and_dropped_bands_give_finite_views(dataset, batch):
    config = AugmentConfig(preset="all", rotation=Rotation.free, band_drop=0.3)
    views = ViewMaker(dataset, config, 0, CPU).training_views(batch, epoch=0)
    assert torch.isfinite(views).all()
    blank = (views == 0).all(3).all(2)
    assert 0.2 < blank.float().mean() < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["standard", "paper"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_views_compile_to_one_graph_without_a_break(dataset, batch, preset):
    maker = ViewMaker(dataset, AugmentConfig(preset=preset), 3, CPU)
    torch._dynamo.reset()
    compiled = torch.compile(maker._make_both, dynamic=False, fullgraph=True, backend="aot_eager")
    views = compiled(batch, batch.epoch)
    torch.testing.assert_close(views, maker.training_views(batch, batch.epoch))
    assert views.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_on_a_gpu_nothing_of_a_view_is_copied_from_the_host(dataset, batch):
    class Constants(TorchDispatchMode):
        """Collects tensors made from host values, which CUDA would wait to copy."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ("aten::lift_fresh", "aten::_local_scalar_dense"):
                found.append(func)
            return func(*args, **(kwargs or {}))

    found = []
    for preset in PRESETS:
        maker = ViewMaker(dataset, AugmentConfig(preset=preset, band_drop=0.1), 0, CPU)
        with Constants():
            maker.training_views(batch, batch.epoch)
    assert found == []
    with Constants():
        torch.tensor([1.0])
    assert found


@pytest.mark.usefixtures("as_on_a_gpu")
def test_eager_views_of_a_gpu_take_few_launches(dataset, batch):
    class Launches(TorchDispatchMode):
        """Counts operators that compute: neither views of memory nor allocations."""

        num = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            aliases = [one.alias_info for one in func._schema.returns]
            is_view = any(alias and not alias.is_write for alias in aliases)
            Launches.num += not is_view and "empty" not in func._schema.name
            return func(*args, **(kwargs or {}))

    maker = ViewMaker(dataset, AugmentConfig(preset="standard"), 0, CPU)
    with Launches():
        maker.training_views(batch, batch.epoch)
    assert 300 < Launches.num < 400
