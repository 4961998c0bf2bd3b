"""Pure: ranks that did not enter the same operations in the same order: an error of the program.

Three things show it. Members entered different operations at the same number of a communicator. Ranks wait for each
other in a circle, and nobody computes. And *counts*: ranks of one role go through the same program, so of two of them
one is ahead in all its communicators or in none; who is ahead of most in one and behind in another has skipped an
operation or called it out of order (FACTS 10 compares whole records; counts need no more than a report). Where neither
names anybody, since there is no majority or nobody else of that role, a rank's own earlier steps may: who departed from
them (`rings.program_order`), and is one of those who do not agree, is the one.

Confidence: 0.95 a minority against a majority; 0.9 different operations without one; 0.85 a circle in which counts name
somebody, 0.8 one in which earlier steps do, else 0.6; 0.4 where the difference may be legal (uneven parts).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from ftrain_launcher.detect.beside import is_beside
from ftrain_launcher.detect.look import look
from ftrain_launcher.detect.records import NO_DTYPE, Channel, Communicator, NodeReport, Op, Operation, RankRecord
from ftrain_launcher.detect.waits import Graph, Group, Standing, recent_of

UNEVEN = frozenset((Op.ALL_TO_ALL, Op.ALL_TO_ALL_SINGLE, Op.GATHER, Op.SCATTER, Op.BARRIER, Op.MONITORED_BARRIER))
"""Members may count different elements."""
PERHAPS_UNEVEN = frozenset((Op.ALL_GATHER, Op.REDUCE_SCATTER))
"""Some backends take lists of uneven parts."""
SOME_MAX = 64
"""So many different states of one role are compared with each other."""
ROLE_MIN = 3
"""Of fewer ranks each contradicts the other."""

_OTHERS, _ITSELF = "the order of the others", "the order of earlier steps"

Signature = tuple[int, int, int, int]
"""Op, dtype, elements, root; what may differ is 0."""
Role = tuple[tuple[int, ...], ...]
Counts = tuple[int, tuple[int, ...]]
"""The place of the communicator that a rank used last, or what of transfers, and how much it has entered in each."""
_SENDING, _RECEIVING = -1, -2


@dataclass(slots=True)
class Difference:
    """Members entered different operations at one number of a communicator."""

    group: Group
    seq: int
    calls: list[tuple[tuple[int, ...], Operation]]
    """Who called what, the fewest first."""
    legal: bool
    """It may be."""

    departed: frozenset[int] = frozenset()
    """Where no side has a majority: those who differ from what other groups of this size did, or this one before."""

    @property
    def majority(self) -> bool:
        """More than half of the members called the same."""
        return 2 * len(self.calls[-1][0]) > sum(len(ranks) for ranks, _ in self.calls)

    @property
    def suspects(self) -> tuple[int, ...]:
        """The minority, or all where there is no majority."""
        blamed = {rank for ranks, _ in (self.calls[:-1] if self.majority else self.calls) for rank in ranks}
        return tuple(sorted(blamed & self.departed or blamed))

    @property
    def confidence(self) -> float:
        """As the module says."""
        if self.legal:
            return 0.4
        return 0.95 if self.majority or self.departed else 0.9


@dataclass(slots=True)
class Circle:
    """Ranks that wait for each other, and nobody computes."""

    ranks: tuple[int, ...]
    suspects: tuple[int, ...]
    departed: str = ""
    """From what the suspects departed, which the others did not; empty: that cannot be told."""

    @property
    def confidence(self) -> float:
        """As the module says."""
        return {_OTHERS: 0.85, _ITSELF: 0.8}.get(self.departed, 0.6)


def signature(operation: Operation) -> Signature:
    """What must be equal at all members."""
    dtype = 0 if operation.dtype == NO_DTYPE else operation.dtype + 1
    return operation.op, dtype, 0 if operation.op in UNEVEN else operation.elements, operation.root


def differing(group: Group, seq: int, entered: Mapping[int, Operation]) -> Difference | None:
    """Compare what the members entered at one number; None: nothing differs that must not."""
    calls: dict[Signature, list[int]] = defaultdict(list)
    for rank, operation in entered.items():
        calls[signature(operation)].append(rank)
    if len(calls) < 2:
        return None
    sides = sorted(calls.values(), key=lambda ranks: (len(ranks), min(ranks)))
    kinds = {(op, dtype, root) for op, dtype, _, root in calls}
    legal = len(kinds) == 1 and next(iter(kinds))[0] in PERHAPS_UNEVEN
    return Difference(group, seq, [(tuple(sorted(ranks)), entered[ranks[0]]) for ranks in sides], legal)


def in_group(group: Group, seqs: Collection[int] | None = None) -> Difference | None:
    """Compare what the members of a communicator entered at some numbers, or at all that are known; the first."""
    entered: dict[int, dict[int, Operation]] = defaultdict(dict)
    for rank, operation in group.operations():
        if seqs is None or operation.seq in seqs:
            entered[operation.seq][rank] = operation
    for seq in sorted(entered):
        if (found := differing(group, seq, entered[seq])) is not None:
            return found
    return None


def settle(graph: Graph, found: Difference) -> Difference:
    """Where two sides are even, ask what other groups did at this number, what this one did there in the round before,
    and who departed from its role's counts, or from its own earlier steps."""
    if found.majority:
        return found
    votes = Counter(
        signature(operation)[:3]
        for group in graph.groups.values()
        if len(group.members) == len(found.group.members) and group.members != found.group.members
        for operation in dict(operation for operation in group.operations() if operation[1].seq == found.seq).values()
    )
    sides = [(signature(call)[:3], ranks) for ranks, call in found.calls]
    right = [side for side, _ in sides if 2 * votes[side] > votes.total()]
    if not right and (expected := _expected(found)) is not None:
        right = [side for side, _ in sides if side == expected]
    if right:
        found.departed = frozenset(rank for side, ranks in sides if side not in right for rank in ranks)
    else:
        blamed = {rank for ranks, _ in found.calls for rank in ranks}
        departed = _departed(graph, blamed) & blamed
        if not departed or departed == blamed:
            departed = _departed_from_itself(graph, blamed)
        found.departed = frozenset(departed)
    return found


