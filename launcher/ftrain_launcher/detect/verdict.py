"""What the detector says: what is wrong, who is at fault, and why it thinks so."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """DESIGN 6."""

    CRASH = "crash"
    HANG = "hang"
    """A rank is not in communication, and others wait for it."""
    COMMUNICATION_HANG = "communication_hang"
    """All members have entered, none leaves."""
    MISMATCH = "mismatch"
    """Members entered different operations, sizes or types, or in different orders: a program error."""
    SLOW = "slow"
    """A rank is slow outside of communication."""
    COMMUNICATION_SLOW = "communication_slow"
    """A link, or all of a node's, is slow."""
    DIVERGENCE = "divergence"
    """Replicas that must be equal are not."""


class Wait(msgspec.Struct, frozen=True, array_like=True):
    """Rank ``waiter`` waits in an operation for the others."""

    waiter: int
    waited_for: tuple[int, ...]
    """The members that have not entered it; empty: all have."""
    communicator: str
    op: str
    seq: int
    seconds: float
    description: str = ""
    """The communicator's."""


class Link(msgspec.Struct, frozen=True, array_like=True):
    """A direction between two nodes, by position; -1: any."""

    source: int
    destination: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. It convicts nobody by itself: the policy decides what follows."""

    kind: Kind
    generation: int
    ranks: tuple[int, ...] = ()
    """Suspects, the likeliest first."""
    nodes: tuple[str, ...] = ()
    """Suspects, where a whole node is."""
    links: tuple[Link, ...] = ()
    confidence: float
    """0 to 1; below 0.5 it is a guess."""
    sentence: str
    """For people: who, what, since when, and what shows it."""
    waits: tuple[Wait, ...] = ()
    """The evidence: who waits for whom, at most ``WAITS_MAX``, the longest waiting first."""
    seconds: float = 0.0
    """How long it had lasted when it was found."""
    step: int | None = None
    allowed_seconds: float = 0.0
    """Of a hang, how long the others were to wait before it was one; 0: it was no matter of time."""
    details: dict[str, str] = {}
    """More evidence, by name: process state, figures, call sites."""


WAITS_MAX = 32
