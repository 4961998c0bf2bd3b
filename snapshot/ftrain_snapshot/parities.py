"""The parity that a node keeps: three homes for each lane and rotation, and for each slot which stripe lies in which.

As with the data that it is made of, a stripe that did not change is kept where it is, under a second slot's name; one
that did is written where neither of the two other slots has it, so that what they refer to is never touched.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot import arena
from ftrain_snapshot.arena import HOMES, PAGE_BYTES, SLOTS, Mapping, touched
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.loop import Work
from ftrain_snapshot.manifest import CHUNK_BYTES, ParityDescriptor
from ftrain_snapshot.placement import round_up

GROWTH_BYTES_MAX = 64 << 20
"""How far ahead parity grows at once, where another node's lanes are longer than what was reserved here."""
_NO_HOME = 255

Kind = tuple[int, int]
"""(lane, rotation)."""


class ParityTable:
    """Where the parity of one lane and rotation lies in one slot, and its checksums, stripe by stripe."""

    def __init__(self, homes: bytes = b"", sums: bytes = b"") -> None:
        self.homes = bytearray(homes)
        self.sums = array("Q", sums)

    def home(self, stripe: int) -> int | None:
        """The stripe's home; None: it has none."""
        home = self.homes[stripe] if stripe < len(self.homes) else _NO_HOME
        return None if home == _NO_HOME else home

    def set(self, stripe: int, home: int, sum_: int) -> None:
        """The stripe lies in that home."""
        missing = stripe + 1 - len(self.homes)
        if missing > 0:
            self.homes.extend([_NO_HOME] * missing)
            self.sums.extend([0] * missing)
        self.homes[stripe], self.sums[stripe] = home, sum_


class Parities:
    """All parity of one node."""

    def __init__(self, node_dir: Path) -> None:
        self.tables: dict[int, dict[Kind, ParityTable]] = {slot: {} for slot in range(SLOTS)}
        """By slot."""
        self._node_dir = node_dir
        self._mappings: dict[tuple[int, Kind], Mapping] = {}

    def load(self, slot: int, parity: Iterable[ParityDescriptor]) -> None:
        """What is on record of a slot."""
        self.tables[slot] = {(p.lane, p.rotation): ParityTable(p.homes, p.sums[: 8 * len(p.homes)]) for p in parity}

    def forget(self, slot: int) -> None:
        """The slot refers to none any more."""
        self.tables[slot] = {}

    def table(self, slot: int, kind: Kind) -> ParityTable:
        """The slot's table, made if there is none."""
        tables = self.tables[slot]
        if kind not in tables:
            tables[kind] = ParityTable()
        return tables[kind]

    def view(self, slot: int, kind: Kind, stripe: int) -> memoryview | None:
        """The stripe's place, as long as there is room; None if it has none."""
        table = self.tables[slot].get(kind)
        home = table.home(stripe) if table is not None else None
        mapping = self._mapping(home, kind) if home is not None else None
        return None if mapping is None else mapping.view[stripe * CHUNK_BYTES : (stripe + 1) * CHUNK_BYTES]

    def place(self, slot: int, kind: Kind, stripe: int, length: int) -> memoryview:
        """A place for ``length`` bytes: no other slot's home, the own last one if it may be. Raises ArenaTooSmall."""
        mine, tables = self.table(slot, kind), self.tables
        used = [tables[other][kind].home(stripe) for other in range(SLOTS) if other != slot and kind in tables[other]]
        home = mine.home(stripe)
        if home is None or home in used:
            home = next(turn for turn in (slot, *range(HOMES)) if turn not in used)
        end = stripe * CHUNK_BYTES + length
        mapping = self._mapping(home, kind)
        if mapping is None or mapping.size < end:  # another node's lane is longer than ours
            have = mapping.size if mapping is not None else 0
            if end - have > (free := arena.available(self._node_dir)):
                raise ArenaTooSmall(end - have, free)
            size = round_up(max(end, have + min(have, GROWTH_BYTES_MAX)), PAGE_BYTES)
            for _ in self._grow(home, kind, size):
                pass
            mapping = self._mappings[home, kind]
        mine.set(stripe, home, 0)
        return mapping.view[stripe * CHUNK_BYTES : (stripe + 1) * CHUNK_BYTES]

    def keep(self, slot: int, kind: Kind, stripe: int, reference: int) -> None:
        """The stripe is that of another slot."""
        theirs = self.tables[reference][kind]
        self.table(slot, kind).set(stripe, theirs.homes[stripe], theirs.sums[stripe])

    def grow(self, kind: Kind, size: int) -> Work:
        """Make all homes at least ``size`` long. Raises ArenaTooSmall."""
        for home in range(HOMES):
            yield from self._grow(home, kind, size)

    # Where worlds change: parity of lanes and rotations that are not kept here any more.

    def idle_bytes(self, wanted: dict[Kind, int | None]) -> int:
        """Memory of parity that is not ``wanted``: by lane and rotation, with its length (None: as it is)."""
        found = 0
        for kind, _, path in self._files():
            have, size = arena.allocated(path), wanted.get(kind, 0)
            found += max(0, have - size) if size is not None else 0
        return found

    def trim(self, wanted: dict[Kind, int | None]) -> None:
        """Give back that memory, except for what a slot refers to."""
        for kind, home, path in self._files():
            size, used = wanted.get(kind, 0), self._used_bytes(kind, home)
            keep = None if size is None else round_up(max(size, used), PAGE_BYTES)
            if keep is None or keep >= path.stat().st_size:
                continue
            if (mapping := self._mappings.pop((home, kind), None)) is not None:
                mapping.close()
            if keep:
                os.truncate(path, keep)
            else:
                path.unlink()

    def _used_bytes(self, kind: Kind, home: int) -> int:
        tables = [tables[kind] for tables in self.tables.values() if kind in tables]
        last = [max((i for i, h in enumerate(table.homes) if h == home), default=-1) for table in tables]
        return (max(last, default=-1) + 1) * CHUNK_BYTES

    def _files(self) -> Iterator[tuple[Kind, int, Path]]:
        """(lane and rotation, home, path) of all there are."""
        for path in self._node_dir.glob("slot*.parity*"):
            home, lane, rotation = path.name.removeprefix("slot").replace(".parity", ".").split(".")
            yield (int(lane), int(rotation)), int(home), path

    def _grow(self, home: int, kind: Kind, size: int) -> Work:
        old = self._mapping(home, kind)
        if size == 0 or (old is not None and old.size >= size):
            return
        path = arena.parity_path(self._node_dir, home, *kind)
        while arena.extend(path, size) < size:
            yield
        self._mappings[home, kind] = mapping = Mapping(path)
        yield from touched(mapping, old.size if old is not None else 0)

    def _mapping(self, home: int, kind: Kind) -> Mapping | None:
        known = self._mappings.get((home, kind))
        if known is None:
            with suppress(OSError, ValueError):
                known = self._mappings[home, kind] = Mapping(arena.parity_path(self._node_dir, home, *kind))
        return known
