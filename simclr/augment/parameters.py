"""Draws the parameters of every view of a batch from (seed, epoch, sample, view) alone.

The views of a sample are therefore the same on any number of ranks, threads or devices and after
any restart. An operation that a view did not get has its identity parameter: nothing later
branches on what was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from simclr.augment.operations import OPERATIONS, Operation, Preset, Stage, free_rotation
from simclr.choices import Rotation
from simclr.philox import Epoch, Philox

_COUPLET, _ORDER, _NOISE, _NUM_COMMON = range(4)  # columns of the uniforms before the bands'


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """What is done to N views; every field is a tensor on the device.

    The order of application matters in four places only, and is kept there: between maps, between
    lines, and in the three fields that are None where the preset never needs them.

    Attributes:
        maps: (N, K, 2, 3) affine maps in order of application, as of ``Stage.geometry``.
        blur: (N,) sigma of a Gaussian in pixels of the view, 0 for none.
        blurred_after: (N,) number of maps that are applied before the blur; None: all.
        lines: (N, L, 4, C) lines in order of application, as of ``Stage.line``.
        line_of_patch: (N, L) bool, about the mean of the whole patch instead of the view's.
        noise: (N,) standard deviation of multiplicative noise, 0 for none.
        noise_first: (N,) bool, on the patch's own pixels before anything else.
        noise_window: (N,) uniform in [0, 1): which noise is used.
        keep: (N, C) 0 where a band is blanked, else 1; None: no band is.
    """

    maps: torch.Tensor
    blur: torch.Tensor
    blurred_after: torch.Tensor | None
    lines: torch.Tensor
    line_of_patch: torch.Tensor | None
    noise: torch.Tensor
    noise_first: torch.Tensor | None
    noise_window: torch.Tensor
    keep: torch.Tensor | None

    def __len__(self) -> int:
        """Return N."""
        return len(self.blur)

    def part(self, views: slice | torch.Tensor) -> ViewParameters:
        """Return the parameters of some of the views; of a slice, without copying."""
        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        part: dict[str, Any] = {
            name: value if value is None else value[views] for name, value in values.items()
        }
        return ViewParameters(**part)

    def equals(self, other: ViewParameters) -> bool:
        """True if every parameter is the same to the last bit."""
        pairs = [(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)]
        return all(a is b is None or (a is not None and torch.equal(a, b)) for a, b in pairs)


class ParameterSampler:
    """Draws by a preset; constants are built once, so that no draw copies from the host.

    Every operation's uniforms stand at a fixed place of the stream, whatever the preset; those of
    an operation that is appended to ``OPERATIONS`` come behind all others.
    """

    def __init__(self, preset: Preset, seed: int, num_bands: int, device: torch.device) -> None:
        self.preset, self._num_bands = preset, num_bands
        self._generator = Philox(seed, device)
        self._maps, self._lines = preset.of_stage(Stage.geometry), preset.of_stage(Stage.line)
        self._strengths = {
            name: preset.strengths.get(name, strength.default)
            for operation in OPERATIONS.values()
            for name, strength in operation.strengths.items()
        }
        self._columns: dict[str, slice] = {}
        end = _NUM_COMMON + num_bands
        for name, operation in OPERATIONS.items():
            start, end = end, end + 1 + operation.num_uniforms + operation.num_per_band * num_bands
            self._columns[name] = slice(start, end)
        self._num = end
        ranks = [
            [couplet.index(name) if name in couplet else 2 for name in OPERATIONS]
            for couplet in preset.couplets
        ]
        self._ranks = torch.tensor(ranks, dtype=torch.int64, device=device)
        self._identities = {
            Stage.geometry: torch.tensor([[1.0, 0, 0], [0, 1, 0]], device=device),
            Stage.line: torch.tensor([1.0, 0, 0, 0], device=device)[:, None],
        }
        self._moves = frozenset(self._maps)
        self._blurs = preset.of_stage(Stage.blur)
        self._noises = preset.of_stage(Stage.noise)

    def draw(self, epoch: Epoch, sample_id: torch.Tensor, view: torch.Tensor) -> ViewParameters:
        """Draw the parameters of N views: ``sample_id`` and ``view`` are (N,) int64."""
        u = self._generator.uniforms(epoch, sample_id, view, self._num)
        order = _Order(self.preset, self._columns, self._ranks, u)
        drop = u[:, _NUM_COMMON : _NUM_COMMON + self._num_bands]
        return ViewParameters(
            maps=self._chain(self._maps, (2, 3), order, u),
            blur=self._single(self._blurs, order, u),
            blurred_after=order.num_before(self._blurs, self._moves),
            lines=self._chain(self._lines, (4, self._num_bands), order, u),
            line_of_patch=order.opening(self._lines, self._moves),
            noise=self._single(self._noises, order, u),
            noise_first=order.opening_all(self._noises),
            noise_window=u[:, _NOISE],
            keep=(drop >= self.preset.band_drop).float() if self.preset.band_drop else None,
        )

    def _parameter(self, name: str, order: _Order, u: torch.Tensor) -> torch.Tensor:
        """Return an operation's parameters, the identity where a view did not get it."""
        operation, own = self._operation(name), u[:, self._columns[name]]
        value = operation.function(self._strengths, own[:, 1:])
        if name in order.always:
            return value
        chosen = order.chosen[name].view(-1, *[1] * (value.ndim - 1))
        return torch.where(chosen, value, self._identities.get(operation.stage, 0.0))

    def _operation(self, name: str) -> Operation:
        if name == "rotation" and self.preset.rotation is Rotation.free:
            return Operation(Stage.geometry, free_rotation, 1)
        return OPERATIONS[name]

    def _chain(
        self, names: tuple[str, ...], shape: tuple[int, int], order: _Order, u: torch.Tensor
    ) -> torch.Tensor:
        """Return the parameters of several operations in order of application: (N, K, *shape)."""
        if not names:
            return u.new_empty(len(u), 0, *shape)
        each = [self._parameter(name, order, u).expand(-1, *shape) for name in names]
        chain = torch.stack(each, 1)
        if order.is_fixed or len(names) == 1:
            return chain
        ranks = [torch.as_tensor(order.rank[name]) for name in names]
        first = torch.stack(ranks, 1).argsort(stable=True, dim=1)
        return chain.take_along_dim(first[:, :, None, None], 1)

    def _single(self, names: tuple[str, ...], order: _Order, u: torch.Tensor) -> torch.Tensor:
        """Return the (N,) parameter of the one operation of a stage; 0 if there is none."""
        return self._parameter(names[0], order, u) if names else u.new_zeros(len(u))


