"""Pure: which snapshot the next generation starts from, and what that costs.

The daemons of the nodes that are left have said what they hold. The newest snapshot that can be read or decoded
from it is the start. If there is none, the job begins anew only where nothing that should have survived is
missing: never silently from step 0 after a snapshot was protected (or, without parity, sealed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ftrain_snapshot.ledger import explain, newest_complete
from ftrain_snapshot.messages import Holding, Levels, SnapshotId
from ftrain_snapshot.placement import Groups

Holdings = Mapping[int, Sequence[Holding]]
"""What the node at each position says that it holds; positions without a node are left out."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """The newest generation that ran, as far as it matters for the next one."""

    generation: int
    """Its number; 0: none ran yet."""
    restore: SnapshotId | None
    """What it started from."""
    levels: Levels
    """What its gate reported last."""
    protected: bool
    """A snapshot that it could start from was protected."""
    nodes: Sequence[str]
    """The nodes that ran it, in order of position; empty: none did."""
    survivors: frozenset[int]
    """The positions whose node is still there."""
    judged: Start | None = None
    """What was found when all of them had answered, before one more was lost."""


class Start(msgspec.Struct, frozen=True):
    """Where the next generation starts."""

    restore: SnapshotId | None
    """None: at the beginning."""
    steps_lost: int
    """Sealed versions newer than that one."""
    levels: Levels = Levels()
    """Which levels are left once everything newer is dropped."""
    protected: bool = False
    """A snapshot was protected, now or before."""
    lost: str = ""
    """Why there is no start at all: what was lost, and with which nodes it would be complete. Empty: there is one."""


def choose_start(past: Past, holdings: Holdings, *, groups: Groups, parity: int) -> Start:
    """The newest complete snapshot, the beginning, or the reason why neither will do."""
    restore = newest_complete(holdings, groups, parity)
    if restore is None and _something_is_missing(past, holdings, parity):
        return Start(None, 0, lost=_explain(past, holdings, groups, parity))
    return Start(
        restore,
        _count_lost(past, holdings, restore),
        _levels_after(past.levels, restore),
        past.protected or past.levels.protected is not None or bool(_kept_by_survivors(past, holdings, parity)),
    )


def _something_is_missing(past: Past, holdings: Holdings, parity: int) -> bool:
    """Was there a snapshot that should have survived? If not, at most the one in flight is lost by beginning anew."""
    if past.judged is not None and past.judged.restore is None:
        return False
    if past.protected or past.levels.protected is not None:
        return True
    if parity == 0 and (past.restore is not None or past.levels.sealed is not None):
        return True
    survivors = sum(p in past.survivors for p in holdings)
    if not survivors:
        return past.generation > 0  # Nobody is left to say what there was.
    return survivors < len(past.nodes) and bool(_kept_by_survivors(past, holdings, parity))


def _kept_by_survivors(past: Past, holdings: Holdings, parity: int) -> set[SnapshotId]:
    """What every survivor holds with its parity was as good as protected: only losing too many could undo it."""
    survivors = [holdings[p] for p in past.survivors if p in holdings]
    kept = [{h.snapshot for h in held if h.data and (h.parity or not parity)} for held in survivors]
    return set.intersection(*kept) if kept else set()


def _count_lost(past: Past, holdings: Holdings, restore: SnapshotId | None) -> int:
    """Sealed versions newer than the start.

    What all survivors have sealed counts as sealed, since of a lost node nobody knows: rather one too many. What is
    newer than the past generation's own start and older than itself was counted when that one was formed.
    """
    survivors = [holdings[p] for p in past.survivors if p in holdings]
    if not survivors and past.judged is not None:
        return past.judged.steps_lost
    lost = set()
    if survivors and len(survivors) < len(past.nodes):
        sealed = set.intersection(*({h.snapshot for h in held if h.data} for held in survivors))
        lost = {s.version for s in sealed if _is_newer(s, restore) and _was_its(past, s)}
    if past.levels.sealed is not None and (restore is None or past.levels.sealed > restore.version):
        lost.add(past.levels.sealed)
    return len(lost)


def _is_newer(snapshot: SnapshotId, start: SnapshotId | None) -> bool:
    return start is None or snapshot.version > start.version


def _was_its(past: Past, snapshot: SnapshotId) -> bool:
    """Was this a snapshot that the past generation made or could start from?"""
    return snapshot.generation == past.generation or (past.restore is not None and snapshot <= past.restore)


def _levels_after(levels: Levels, restore: SnapshotId | None) -> Levels:
    if restore is None:
        return Levels()
    protected = None if levels.protected is None else min(levels.protected, restore.version)
    return Levels(sealed=restore.version, protected=protected)


def _explain(past: Past, holdings: Holdings, groups: Groups, parity: int) -> str:
    gone = [f"{name} (position {p})" for p, name in enumerate(past.nodes) if p not in past.survivors]
    sealed = "" if past.levels.sealed is None else f" (step {past.levels.sealed} was sealed)"
    nodes = f" Lost: {', '.join(gone)}." if gone else ""
    # The promise was about what was protected: that is what people want to know of.
    best = max(_kept_by_survivors(past, holdings, parity), default=None)
    text = explain(holdings, groups, parity, best)
    return f"the job's state is lost{sealed}: no complete snapshot is left.{nodes} {text}"
