"""What a node collects of one snapshot until the parity that it keeps of it is complete."""

from __future__ import annotations

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.fold import Fold
from ftrain_snapshot.manifest import Catalog, chunk_count
from ftrain_snapshot.status import Volume


class Part:
    """The parity of one lane in one rotation, being made here."""

    def __init__(self, lane: int, rotation: int, members: tuple[int, ...], row: tuple[int, ...], codec: Codec) -> None:
        self.lane, self.rotation = lane, rotation
        self.columns = {position: column for column, position in enumerate(members)}
        self.row = row
        self.fold = Fold(codec)
        self.done: set[int] = set()
        """Stripes whose parity is there, with its checksum."""
        self.parity_bytes: int | None = None
        """Its length, once all its sources are described."""
        self.settling = False
        self.missing: dict[int, int] = {}
        """Of stripes that are being fetched: how many columns are still to come."""
        self.attempts: set[int] = set()
        """Questions under way (fetch.py)."""

    @property
    def is_complete(self) -> bool:
        """All its stripes are there."""
        return self.parity_bytes is not None and len(self.done) == chunk_count(self.parity_bytes)


class Assembly:
    """What this node collects of one snapshot."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.parts: dict[tuple[int, int], Part] = {}
        """By (lane, rotation)."""
        self.digests: dict[int, int] = {}
        """Of the lanes here that are sealed."""
        self.stored = bool(catalog.parity)  # a restarted daemon had it complete already
        self.failed = False
        self.damaged = 0
        """Chunks that were asked for and came damaged."""
        self.volume = Volume()
