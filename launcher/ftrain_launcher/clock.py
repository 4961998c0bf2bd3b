"""Pure: how far a peer's clock is from one's own, from questions that it answered with its reading.

As in NTP (RFC 5905, 8): its reading was taken somewhere between question and answer, in the middle as a guess, so
half the round trip bounds the error. Of several samples the one with the least round trip is taken: what makes a round
trip long is waiting, on one side more than on the other. The clocks need not count from the same beginning.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class Sample(NamedTuple):
    """One question and its answer."""

    asked_seconds: float
    """On one's own clock."""
    theirs_seconds: float
    """What the peer read on its clock."""
    heard_seconds: float
    """When the answer was there, on one's own clock."""

    @property
    def round_trip_seconds(self) -> float:
        """From the question to its answer."""
        return self.heard_seconds - self.asked_seconds


class Offset(msgspec.Struct, frozen=True):
    """Add ``seconds`` to a peer's reading to have one's own."""

    seconds: float
    error_seconds: float
    """At most so wrong."""


def estimate(samples: Iterable[Sample]) -> Offset | None:
    """The offset of the peer that answered these; None: it answered none."""
    best = min(samples, key=lambda sample: sample.round_trip_seconds, default=None)
    if best is None:
        return None
    middle = (best.asked_seconds + best.heard_seconds) / 2
    return Offset(middle - best.theirs_seconds, best.round_trip_seconds / 2)
