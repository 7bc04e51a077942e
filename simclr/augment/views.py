"""Makes two augmented views of every patch of a batch on the device; ``_patches`` normalises."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from preprocess.shards import GroupLayout
from simclr.augment import parameters as drawn
from simclr.augment.operations import Stage
from simclr.augment.parameters import ParameterSampler, Preset, ViewParameters, preset_of
from simclr.augment.transforms import Noise, frame_of, joined_line, mean_of_view, warp
from simclr.config import AugmentConfig
from simclr.data.dataset import ShardDataset
from simclr.data.loader import Batch
from simclr.data.normalisation import mean_and_std
from simclr.philox import Epoch

_NODATA = 0
_NOTHING = Preset("none", {})
_GOLDEN = 0.381966  # far from simple fractions, so that the noise of band groups never coincides

# Views per part on a CPU: the working set stays in its caches and memory is reused, while the
# system would clear new memory first. With 128 views at once, that was a third of the time.
_VIEWS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class _Group:
    """The selected bands of a band group."""

    name: str
    positions: torch.Tensor | None  # (c,) positions in the group; None: all bands, in group order
    channels: torch.Tensor  # (c,) their channels in a view, ascending
    mean: torch.Tensor  # (sources, c)
    std: torch.Tensor  # (sources, c)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The mapping from the band groups of some sources to the channels of a view."""

    groups: list[_Group]  # finest first
    order: torch.Tensor  # (C,) reorders the bands from group order to channel order
    # (group number, slice of its bands): concatenated in this order, the slices are the bands in
    # channel order
    runs: list[tuple[int, slice]]


