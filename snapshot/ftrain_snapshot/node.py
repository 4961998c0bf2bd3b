"""This node in one generation: what everything that protects, brings back or reads its snapshots works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Membership
from ftrain_snapshot.placement import Group
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import ToGate


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node, as a member of one generation. Made by its session, for all that it owns."""

    loop: Loop
    store: Store
    """What the node keeps."""
    membership: Membership
    group: Group
    """With whom its bytes are coded."""
    codec: Codec | None
    """None: there is no parity."""
    links: Mapping[int, Connection]
    """Who is connected now, by position."""
    tell_gate: Callable[[ToGate], None]
    """Lost if the gate is not connected."""
    hurry: Callable[[], None] = lambda: None
    """Somebody waits for what is done now (priority.py)."""
    begin_snapshot: Callable[[int], None] = lambda _version: None
    """One of this version is being captured here (priority.py)."""

    @property
    def position(self) -> int:
        """The node's place in the job."""
        return self.membership.position

    @property
    def linked(self) -> set[int]:
        """Members of its group that are connected now."""
        return set(self.links).intersection(self.group.members)
