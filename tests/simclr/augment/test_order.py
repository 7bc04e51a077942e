"""Two operations in a view equal the two done one after the other, in either order."""

from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from batches import sequential_batches
from make_data import packed_arrays
from scipy import ndimage

from simclr.augment.operations import OPERATIONS, Stage
from simclr.augment.parameters import GEOMETRIC, NINE, ParameterSampler, ViewParameters, preset_of
from simclr.augment.transforms import noise_table, noise_windows
from simclr.augment.views import ViewMaker
from simclr.config import AugmentConfig, Rotation
from simclr.data.dataset import ShardDataset, open_dataset
from simclr.data.loader import Batch

CPU = torch.device("cpu")
SIDE, SEED, NUM = 24, 5, 4


@cache
def table() -> torch.Tensor:
    return noise_table(SEED, CPU)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> ShardDataset:
    # One grid: on several, noise at first is noise of coarser pixels, which no picture shows.
    folder = tmp_path_factory.mktemp("packed")
    bands = ["B02", "B03", "B8A"]
    return open_dataset(
        [str(packed_arrays(folder, 8, size_px=SIDE, bands=bands, native=False))], bands
    )


@pytest.fixture(scope="module")
def batch(dataset) -> Batch:
    return next(iter(sequential_batches(dataset, NUM, CPU)))


def drawn(dataset: ShardDataset, batch: Batch, config: AugmentConfig) -> ViewParameters:
    ids = batch.sample_id
    sampler = ParameterSampler(preset_of(config), SEED, len(dataset.bands), CPU)
    return sampler.draw(0, ids, torch.zeros_like(ids))


class OneByOne:
    """The nine operations on one picture (C, S, S), in float64, by numpy and scipy."""

    def __init__(
        self, dataset: ShardDataset, parameters: ViewParameters, number: int, order: list[str]
    ):
        self.p, self.number, self.order = parameters, number, order
        scale = dataset.normalisation[dataset.sources[0]]
        level = [scale[band]["mean"] / scale[band]["std"] for band in dataset.bands]
        self.level = np.array(level)[:, None, None]

    def apply(self, picture: np.ndarray) -> np.ndarray:
        for operation in self.order:
            move = operation in GEOMETRIC
            picture = self._moved(picture, operation) if move else getattr(self, operation)(picture)
        return picture

    def _moved(self, picture, operation):
        place = [name for name in self.order if name in GEOMETRIC].index(operation)
        linear = self.p.maps[self.number, place, :, :2].double().numpy()
        offset = self.p.maps[self.number, place, :, 2].double().numpy()
        centre = (SIDE - 1) / 2
        start = np.full(2, centre) - linear @ np.full(2, centre) + offset * SIDE / 2
        if (abs(linear) > 1).any():  # more ground than pixels: average what falls on one
            return self._averaged(picture, linear, offset)
        moved = [
            ndimage.affine_transform(band, linear, start, order=1, mode="reflect")
            for band in picture
        ]
        return np.stack(moved)

    def _averaged(self, picture, linear, offset):
        weights = []
        for axis in (0, 1):
            scale = linear[axis, axis]
            centres = (2 * np.arange(SIDE) + 1) / SIDE - 1
            place = scale * centres + offset[axis]
            place = np.where(abs(place) > 1, 2 * np.sign(place) - place, place)
            pixel = ((place + 1) * SIDE - 1) / 2
            apart = abs(pixel.clip(0, SIDE - 1)[:, None] - np.arange(SIDE)[None])
            triangle = (1 - apart / abs(scale)).clip(min=0)
            weights.append(triangle / triangle.sum(1, keepdims=True))
        return weights[0] @ picture @ weights[1].T

    def _line(self, operation):
        """Return the coefficients (4, C) of one of the lines."""
        lines = [name for name in self.order if OPERATIONS[name].stage is Stage.line]
        return self.p.lines[self.number, lines.index(operation)].double().numpy()

    def blur(self, picture):
        sigma = float(self.p.blur[self.number])
        radius = int(np.ceil(3 * sigma))
        return ndimage.gaussian_filter(
            picture, (0, sigma, sigma), mode="reflect", radius=(0, radius, radius)
        )

    def contrast(self, picture):
        mean = picture.mean((1, 2), keepdims=True)
        return mean + self._line("contrast")[0, 0] * (picture - mean)

    def gain(self, picture):
        gain = self._line("gain")[0][:, None, None]
        return gain * (picture + self.level) - self.level

    def brightness(self, picture):
        return picture + self._line("brightness")[1, 0]

    def speckle(self, picture):
        first = self.order[0] == "speckle"
        shape = torch.Size(
            (1, SIDE, len(picture), SIDE) if first else (1, SIDE, SIDE, len(picture))
        )
        window = self.p.noise_window[self.number][None]
        noise = noise_windows(table(), window, shape)[0].double().numpy()
        noise = noise.transpose(1, 0, 2) if first else noise.transpose(2, 0, 1)
        return picture + float(self.p.noise[self.number]) * noise * (picture + self.level)


# Shift and zoom together interpolate once, one by one twice; test_geometry holds their places.
PAIRS = [pair for pair in permutations(NINE, 2) if set(pair) != {"shift", "zoom"}]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_view_equals_its_operations_one_by_one(dataset, batch, pair):
    config = AugmentConfig(preset="list", operations=list(pair))
    maker = ViewMaker(dataset, config, SEED, CPU)
    parameters = drawn(dataset, batch, config)
    views = maker.apply(batch, parameters, maker.preset).double().numpy()
    plain = maker.eval_views(batch).double().numpy()
    for number in range(NUM):
        expected = OneByOne(dataset, parameters, number, list(pair)).apply(plain[number])
        np.testing.assert_allclose(views[number], expected, rtol=0, atol=2e-4)
    assert abs(views - plain).max() > 1e-3


def test_a_drawn_couplet_is_one_of_its_two_orders(dataset, batch):
    def views(config: AugmentConfig) -> torch.Tensor:
        maker = ViewMaker(dataset, config, SEED, CPU)
        return maker.training_views(batch, epoch=0)

    either = views(AugmentConfig(preset="couplets", couplets=["zoom+contrast"]))
    forth = views(AugmentConfig(preset="list", operations=["zoom", "contrast"]))
    back = views(AugmentConfig(preset="list", operations=["contrast", "zoom"]))
    orders = set()
    for view, a, b in zip(either, forth, back, strict=True):
        same = [torch.allclose(view, other, atol=1e-5) for other in (a, b)]
        assert sum(same) == 1
        orders.add(same.index(True))
    assert orders == {0, 1}


@pytest.mark.parametrize("rotation", list(Rotation))
def test_contrast_before_the_geometry_is_about_the_mean_of_the_patch(dataset, batch, rotation):
    def views(*operations: str) -> tuple[torch.Tensor, ViewParameters]:
        config = AugmentConfig(preset="list", operations=list(operations), rotation=rotation)
        maker = ViewMaker(dataset, config, SEED, CPU)
        parameters = drawn(dataset, batch, config)
        return maker.apply(batch, parameters, maker.preset), parameters

    moved, _ = views("zoom", "rotation")
    actual, parameters = views("contrast", "zoom", "rotation")
    factor = parameters.lines[:, 0, 0, :, None, None]
    plain = ViewMaker(dataset, AugmentConfig(), SEED, CPU).eval_views(batch)
    mean = plain.mean((2, 3), keepdim=True)
    torch.testing.assert_close(actual, mean + factor * (moved - mean), rtol=0, atol=1e-5)
