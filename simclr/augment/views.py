"""A batch of stored patches becomes two normalised, augmented views of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from simclr.augment import parallel as lists
from simclr.augment.geometry import Frame, frame_of, mean_of_view, warp
from simclr.augment.operations import OPERATIONS, Preset, preset_of
from simclr.augment.parallel import share_out
from simclr.augment.parameters import ViewParameters, draw
from simclr.augment.photometric import LINES, Noise, band_lines
from simclr.config import AugmentConfig, Variant
from simclr.data.dataset import ShardDataset
from simclr.data.loader import Batch
from simclr.philox import Epoch

_NODATA = 0
_NOTHING = Preset("none", Variant.corrected, {})
_GOLDEN = 0.381966  # far from every simple fraction: the noise of band groups does not coincide


# Views made at a time on a CPU: what is in work stays in its caches, and its memory is used again
# instead of being asked of the system, which clears it first. On 128 views that was a third.
_VIEWS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class _Group:
    """A band group's selected bands.

    Attributes:
        name: of the group.
        positions: (c,) where they stand in the group; None: all of them, in the group's order.
        channels: (c,) which channels of a view they become, ascending.
    """

    name: str
    positions: torch.Tensor | None
    channels: torch.Tensor


class ViewMaker:
    """Makes views on the device, each sample normalised with its own source's statistics.

    Attributes:
        preset: the rule by which operations are chosen.
        view_size_px: side of a view.
    """

    def __init__(
        self, dataset: ShardDataset, config: AugmentConfig, seed: int, device: torch.device
    ) -> None:
        self.preset: Preset = preset_of(config)
        self.view_size_px = config.view_size_px or dataset.groups[0].size_px
        self._seed = seed
        self._mean, self._std = _statistics(dataset, device)
        self._groups = _groups(dataset, device)
        self._runs = _runs(dataset)
        noisy = "speckle" in self.preset.operations
        self._noise = Noise(seed, device, self.preset.variant) if noisy else None

    def training_views(self, batch: Batch, epoch: Epoch) -> torch.Tensor:
        """Return views of all pairs, first ones, then second ones, channels last in memory.

        (2B, C, S, S) float32 of a batch of B, or (B, C, S, S) of a paired one.
        """
        return self.apply(batch, self.draw(batch, epoch), self.preset)

    def draw(self, batch: Batch, epoch: Epoch) -> ViewParameters:
        """Draw the parameters of both views of all pairs, each by its own sample."""
        copies = 1 if batch.paired else 2
        samples = batch.sample_id.repeat(copies)
        view = torch.arange(2, device=samples.device).repeat_interleave(len(samples) // 2)
        epochs = epoch.repeat(copies) if isinstance(epoch, torch.Tensor) else epoch
        return draw(self.preset, self._seed, epochs, samples, view, self._mean.shape[1])

    def eval_views(self, batch: Batch) -> torch.Tensor:
        """Return (B, C, S, S) float32: normalised and brought to one grid, nothing else."""
        view = torch.zeros_like(batch.sample_id)
        parameters = draw(_NOTHING, 0, 0, batch.sample_id, view, self._mean.shape[1])
        return self.apply(batch, parameters, _NOTHING)

    def apply(self, batch: Batch, parameters: ViewParameters, preset: Preset) -> torch.Tensor:
        """Return the views that the parameters describe: one or two a sample, (N, C, S, S).

        What the preset never draws is not computed.
        """
        num, size = len(parameters), self.view_size_px
        views = self._mean.new_empty(num, size, size, self._mean.shape[1])

        def make(part: tuple[slice, slice]) -> None:
            """Fill some rows of the views."""
            rows, samples = part
            self._make(views[rows], batch.part(samples), parameters.part(rows), preset)

        if lists.is_free(views.device):
            share_out(make, _parts(num, len(batch.source)))
        else:
            make((slice(num), slice(len(batch.source))))
        return views.permute(0, 3, 1, 2)  # channels last in memory

    def _make(
        self, views: torch.Tensor, batch: Batch, parameters: ViewParameters, preset: Preset
    ) -> None:
        """Fill (N, S, S, C) with the views that the parameters describe."""
        frame = frame_of(parameters, preset, self.view_size_px)
        parts = [
            self._view_group(number, batch, parameters, preset, frame)
            for number in range(len(self._groups))
        ]
        channel = 0
        for number, run in self._runs:
            # Not torch.cat, which takes twice the time to interleave a few numbers at a time.
            width = run.stop - run.start
            views[..., channel : channel + width] = parts[number][..., run]
            channel += width
        if self._noise and "speckle" in preset.operations:
            # A band that is dropped stays blank.
            last = ~parameters.noise_first[:, None, None, None]
            last = last & (parameters.keep[:, None, None] > 0)
            level = self._level(batch, parameters)[:, None, None]
            self._noise.add(views, parameters, last, level)

    def _view_group(
        self, number: int, batch: Batch, parameters: ViewParameters, preset: Preset, frame: Frame
    ) -> torch.Tensor:
        """Return one band group's part of the views, (N, S, S, c)."""
        group = self._groups[number]
        level = self._level(batch, parameters)[:, group.channels]
        patches = self._normalise(batch, group)
        if len(patches) < len(level):
            patches = patches.repeat(len(level) // len(patches), 1, 1, 1)  # (N, n, c, n)
        if self._noise and preset.may_precede("speckle", frozenset(OPERATIONS)):
            first = parameters.noise_first[:, None, None, None]
            around = level[:, None, :, None]
            self._noise.add(patches, parameters, first, around, number * _GOLDEN)
        patches, rows, columns = frame.lay_out(patches)
        if preset.operations & LINES or preset.band_drop:
            # A line may be drawn before the warp, whose weights add up to one: fewer pixels.
            mean = _contrast_mean(patches, rows, columns, parameters.contrast_of_patch)
            old = preset.variant is not Variant.corrected
            slope, shift = band_lines(parameters, group.channels, mean, level, gain_on_z=old)
            patches = patches.mul_(slope[:, None, :, None]).add_(shift[:, None, :, None])
        return warp(patches, rows, columns)

    def _normalise(self, batch: Batch, group: _Group) -> torch.Tensor:
        """Return a group's selected bands as z-scores, nodata at 0, the mean: (B, n, c, n)."""
        stored = batch.groups[group.name]
        if group.positions is not None:
            # CUDA has no kernel that indexes uint16; copies know it, and turn it into float32.
            stored = stored.view(torch.int16)[:, group.positions].view(torch.uint16)
        values = stored.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)
        mean = self._mean[batch.source][:, None, group.channels, None]
        std = self._std[batch.source][:, None, group.channels, None]
        seen = values != _NODATA
        return values.sub_(mean).div_(std).mul_(seen)

    def _level(self, batch: Batch, parameters: ViewParameters) -> torch.Tensor:
        """Return mean / std of every view's source, (N, C)."""
        copies = len(parameters) // len(batch.source)
        return (self._mean / self._std)[batch.source].repeat(copies, 1)


