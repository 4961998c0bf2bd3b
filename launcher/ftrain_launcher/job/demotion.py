"""Pure: which snapshots are passed over because training went wrong after them (``--demote-after-nan``).

A loss that is not finite says that the state was poisoned some time before; that step's state is not captured, but
the newest snapshot may hold the poison already. So the job goes on from the one before. The daemons drop what is newer
than that as they do at every start; a node that did not hear of it may still come back with the demoted one, so it is
remembered here for as long as the incident is.

A state that could not be certified when another number of nodes was to go on from it (ftrain/reshard/certificate.py),
or that contradicts itself, is *doubtful*: nobody starts from it, even if there is nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ftrain_launcher.job.causes import NOT_CERTIFIED, Sign
from ftrain_snapshot.words import SnapshotId


class Demotion(msgspec.Struct, frozen=True):
    """The snapshots of ``generation``, and of older ones, from ``version`` on."""

    generation: int
    version: int
    doubtful: bool = False
    """They are never started from."""
    reason: str = ""
    """What is doubtful, as a rank said it."""

    def concerns(self, snapshot: SnapshotId) -> bool:
        """Whether this snapshot is one of them; the same step captured again later is another one."""
        return snapshot.generation <= self.generation and snapshot.version >= self.version


def demotion_of(signs: Iterable[Sign], generation: int) -> Demotion | None:
    """What the signs of an incident of ``generation`` demote; None: nothing.

    Of several ranks that name a version, the oldest counts: the newest that all of them have.
    """
    failures = [sign.failure for sign in signs if sign.failure is not None and sign.failure.not_finite]
    versions = [f.newest_version for f in failures if f.newest_version is not None]
    return Demotion(generation, min(versions)) if versions else None


def doubt_of(signs: Iterable[Sign], generation: int) -> Demotion | None:
    """What is doubtful after an incident of ``generation``; None: nothing."""
    found = [(sign.step, sign.reason) for sign in signs if sign.kind == NOT_CERTIFIED and sign.step is not None]
    if not found:
        return None
    version, reason = min(found)
    return Demotion(generation, version, doubtful=True, reason=reason)
