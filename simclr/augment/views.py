"""A batch of stored patches becomes two normalised, augmented views of each."""

from __future__ import annotations

import torch

from simclr.augment.draws import ViewParameters, draw
from simclr.augment.geometry import axis_matrices, blur_matrix, warp
from simclr.augment.presets import Preset, Variant, preset_of
from simclr.augment.radiometry import (
    add_impulses,
    add_speckle,
    adjust,
    noise_table,
    noise_windows,
)
from simclr.config import AugmentConfig
from simclr.corpus import Corpus
from simclr.loader import Batch

_BLUR_TAPS_2021 = 2  # the 2021 code used five taps whatever the sigma
_NODATA = 0
_NOTHING = Preset("none", Variant.corrected, {})


class ViewMaker:
    """Makes views on the device, each sample normalised with its own source's statistics.

    Attributes:
        preset: the rule by which operations are chosen.
        view_size_px: side of a view.
    """

    def __init__(
        self, corpus: Corpus, config: AugmentConfig, seed: int, device: torch.device
    ) -> None:
        self.preset: Preset = preset_of(config)
        self.view_size_px = config.view_size_px or corpus.groups[0].size_px
        self._seed = seed
        self._groups = corpus.groups
        self._mean, self._std = _statistics(corpus, device)
        self._take, self._channels = _channel_plan(corpus, device)
        self._noise = noise_table(seed, device) if "speckle" in self.preset.operations else None

    def two_views(self, batch: Batch, epoch: int) -> torch.Tensor:
        """Return (2B, C, S, S) float32, channels last: first views, then second views."""
        samples = batch.sample_id.repeat(2)
        view = torch.arange(2, device=samples.device).repeat_interleave(len(batch.sample_id))
        parameters = draw(self.preset, self._seed, epoch, samples, view, self._mean.shape[1])
        return self.apply(batch, parameters, self.preset)

    def plain(self, batch: Batch) -> torch.Tensor:
        """Return (B, C, S, S) float32: normalised and brought to one grid, nothing else."""
        view = torch.zeros_like(batch.sample_id)
        parameters = draw(_NOTHING, 0, 0, batch.sample_id, view, self._mean.shape[1])
        return self.apply(batch, parameters, _NOTHING)

    def apply(self, batch: Batch, parameters: ViewParameters, preset: Preset) -> torch.Tensor:
        """Return the views that the parameters describe: one or two a sample, (N, C, S, S).

        Always in this order: geometry, blur, contrast, gain, brightness, noise. What the preset
        never draws is not computed.
        """
        source = batch.source.repeat(len(parameters.blur) // len(batch.source))
        level = (self._mean / self._std)[source]  # (N, C)
        views = self._warp(batch, parameters, preset)  # (N, S, C, S)
        if preset.operations & {"contrast", "gain", "brightness"}:
            old = preset.variant is not Variant.corrected
            views = adjust(views, parameters, level, gain_on_z=old)
        if "speckle" in preset.operations and self._noise is not None:
            noise = noise_windows(self._noise, parameters.noise_window, views.shape)
            if preset.variant is Variant.corrected:
                views = add_speckle(views, parameters, level, noise)
            else:
                views = add_impulses(views, parameters, noise)
        return views.permute(0, 2, 1, 3).contiguous(memory_format=torch.channels_last)

    def _warp(self, batch: Batch, parameters: ViewParameters, preset: Preset) -> torch.Tensor:
        blur = self._blur(parameters, preset)
        wrap = preset.variant is not Variant.corrected
        copies = len(parameters.blur) // len(batch.source)
        parts = []
        for group, take in zip(self._groups, self._take, strict=True):
            patches = self._normalise(batch, group.name, take).repeat(copies, 1, 1, 1)
            rows, columns = axis_matrices(
                parameters, group.size_px, self.view_size_px, wrap=wrap, blur=blur
            )
            parts.append(warp(patches, parameters.transposed, rows, columns))
        return torch.cat(parts, dim=2)[:, :, self._channels]

    def _blur(self, parameters: ViewParameters, preset: Preset) -> torch.Tensor:
        if "blur" not in preset.operations:
            return parameters.blur.new_empty(0)
        radius = 0 if preset.variant is Variant.corrected else _BLUR_TAPS_2021
        return blur_matrix(parameters.blur, self.view_size_px, radius)

    def _normalise(
        self, batch: Batch, group: str, take: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return a group's selected bands as z-scores, nodata at 0, the mean: (B, c, n, n)."""
        position, channel = take
        stored = batch.groups[group].to(torch.float32)[:, position]
        mean = self._mean[batch.source][:, channel, None, None]
        std = self._std[batch.source][:, channel, None, None]
        return torch.where(stored == _NODATA, 0.0, (stored - mean) / std)


def _statistics(corpus: Corpus, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std, each (sources, C) float32."""
    tables = [corpus.normalisation[source] for source in corpus.sources]
    mean = torch.tensor([[table[band]["mean"] for band in corpus.bands] for table in tables])
    std = torch.tensor([[table[band]["std"] for band in corpus.bands] for table in tables])
    # A constant band carries nothing; one stored unit instead of zero keeps it finite.
    return mean.to(device), std.clamp(min=1.0).to(device)


def _channel_plan(
    corpus: Corpus, device: torch.device
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """Return per group (positions in the group, channels of the view), and the final order."""
    take: list[tuple[torch.Tensor, torch.Tensor]] = []
    laid: list[int] = []
    for group in corpus.groups:
        bands = [band for band in group.bands if band in corpus.bands]
        position = [group.bands.index(band) for band in bands]
        channel = [corpus.bands.index(band) for band in bands]
        take.append((torch.tensor(position, device=device), torch.tensor(channel, device=device)))
        laid += channel
    return take, torch.tensor(laid).argsort().to(device)
