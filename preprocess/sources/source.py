"""What packing asks of a source, whichever it is: a layout, references in order, patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from preprocess.patch import Patch, PatchRef
from preprocess.selection import Dropped
from preprocess.shards.layout import ShardLayout


class Source(Protocol):
    """A configured source. It holds no open file and may be asked from several processes."""

    @property
    def simulated(self) -> bool:
        """True when the patches were synthesised, never measured."""

    def layout(self) -> ShardLayout:
        """Return what every sample will look like.

        Raises:
            ValueError: the settings cannot be met, a band does not exist here for example.
        """

    def discover(self) -> Iterator[PatchRef | Dropped]:
        """Yield all references in the order of their ids, and what is left out by choice.

        Raises:
            ValueError: the root holds nothing of this source; the message says what was sought.
        """

    def read(self, ref: PatchRef, layout: ShardLayout) -> Patch:
        """Read one patch, in the layout's groups and bands.

        Raises:
            PatchError: a file of the patch is missing, unreadable or of another shape.
        """