class ViewMaker:
    """Makes views of the samples of a data set.

    Args:
        dataset: bands, band groups and statistics of the samples.
        config: preset, strengths and size of the views.
        seed: seed of the run.
        device: device of the batches.
        compiled: compile training views, one graph per batch size; ignored for a data set with
            several layouts, since the parts of its batches vary in size.
        tf32: let a GPU multiply in TF32 (11 significant bits), for encoders that use bfloat16 (8
            bits) anyway.

    Attributes:
        preset: the operations of the views and their probabilities.
        view_size_px: side of a view.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        config: AugmentConfig,
        seed: int,
        device: torch.device,
        *,
        compiled: bool = False,
        tf32: bool = False,
    ) -> None:
        self.preset: Preset = preset_of(config)
        self.view_size_px = config.view_size_px or dataset.size_px
        self._tf32 = tf32
        tables = [dataset.normalisation[source] for source in dataset.sources]
        moments = zip(*(mean_and_std(table, dataset.bands) for table in tables), strict=True)
        self._mean, self._std = (torch.stack(of).to(device) for of in moments)  # (sources, C)
        self._level = self._mean / self._std
        self._layouts = [
            _layout(groups, dataset.bands, self._mean, self._std) for groups in dataset.layouts
        ]
        num_bands = len(dataset.bands)
        self._sampler = ParameterSampler(self.preset, seed, num_bands, device)
        self._unchanged = ParameterSampler(_NOTHING, seed, num_bands, device)
        self._noise = Noise(seed, device) if self.preset.of_stage(Stage.noise) else None
        self._training_views = (
            torch.compile(self._make_both, dynamic=False, fullgraph=True)
            if compiled and len(self._layouts) == 1
            else self._make_both
        )

    def training_views(self, batch: Batch, epoch: Epoch) -> torch.Tensor:
        """Return the views of all pairs: all first views, then all second ones.

        (2B, C, S, S) float32 for a batch of B samples, (B, C, S, S) if paired; channels_last.
        """
        matmul = torch.backends.cuda.matmul
        before = matmul.allow_tf32
        matmul.allow_tf32 = self._tf32 or before  # for float32 products on a GPU
        try:
            return self._training_views(batch, epoch)
        finally:
            matmul.allow_tf32 = before

    def _make_both(self, batch: Batch, epoch: Epoch) -> torch.Tensor:
        return self.apply(batch, self.draw(batch, epoch), self.preset)

    def draw(self, batch: Batch, epoch: Epoch) -> ViewParameters:
        """Draw the parameters of both views of all pairs, each keyed by its own sample."""
        copies = 1 if batch.paired else 2
        samples = batch.sample_id.repeat(copies)
        view = torch.arange(2, device=samples.device).repeat_interleave(len(samples) // 2)
        epochs = epoch.repeat(copies) if isinstance(epoch, torch.Tensor) else epoch
        return self._sampler.draw(epochs, samples, view)

    def eval_views(self, batch: Batch) -> torch.Tensor:
        """Return (B, C, S, S) float32, normalised and resampled to one grid, not augmented."""
        view = torch.zeros_like(batch.sample_id)
        return self.apply(batch, self._unchanged.draw(0, batch.sample_id, view), _NOTHING)

    def apply(self, batch: Batch, parameters: ViewParameters, preset: Preset) -> torch.Tensor:
        """Return the views described by the parameters: one or two per sample, (N, C, S, S).

        Operations that the preset never draws are not computed.
        """
        num, size = len(parameters), self.view_size_px
        views = self._mean.new_empty(num, size, size, self._mean.shape[1])
        if batch.parts:
            first = torch.arange(0, num, len(batch.source), device=views.device)[:, None]
            for positions, part in batch.parts:
                rows = (first + positions).flatten()
                made = self.apply(part, parameters.part(rows), preset)
                views[rows] = made.permute(0, 2, 3, 1)
            return views.permute(0, 3, 1, 2)

        def make(part: _Part) -> None:
            """Fill some rows of the views."""
            rows, samples = part
            self._make(views[rows], batch.part(samples), parameters.part(rows), preset)

        if drawn.on_host(views.device):
            _share_out(make, _parts(num, len(batch.source)))
        else:
            self._make(views, batch, parameters, preset)
        return views.permute(0, 3, 1, 2)  # channels last in memory

    def _make(
        self, views: torch.Tensor, batch: Batch, parameters: ViewParameters, preset: Preset
    ) -> None:
        """Fill (N, S, S, C) with the views described by the parameters."""
        frame, layout = frame_of(parameters, preset, self.view_size_px), self._layouts[batch.layout]
        copies = len(parameters) // len(batch.source)
        level = self._level[batch.source].repeat(copies, 1)
        groups, patch_means = [], []
        for number in range(len(layout.groups)):
            patches = self._patches(number, batch, parameters, level)
            groups.append(frame.lay_out(patches))  # may transpose the patches
            if parameters.line_of_patch is not None:
                patch_means.append(patches.mean((1, 3)))
        if preset.of_stage(Stage.line) or preset.band_drop:
            # Lines may be applied before the warp, whose weights sum to one: fewer pixels.
            view_mean = [mean_of_view(p, rows.mean(1), cols.mean(1)) for p, rows, cols in groups]
            patch_mean = torch.cat(patch_means, 1)[:, layout.order] if patch_means else None
            mean = torch.cat(view_mean, 1)[:, layout.order]
            slope, shift = joined_line(parameters, level, mean, patch_mean)
            for group, (patches, _, _) in zip(layout.groups, groups, strict=True):
                patches.mul_(slope[:, None, group.channels, None])
                patches.add_(shift[:, None, group.channels, None])
        warped = [warp(*group) for group in groups]
        channel = 0
        for number, run in layout.runs:
            # Not torch.cat, which is half as fast at interleaving a few numbers at a time.
            width = run.stop - run.start
            views[..., channel : channel + width] = warped[number][..., run]
            channel += width
        if self._noise and preset.of_stage(Stage.noise):
            last = parameters.noise
            if parameters.noise_first is not None:
                last = last * ~parameters.noise_first
            strength = last[:, None, None, None]
            if parameters.keep is not None:  # a dropped band stays blank
                strength = strength * parameters.keep[:, None, None]
            self._noise.add(views, strength, level[:, None, None], parameters.noise_window)

    def _patches(
        self, number: int, batch: Batch, parameters: ViewParameters, level: torch.Tensor
    ) -> torch.Tensor:
        """Return patches of a group, normalised here, not by ``Normalised``: (N, n, c, n)."""
        group = self._layouts[batch.layout].groups[number]
        stored = batch.groups[group.name]
        if group.positions is not None:
            # CUDA cannot index uint16, but copies support it, and convert it to float32.
            stored = stored.view(torch.int16)[:, group.positions].view(torch.uint16)
        values = stored.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = group.mean[batch.source], group.std[batch.source]
        seen = values != _NODATA  # nodata becomes 0, the mean of the band
        patches = values.sub_(mean[:, None, :, None]).div_(std[:, None, :, None]).mul_(seen)
        if len(patches) < len(level):
            patches = patches.repeat(len(level) // len(patches), 1, 1, 1)
        if self._noise and parameters.noise_first is not None:
            first = (parameters.noise * parameters.noise_first)[:, None, None, None]
            window = (parameters.noise_window + number * _GOLDEN).remainder(1)
            self._noise.add(patches, first, level[:, None, group.channels, None], window)
        return patches


_Part = tuple[slice, slice]  # some views, and the samples that they show


def _share_out(work: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    """Do the work on every part, on as many threads as torch may use, without gradients.

    Torch would split every small operation over all threads and wait for the slowest each time.
    Splitting into parts waits only once, and the order of sums in each part does not depend on the
    number of threads.
    """
    num = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def in_mode(part: _Part) -> None:
        """Work in the inference mode of the caller."""
        # Modes are per thread; outside inference mode, tensors created in it cannot be modified.
        with torch.inference_mode(inference), torch.no_grad():
            work(part)

    try:
        # Exceptions of the threads are raised here.
        list(_pool(num, os.getpid()).map(in_mode, parts))
    finally:
        # New threads use the number that was set last, by any thread.
        torch.set_num_threads(num)


@functools.cache
def _pool(num: int, _: int) -> ThreadPoolExecutor:
    """Return the thread pool of a process; after a fork, the parent's threads do not exist."""
    return ThreadPoolExecutor(num, "views", torch.set_num_threads, (1,))


def _parts(num_views: int, num_samples: int) -> Iterator[_Part]:
    for view in range(0, num_views, num_samples):
        for first in range(0, num_samples, _VIEWS_AT_A_TIME):
            last = min(first + _VIEWS_AT_A_TIME, num_samples)
            yield slice(view + first, view + last), slice(first, last)


def _layout(
    groups: Sequence[GroupLayout], bands: Sequence[str], mean: torch.Tensor, std: torch.Tensor
) -> _Layout:
    made = []
    for group in groups:
        channels = [number for number, band in enumerate(bands) if band in group.bands]
        positions = [group.bands.index(bands[number]) for number in channels]
        whole = positions == list(range(len(group.bands)))
        made.append(
            _Group(
                group.name,
                None if whole else torch.tensor(positions, device=mean.device),
                torch.tensor(channels, device=mean.device),
                mean[:, channels],
                std[:, channels],
            )
        )
    order = torch.cat([group.channels for group in made]).argsort()
    number_of = [next(n for n, group in enumerate(groups) if band in group.bands) for band in bands]
    runs, ends = [], [0] * len(groups)
    for number, run in itertools.groupby(number_of):
        start = ends[number]
        ends[number] += len(list(run))
        runs.append((number, slice(start, ends[number])))
    return _Layout(made, order, runs)
