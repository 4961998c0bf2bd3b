"""The bounded numbers and texts that every message and record is made of, and what names a snapshot.

No number crosses a socket that would not fit where it is written next.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Number = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
"""A version, a generation, a slot; -1: none. Fits the words of the control page and of headers."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 56)]
"""A position, a lane, a stripe, a length in bytes: sums of several still fit into 64 bits."""
Rank = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Reason = Annotated[str, msgspec.Meta(max_length=1 << 16)]


class SnapshotId(msgspec.Struct, frozen=True, order=True):
    """One snapshot of the whole job. Two captures of one step in different generations never mix."""

    version: Number
    """The step after which the state was captured."""
    generation: Number
    """The generation whose workers captured it."""
    slot: Number
    """Its slot: the same one on every node, chosen once by the gate."""
