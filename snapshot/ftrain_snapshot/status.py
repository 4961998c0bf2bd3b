"""How a daemon is: the levels that the job's snapshots have reached, what they cost this node, what it has repaired."""

from __future__ import annotations

import msgspec

from ftrain_snapshot.words import SnapshotId


class Levels(msgspec.Struct, frozen=True):
    """The job's newest version at each level, as the gate knows them (None: none yet)."""

    sealed: int | None = None
    protected: int | None = None
    durable: int | None = None


class Volume(msgspec.Struct):
    """What snapshots cost this node, in bytes."""

    captured_bytes: int = 0
    """Length of this node's units: the full state."""
    copied_bytes: int = 0
    """What its workers copied of it; the rest had not changed."""
    sent_bytes: int = 0
    """What was sent for the parity that others keep of it."""
    received_bytes: int = 0
    """What others sent for the parity kept here."""
    coded_bytes: int = 0
    """What was folded into that parity."""
    kept_chunks: int = 0
    """Chunks of parity that were kept as they were, since nothing in their stripe had changed."""

    def add(self, other: Volume) -> None:
        """Count ``other`` in."""
        for field in self.__struct_fields__:
            setattr(self, field, getattr(self, field) + getattr(other, field))


class DaemonStatus(msgspec.Struct, frozen=True):
    """What an agent reports of its daemon at each heartbeat."""

    generation: int
    gate: bool
    """This daemon is the gate: its levels are those of the job."""
    levels: Levels
    taken: int
    """Snapshots begun since this daemon was started."""
    skipped: int
    """Snapshots skipped because an earlier one was still being protected."""
    restored: bool
    """All local bytes of the generation's restore snapshot are in place (True if there is none)."""
    failure: str = ""
    """Why the restore cannot be done; empty while it can."""
    exposed_seconds: float = 0.0
    """How long one more loss than is covered would have been fatal, or have cost a step, by now; 0: it would not.
    Only the gate's daemon knows."""
    exposed_last_seconds: float = 0.0
    """How long the last such time took that is over."""
    last: Volume = msgspec.field(default_factory=Volume)
    """What the newest snapshot that is protected here took."""
    total: Volume = msgspec.field(default_factory=Volume)
    """What all snapshots took that were protected here since this daemon was started."""
    cpu_seconds: float = 0.0
    """Processor time of this daemon since it was started."""
    pinned: SnapshotId | None = None
    """The snapshot whose slot is kept until it is on storage. Only the gate's daemon knows."""
    in_flight: bool = False
    """A snapshot has been begun of which it is not decided yet how safe it will be. Only the gate's daemon knows."""
    damaged: int = 0
    """Chunks stored here that were found damaged in this generation."""
    repaired: int = 0
    """Of these, how many are right again."""
