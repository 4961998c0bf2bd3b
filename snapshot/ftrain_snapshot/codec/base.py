"""The seam between those who move bytes and those who compute on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


class Codec(ABC):
    """A linear erasure code. Implementations allocate nothing and release the GIL."""

    parity: int
    """How many lost chunks of a stripe it makes up for."""

    @abstractmethod
    def rows(self, data: int) -> tuple[tuple[int, ...], ...]:
        """The coefficients of each parity chunk over ``data`` data chunks."""

    @abstractmethod
    def combine(
        self, rows: Sequence[Sequence[int]], sources: Sequence[Buffer], destinations: Sequence[memoryview]
    ) -> None:
        """``destinations[i] = sum over j of rows[i][j] * sources[j]``, in the code's field.

        Buffers belong to the caller and are equally long; a destination may be one of the sources. Raises
        ValueError on lengths or coefficients that do not fit.
        """