class _Order:
    """Which views get each operation, and its position among those of the view."""

    def __init__(
        self, preset: Preset, columns: dict[str, slice], ranks: torch.Tensor, u: torch.Tensor
    ) -> None:
        self.preset, self._like = preset, u
        self.is_fixed = not preset.couplets
        self.always = {name for name, chance in preset.probabilities.items() if chance >= 1}
        self.chosen: dict[str, torch.Tensor] = {}
        self.rank: dict[str, torch.Tensor | int] = {}
        if preset.couplets:
            position = ranks[(u[:, _COUPLET] * len(ranks)).long()]
            swapped = (u[:, _ORDER] < 0.5)[:, None] & (position < 2)
            position = torch.where(swapped, 1 - position, position)
            self.rank = dict(zip(OPERATIONS, position.unbind(1), strict=True))
            self.chosen = dict(zip(OPERATIONS, (position < 2).unbind(1), strict=True))
            return
        for number, (name, chance) in enumerate(preset.probabilities.items()):
            self.chosen[name] = u[:, columns[name].start] < chance
            self.rank[name] = number

    def num_before(self, names: tuple[str, ...], others: frozenset[str]) -> torch.Tensor | None:
        """Return how many of the others may come before an operation: (N,); None: always all.

        One that a view did not get is an identity: it may be counted or not.
        """
        if not names or not self.preset.may_precede(names[0], others):
            return None
        earlier = sum(self.rank[other] < self.rank[names[0]] for other in others)
        if isinstance(earlier, torch.Tensor):
            return earlier
        return self._like.new_full((len(self._like),), earlier, dtype=torch.int64)

    def opening(self, names: tuple[str, ...], others: frozenset[str]) -> torch.Tensor | None:
        """Return which views get each operation before any of the others: (N, len(names)) bool."""
        if not any(self.preset.may_precede(name, others) for name in names):
            return None
        return torch.stack([self._opens(name, others) for name in names], 1)

    def opening_all(self, names: tuple[str, ...]) -> torch.Tensor | None:
        """Return which views get the operation, others too, and it first: (N,) bool."""
        others = self.preset.operations - frozenset(names)
        opening = self.opening(names[:1], others)
        return None if opening is None else opening[:, 0]

    def _opens(self, name: str, others: frozenset[str]) -> torch.Tensor:
        chosen = torch.stack([self.chosen[other] for other in others])  # (others, N)
        earlier = torch.stack(
            [self.chosen[other] & (self.rank[other] < self.rank[name]) for other in others]
        )
        return self.chosen[name] & chosen.any(0) & ~earlier.any(0)


def on_host(device: torch.device) -> bool:
    """True where asking for a value, or starting many small operations, costs next to nothing."""
    return device.type == "cpu"


def selected(flags: torch.Tensor) -> torch.Tensor | None:
    """Return the indices of the flagged views on a CPU: (N,) bool to (M,) int64.

    None on a GPU, where counting them would force a synchronisation: work is done for all views.
    """
    return flags.nonzero().squeeze(1) if on_host(flags.device) else None
