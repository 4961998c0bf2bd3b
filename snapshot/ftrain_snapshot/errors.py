"""All errors of the snapshot tier, one tree.

SnapshotError
├── ArenaTooSmall          the node's shared memory cannot hold the job's snapshots
├── SnapshotIncomplete     this snapshot is not (or not wholly) there, and cannot be rebuilt
├── ChecksumMismatch       bytes are there, but they are not the bytes that were written
├── PlacementImpossible    the nodes, or their failure domains, cannot carry that much parity
├── CodecUnsupported       the codec that is asked for is not here, or computes no such parity
├── StorageError           the durable tier's storage cannot be used, or refused (storage.py)
├── ProtocolError          a peer or client sent something that does not belong on this line
└── DaemonLost             the node's snapshot daemon does not answer
"""

from __future__ import annotations


class SnapshotError(Exception):
    """Base of all errors of this package."""


class ArenaTooSmall(SnapshotError):
    """The arena's file system cannot hold three slots and their parity: give it more, or choose another."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(
            f"the snapshot arena needs {needed_bytes:,} bytes of shared memory on this node, and "
            f"{available_bytes:,} are available: enlarge /dev/shm or choose another folder (--arena-dir)"
        )
        self.needed_bytes = needed_bytes
        """What this node's lanes, asked for so far, need in all."""
        self.available_bytes = available_bytes
        """What they have already plus what is free."""


class SnapshotIncomplete(SnapshotError):
    """The bytes of the snapshot are not here and cannot be rebuilt; the message says what is missing."""


class ChecksumMismatch(SnapshotError):
    """Bytes differ from those that were sealed; they are never handed out."""


class PlacementImpossible(SnapshotError, ValueError):
    """These nodes, failure domains or groups cannot carry that much parity; the message says what would be possible."""


class CodecUnsupported(SnapshotError, ValueError):
    """The codec that is asked for is not known, not installed, or computes no such parity; says which there are."""


class ProtocolError(SnapshotError):
    """A frame is too long, cannot be decoded, or does not belong here. The connection is closed."""


class DaemonLost(SnapshotError, ConnectionError):
    """The snapshot daemon of this node closed the line or does not listen. Its agent restarts it."""
