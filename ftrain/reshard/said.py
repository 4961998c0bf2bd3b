"""What one rank of an old world said of itself, taken apart only as far as somebody asks.

A new rank hears all old ranks, and most of what they say is the same: settings, counters, the keys of modules. So
values stay encoded until they are wanted, and who finds equal bytes need not look at them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ftrain.durable.contents import RankContents
from ftrain.errors import StateInconsistent
from ftrain.reading import items_of, part_of, read_outline, read_value

PARTS = ("objects", "gradients", "buckets", "rng")


class Said:
    """One rank's manifest. Raises StateInconsistent if it is none, StateMismatch if its state was not described."""

    def __init__(self, rank: int, world_size: int, manifest: bytes) -> None:
        self._rank, self._world_size, self._manifest = rank, world_size, manifest
        self.state, tree = read_outline(manifest, rank, world_size)
        """``state``: what it held."""
        self._parts = items_of(tree)
        if missing := [name for name in PARTS if name not in self._parts]:
            raise StateInconsistent(f"the snapshot's values lack {missing[0]!r}")
        self.objects = items_of(self._parts["objects"])
        """What it tracked, by name: encoded."""

    @cached_property
    def contents(self) -> RankContents:
        """All of it."""
        return RankContents(self._rank, self._world_size, self._manifest)

    def encoded(self, part: str) -> bytes:
        """Gradients, buckets or generators, to be compared."""
        return self._parts[part]

    def values(self, part: str) -> dict[str, Any]:
        """The same, with stand-ins for tensors."""
        return part_of({part: self.value(self._parts[part])}, part)

    def value(self, encoded: bytes) -> Any:
        """Anything that it said, with stand-ins for tensors."""
        return read_value(encoded, _StandIns(self))

    def state_of(self, name: str) -> bytes:
        """What an object's ``state_dict()`` gave: encoded."""
        return items_of(self.objects[name]).get("state", b"")


class _StandIns(Sequence[Any]):
    """A rank's, made when the first is wanted."""

    def __init__(self, said: Said) -> None:
        self._said = said

    def __getitem__(self, index: Any) -> Any:
        return self._said.contents.stand_ins[index]

    def __len__(self) -> int:
        return len(self._said.contents.stand_ins)
