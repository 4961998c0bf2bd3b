"""A generation in which this node has no position: others read what it holds of the snapshot that they start from.

Nothing is written and nothing is dropped here; the next generation in which the node has a position sees to that.
"""

from __future__ import annotations

from ftrain_snapshot.errors import PlacementImpossible, ProtocolError
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Membership
from ftrain_snapshot.old_world import OldWorld
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import OriginHello, PeerHello


class Guest:
    """The counterpart of a session, where there are no ranks."""

    def __init__(self, loop: Loop, store: Store, membership: Membership, lines: Lines) -> None:
        """Raises SnapshotError if there is nothing to be read here."""
        if membership.origin is None:
            raise PlacementImpossible("a node without a position is of use where others read an origin from it")
        self.membership = membership
        self._old_world = OldWorld(loop, store, membership, lines)

    def adopt(self, connection: Connection, hello: PeerHello | OriginHello) -> None:
        """Somebody has dialled. Raises ProtocolError if it is not a reader of what is here."""
        if not isinstance(hello, OriginHello):
            raise ProtocolError("this node has no position in this generation")
        self._old_world.adopt(connection, hello)

    def close(self) -> None:
        """The generation is over."""
        self._old_world.close()