def _expected(found: Difference) -> tuple[int, int, int] | None:
    """What was called at this place in the round before, if the operations that are known repeat themselves.

    All the same operation is no round: another one may be about to follow.
    """
    known = {operation.seq: signature(operation)[:3] for _, operation in found.group.operations()}
    before = list(takewhile(lambda call: call is not None, map(known.get, range(found.seq - 1, -1, -1))))
    if len(set(before)) < 2:
        return None
    repeats = (n for n in range(2, len(before)) if all(a == b for a, b in zip(before, before[n:], strict=False)))
    period = next(repeats, None)
    return None if period is None else before[period - 1]


def find(reports: Iterable[NodeReport]) -> list[Difference]:
    """What differs in the newest reports of some nodes, surest first; also when nothing is pending any more.

    For when a worker has raised an error of communication: gloo raises within milliseconds where sizes differ.
    """
    standings = {
        record.rank: Standing(record, report.communicators, report.node, 0.0, 0.0, recent_of(record))
        for report in reports
        for record in report.ranks
    }
    return everywhere(look(standings, set()))


def everywhere(graph: Graph) -> list[Difference]:
    """What differs in any communicator, surest first."""
    compared = (in_group(group) for group in graph.groups.values())
    found = [settle(graph, difference) for difference in compared if difference is not None]
    return sorted(found, key=lambda difference: -difference.confidence)


def circle(graph: Graph, longest: int) -> Circle | None:
    """The circle of waits that the rank ``longest`` ends up in; None: it does not."""
    walked: dict[int, int] = {}
    rank = longest
    while rank not in walked:
        walked[rank] = len(walked)
        gates = graph.waiting.get(rank)
        if not gates:
            return None
        # Who lacks and waits itself; the one furthest behind stands for the others.
        gate = gates[0]
        rank = next((other for other in gate.lacking() if other in graph.waiting and other != rank), -1)
        if rank < 0 or is_beside(graph, rank, gate):
            return None
    ranks = tuple(sorted(other for other, place in walked.items() if place >= walked[rank]))
    departed = _departed(graph, ranks)
    waited_for = {other for other in departed if _is_waited_for(graph, other)}
    strayed = _departed_from_itself(graph, waited_for or ranks)
    if strayed:
        return Circle(ranks, tuple(sorted(strayed)), _ITSELF)
    if not waited_for or waited_for >= set(ranks):
        return Circle(ranks, ranks)  # each of two contradicts the other
    return Circle(ranks, tuple(sorted(waited_for)), _OTHERS)


def _departed_from_itself(graph: Graph, ranks: Collection[int]) -> set[int]:
    """Those of some ranks whose newest step took another course than their earlier ones, if the others' did not.

    In its operations; if nobody's did, in their sizes.
    """
    kinds, sizes = set[int](), set[int]()
    for rank in ranks:
        departure = graph.standings[rank].record.departure if rank in graph.standings else None
        if departure is not None:
            called, usual = departure.called, departure.usual
            only_size = called is not None and usual is not None and called.kind == usual.kind
            (sizes if only_size else kinds).add(rank)
    found = kinds or sizes
    return found if len(found) < len(ranks) else set()