def _parts(num_views: int, num_samples: int) -> Iterator[tuple[slice, slice]]:
    """Yield which views are made at a time, and the samples that they show."""
    for view in range(0, num_views, num_samples):
        for first in range(0, num_samples, _VIEWS_AT_A_TIME):
            last = min(first + _VIEWS_AT_A_TIME, num_samples)
            yield slice(view + first, view + last), slice(first, last)


def _contrast_mean(
    patches: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, of_patch: torch.Tensor
) -> torch.Tensor:
    """Return what contrast acts about, the mean of the view or of the whole patch: (N, C)."""
    even = 1 / patches.shape[1]
    row = torch.where(of_patch[:, None], even, rows.mean(1))
    column = torch.where(of_patch[:, None], even, columns.mean(1))
    return mean_of_view(patches, row, column)


def _statistics(dataset: ShardDataset, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std, each (sources, C) float32."""
    tables = [dataset.normalisation[source] for source in dataset.sources]
    mean = torch.tensor([[table[band]["mean"] for band in dataset.bands] for table in tables])
    std = torch.tensor([[table[band]["std"] for band in dataset.bands] for table in tables])
    # A constant band carries nothing; one stored unit instead of zero keeps it finite.
    return mean.to(device), std.clamp(min=1.0).to(device)


def _groups(dataset: ShardDataset, device: torch.device) -> list[_Group]:
    groups = []
    for group in dataset.groups:
        channels = [number for number, band in enumerate(dataset.bands) if band in group.bands]
        positions = [group.bands.index(dataset.bands[number]) for number in channels]
        whole = positions == list(range(len(group.bands)))
        groups.append(
            _Group(
                group.name,
                None if whole else torch.tensor(positions, device=device),
                torch.tensor(channels, device=device),
            )
        )
    return groups


def _runs(dataset: ShardDataset) -> list[tuple[int, slice]]:
    """Return the channels of a view as runs: (number of the group, its channels from, to).

    Joined in this order, the parts of the groups become the bands in their order in one pass.
    """
    used = [0] * len(dataset.groups)
    runs: list[tuple[int, slice]] = []
    for band in dataset.bands:
        number = next(n for n, group in enumerate(dataset.groups) if band in group.bands)
        place, used[number] = used[number], used[number] + 1
        if runs and runs[-1][0] == number:
            runs[-1] = (number, slice(runs[-1][1].start, place + 1))
        else:
            runs.append((number, slice(place, place + 1)))
    return runs
