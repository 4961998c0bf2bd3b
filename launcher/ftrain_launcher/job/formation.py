"""Pure: which snapshot the next generation starts from, and what that costs.

The daemons of the nodes that are left have said what they hold. The newest snapshot that can be read or decoded
from it is the start, whatever world captured it (`worlds.py`), unless it is demoted and there is an older one. If
there is none, the job begins anew only where nothing that should have survived is missing: never silently from step 0
after a snapshot was protected (or, without parity, sealed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ftrain_launcher.job.demotion import Demotion
from ftrain_launcher.job.worlds import NOTHING, Held, Holdings
from ftrain_snapshot.holdings import explain, newest_complete
from ftrain_snapshot.placement import Groups
from ftrain_snapshot.status import Levels
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId


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
    sealed: Sequence[int] = ()
    """Of each position the newest version that its gate knows to be sealed there; empty: nobody knows."""
    judged: Start | None = None
    """What was found when all of them had answered, before one more was lost."""
    demotions: Sequence[Demotion] = ()
    """What is not to be started from, if there is anything else."""

    def is_demoted(self, snapshot: SnapshotId) -> bool:
        """Training went wrong after it."""
        return any(d.concerns(snapshot) for d in self.demotions)

    def is_doubtful(self, snapshot: SnapshotId) -> bool:
        """It could not be certified."""
        return any(d.doubtful and d.concerns(snapshot) for d in self.demotions)

    @property
    def doubted(self) -> Demotion | None:
        """The oldest version that could not be certified, and why; None: there is none."""
        return min((d for d in self.demotions if d.doubtful), key=lambda d: d.version, default=None)


class Start(msgspec.Struct, frozen=True):
    """Where the next generation starts."""

    restore: SnapshotId | None
    """The snapshot, of whatever world; None: at the beginning."""
    steps_lost: int
    """Sealed versions newer than that one."""
    levels: Levels = Levels()
    """Which levels are left once everything newer is dropped."""
    protected: bool = False
    """A snapshot was protected, now or before."""
    demoted: int | None = None
    """The newest version that could have been the start, and is passed over."""
    only_demoted: bool = False
    """The start is demoted, but there is no older one."""
    doubtful: int | None = None
    """The newest version that could have been the start, and could not be certified."""
    older: SnapshotId | None = None
    """The next older one that could be started from; None: there is none."""
    durable: DurableId | None = None
    """The start is on storage, since there is none in memory."""
    undecided: bool = False
    """There is none in memory, and it is not known yet what is on storage."""
    newest_known: int | None = None
    """If memory is lost: the newest version that anybody had sealed."""
    lost: str = ""
    """Why there is no start at all: what was lost, and with which nodes it would be complete. Empty: there is one."""

    @property
    def version(self) -> int | None:
        """The step after which the job goes on; None: it begins anew."""
        if self.restore is not None:
            return self.restore.version
        return None if self.durable is None else self.durable.step

    def is_of_other_ranks(self, ranks: int) -> bool:
        """Whether the start is on storage, and as many ranks did not write it."""
        return self.durable is not None and self.durable.ranks not in (0, ranks)

    @property
    def note(self) -> str:
        """What people should know of it, to be added to a line; mostly empty."""
        if self.durable is not None:
            return f", from {self.durable.path}"
        if self.doubtful is not None:
            return f" (that of step {self.doubtful} could not be certified)"
        if self.demoted is not None:
            return f" (that of step {self.demoted} is demoted: the loss was not finite after it)"
        return " (the loss was not finite after it, but there is no older snapshot)" if self.only_demoted else ""


def choose_start(past: Past, held: Sequence[Held]) -> Start:
    """The newest complete snapshot that is not demoted, the newest, the beginning, or the reason why none will do.

    Never one that is doubtful, nor the beginning after one.

    ``held``: what is left of each world's snapshots, that of the past generation last; empty: none was formed yet.
    """
    every = _newest(held)
    held = _without(held, past.is_doubtful)
    newest = _newest(held)
    restore = _newest(_without(held, past.is_demoted)) or newest
    world, holdings = held[-1] if held else (NOTHING, {})
    groups, parity = world.groups, world.parity
    if restore is None and past.doubted is not None:
        why = f" ({past.doubted.reason})" if past.doubted.reason else ""
        lost = f"the state of step {past.doubted.version} could not be certified, and no older one is in memory{why}."
        return Start(None, 0, newest_known=_newest_known(past, held), lost=lost)
    if restore is None and _something_is_missing(past, holdings, groups, parity):
        return Start(None, 0, newest_known=_newest_known(past, held), lost=_explain(past, held))
    return Start(
        restore,
        _count_lost(past, holdings, restore),
        _levels_after(past.levels, restore),
        past.protected or past.levels.protected is not None or bool(_kept_by_survivors(past, holdings, groups, parity)),
        demoted=newest.version if newest is not None and newest != restore else None,
        only_demoted=restore is not None and past.is_demoted(restore),
        doubtful=every.version if every is not None and every != newest else None,
        older=None if restore is None else _newest(_without(held, lambda s: s >= restore or past.is_demoted(s))),
    )


def _newest(held: Sequence[Held]) -> SnapshotId | None:
    complete = (newest_complete(holdings, world.groups, world.parity) for world, holdings in held)
    return max((snapshot for snapshot in complete if snapshot is not None), default=None)


def _without(held: Sequence[Held], is_out: Callable[[SnapshotId], bool]) -> list[Held]:
    return [
        Held(world, {p: [h for h in shares if not is_out(h.snapshot)] for p, shares in holdings.items()})
        for world, holdings in held
    ]


def _something_is_missing(past: Past, holdings: Holdings, groups: Groups, parity: int) -> bool:
    """Was there a snapshot that should have survived? If not, at most the one in flight is lost by beginning anew."""
    if past.judged is not None and past.judged.restore is None:
        return bool(past.judged.lost)
    if past.protected or past.levels.protected is not None:
        return True
    if parity == 0 and (past.restore is not None or past.levels.sealed is not None):
        return True
    if not any(p in past.survivors for p in holdings):
        return past.generation > 0  # Nobody is left to say what there was.
    holders = sum(bool(holdings[p]) for p in past.survivors if p in holdings)
    return holders < len(past.nodes) and bool(_kept_by_survivors(past, holdings, groups, parity))


def _newest_known(past: Past, held: Sequence[Held]) -> int | None:
    """The newest version that anybody who is left, or was when the others were asked last, knows to be sealed."""
    shares = (share for _, holdings in held for shares in holdings.values() for share in shares)
    known = [share.snapshot.version for share in shares if share.data]
    before = past.judged.newest_known if past.judged is not None else None
    levels = past.levels.sealed
    return max([*known, *(v for v in (before, levels) if v is not None)], default=None)


def _kept_by_survivors(past: Past, holdings: Holdings, groups: Groups, parity: int) -> set[SnapshotId]:
    """What every survivor holds with its parity was as good as protected: only losing too many could undo it.

    A survivor that holds nothing has lost its memory, if another one of its group has parity, made of all their chunks.
    """
    kept = []
    for group in groups:
        survivors = [holdings[p] for p in group if p in past.survivors and p in holdings]
        witnesses = [held for held in survivors if held] or survivors[:1]
        kept += [{h.snapshot for h in held if h.data and (h.parity or not parity)} for held in witnesses]
    return set.intersection(*kept) if kept else set()


def _count_lost(past: Past, holdings: Holdings, restore: SnapshotId | None) -> int:
    """Sealed versions newer than the start.

    What all survivors have sealed counts as sealed if the lost had said so, too; where their gate is lost, nobody knows
    that: rather one too many. What is newer than the past generation's own start and older than itself was counted when
    that one was formed.
    """
    survivors = [holdings[p] for p in past.survivors if p in holdings]
    if not survivors and past.judged is not None:
        return past.judged.steps_lost
    lost = set()
    if survivors:
        sealed = set.intersection(*({h.snapshot for h in held if h.data} for held in survivors))
        if len(survivors) == len(past.nodes):
            sealed = {s for s in sealed if past.is_demoted(s)}
        gone = [newest for p, newest in enumerate(past.sealed) if p not in past.survivors]
        sealed = {s for s in sealed if all(newest >= s.version for newest in gone)}
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


def _explain(past: Past, held: Sequence[Held]) -> str:
    """Of a world that has captured nothing yet: why it cannot read what it started from, which another one captured."""
    left = [of for of in held if any(of.holdings.values())] or list(held[-1:]) or [Held(NOTHING, {})]
    world, holdings = left[-1]
    gone = [f"{name} (position {p})" for p, name in enumerate(past.nodes) if p not in past.survivors]
    sealed = "" if past.levels.sealed is None else f" (step {past.levels.sealed} had been sealed, maybe later ones)"
    nodes = f" Lost: {', '.join(gone)}." if gone else ""
    # The promise was about what was protected: that is what people want to know of.
    is_own = world == held[-1].world if held else True
    best = max(_kept_by_survivors(past, holdings, world.groups, world.parity), default=None) if is_own else None
    text = explain(holdings, world.groups, world.parity, best)
    of_another = "" if is_own else f" It started from what {world.nodes} nodes captured, by their positions:"
    return f"the job's state is lost{sealed}: no complete snapshot is left.{nodes}{of_another} {text}"