def _is_waited_for(graph: Graph, rank: int) -> bool:
    for group in graph.groups.values():
        at = group.at.get(rank)
        if group.gates and rank in group.members and max(group.gates) > (0 if at is None else at.entered):
            return True
    return any(gate.peer == rank for gate in graph.gates)


def _departed(graph: Graph, suspects: Collection[int]) -> set[int]:
    """The ranks whose counts contradict most others of their role; if these are too few to say, of all.

    Where most others have gone on to where they wait for all, nothing contradicts them: then those of the suspects' own
    communicators are asked, who are held up with them.
    """
    if found := _contradicting(graph, graph.standings):
        return found
    near = [group.members for group in graph.groups.values() if not group.at.keys().isdisjoint(suspects)]
    near = [members for members in near if ROLE_MIN <= len(members) < len(graph.standings)]
    votes = (_contradicting(graph, members, least=ROLE_MIN) & set(suspects) for members in sorted(near, key=len))
    return next(filter(None, votes), set())


def _contradicting(graph: Graph, ranks: Iterable[int], least: int = 1) -> set[int]:
    """Those of some ranks that most others of their role contradict; ``least``: so many must have it."""
    roles: dict[Role, dict[Counts, list[int]]] = defaultdict(lambda: defaultdict(list))
    sizes: dict[Role, dict[Counts, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank in ranks:
        standing = graph.standings.get(rank)
        if standing is not None and rank not in graph.unknown and standing.record.collectives:
            role, counts = _counts(standing.record, standing.communicators)
            roles[role][counts].append(rank)
            # Stages of a pipeline differ in their transfers; their collectives are the same.
            sizes[role[:1]][max(_SENDING, counts[0]), counts[1][:-2]].append(rank)
    by_role = {rank for states in roles.values() for rank in _outvoted(states, least)}
    alike = {rank for states in sizes.values() for rank in _outvoted(states, least)}
    return by_role & alike or by_role or alike


def _outvoted(states: Mapping[Counts, list[int]], least: int) -> list[int]:
    """The ranks that more than half of the others contradict; of very many states, of those that are most common."""
    some = Counter({state: len(ranks) for state, ranks in states.items()}).most_common(SOME_MAX)
    total, known = sum(many for _, many in some), {state for state, _ in some}
    outvoted: list[int] = []
    if total < least:
        return outvoted
    for state, ranks in states.items():
        others = total - (state in known)
        against, left = 0, total
        for other, many in some:
            # A job of many ranks has thousands of states: most are settled by the first few.
            if 2 * against > others or 2 * (against + left) <= others:
                break
            against += many if _contradict(state, other) else 0
            left -= many
        if 2 * against > others:
            outvoted += ranks
    return outvoted


def _counts(record: RankRecord, communicators: tuple[Communicator, ...]) -> tuple[Role, Counts]:
    """A rank's role, in which of its communicators it entered something last, and how much it has entered in each."""
    places = record.collectives
    role = (
        tuple(len(communicators[place.communicator].members) for place in places),
        tuple(sorted({_position(record.rank, communicators[channel.communicator]) for channel in record.channels})),
    )
    sent, received = _sums(record.channels)
    ages = [place.last.age_seconds if place.last is not None else float("inf") for place in places]
    newest = min(range(len(places)), key=ages.__getitem__)
    pending = [operation for channel in record.channels for operation in channel.pending]
    last = min(pending, key=lambda operation: operation.age_seconds, default=None)
    if last is not None and last.age_seconds < ages[newest]:
        newest = _SENDING if last.op == Op.SEND else _RECEIVING
    return role, (newest, (*(place.entered for place in places), record.step, sent, received))


def _position(rank: int, communicator: Communicator) -> int:
    members = communicator.members
    near = bisect_left(members, rank)  # they are nearly always in order, and tens of thousands
    if near < len(members) and members[near] == rank:
        return near
    return members.index(rank) if rank in members else -1


def _sums(channels: tuple[Channel, ...]) -> tuple[int, int]:
    return sum(channel.sends_entered for channel in channels), sum(channel.receives_entered for channel in channels)


def _contradict(one: Counts, other: Counts) -> bool:
    """Whether two ranks cannot both have gone through the same program."""
    (newest, mine), (newest_there, theirs) = one, other
    if mine == theirs:
        return False
    if newest == newest_there != _SENDING and mine[_place(newest)] == theirs[_place(newest)]:
        return True  # at the same place, with something more or less behind them
    ahead = any(a > b for a, b in zip(mine, theirs, strict=True))
    return ahead and any(a < b for a, b in zip(mine, theirs, strict=True))


def _place(newest: int) -> int:
    """Where the counts tell of what a rank used last."""
    return -1 if newest == _RECEIVING else newest
