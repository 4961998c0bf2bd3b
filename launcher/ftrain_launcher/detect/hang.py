"""Pure: who keeps the others waiting, and operations that all have entered and none leaves.

A root of the graph is a suspect when it is late compared with its peers: those who wait for it have waited longer than
their operation is allowed, and it has itself entered nothing for that long, for as long as they were outside before
they came, and for as long as the last of them was. A long checkpoint or compilation that all go through makes nobody
late. Where they are outside for so long in each step (it takes seconds, or they average now and then), how long they
usually wait tells enough. Who is stopped or gone needs no comparison.

Confidence: 0.99 stopped or gone; 0.9 a root, alone; 0.8 one of several; 0.6 a rank that computes with an operation
pending, by its processor time, or of which another thread has entered that; 0.45 the same by the order of its entries
alone; each 0.8 times that where nothing is known of some who may lack as well. A communication hang has 0.6: links and
nodes are suspects until probes decide.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median, median_high

from ftrain_launcher.detect.beside import idle_at
from ftrain_launcher.detect.look import COMMITTER
from ftrain_launcher.detect.patience import Patience, Waiting, waiting_in
from ftrain_launcher.detect.records import Communicator, Op, Operation
from ftrain_launcher.detect.timeouts import (
    COMPUTING_SECONDS,
    FIRST_SECONDS,
    HALTED_SECONDS,
    PEERS_FACTOR,
    PEERS_MARGIN_SECONDS,
    PEERS_UNUSUAL,
    allowed_seconds,
)
from ftrain_launcher.detect.waits import PAUSE_SECONDS_MAX, SAMPLE, Gate, Graph, Group, Standing

REPORT_SECONDS = 0.5
"""Between an agent's reports: for so long after one, what was pending is taken to be so still."""
NOTED_SECONDS = 0.25
"""After the work that it does between operations: by then a rank's ring says if it waits for something outside of them,
for rank 0's word or for memory (`ftrain.slots`). A report from before that does not show that it waits for nobody, and
the one that does may not have come: of a link that is cut its last reports are heard."""
STARVED_SECONDS_MAX = 10.0
"""So long may a rank be late because it waits for a processor: one that loops on a crowded machine does so, too."""


@dataclass(slots=True)
class Late:
    """A rank that keeps others waiting at a gate."""

    rank: int
    gate: Gate
    seconds: float
    confidence: float


@dataclass(slots=True)
class Stuck:
    """An operation that all members have entered and that goes on for too long."""

    communicator: Communicator
    operation: Operation
    members: tuple[int, ...]
    inside: tuple[int, ...]
    """Who has not left it."""
    seconds: float
    """Since the last of them entered."""


@dataclass(slots=True)
class Judge:
    """Looks at one graph at one moment."""

    graph: Graph
    now: float
    patience: Patience = field(default_factory=Patience)
    _some: list[Standing] = field(init=False)
    """Ranks that show what is usual."""
    _waited: dict[Gate, float] = field(default_factory=dict)
    _allowed: dict[Gate, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        everybody = list(self.graph.standings.values())
        self._some = everybody[:: max(1, len(everybody) // SAMPLE)]

    def age(self, rank: int, operation: Operation) -> float:
        """How long a rank has been in an operation, by now."""
        return operation.age_seconds + min(self.now - self.graph.standings[rank].taken, REPORT_SECONDS)

    def waited(self, gate: Gate) -> float:
        """How long the longest of its waiters that is able to go on has waited; 0: none is."""
        if gate not in self._waited:
            standings = self.graph.standings
            alive = ((rank, operation) for rank, operation in gate.waiters if not standings[rank].stands)
            self._waited[gate] = max((self.age(rank, operation) for rank, operation in alive), default=0.0)
        return self._waited[gate]

    def allowed(self, gate: Gate) -> float:
        """How long a gate's waiters may wait."""
        if gate not in self._allowed:
            self._allowed[gate] = median_high(allowed_seconds(operation) for _, operation in gate.sample())
        return self._allowed[gate]

    def overdue(self) -> list[Gate]:
        """The gates whose waiters have waited for too long, the longest first."""
        gates = [gate for gate in self.graph.gates if self.waited(gate) >= self.allowed(gate)]
        return sorted(gates, key=self.waited, reverse=True)

    def hung(self) -> list[Late]:
        """The roots that are late, the one that others have waited for longest first."""
        late = [*self._late(), *self._halted_inside()]
        standings = self.graph.standings
        late = self._without_sleepers(late)
        for found in late:
            if len(late) > 1 and not standings[found.rank].halted:
                found.confidence = min(found.confidence, 0.8)
            if found.gate.unknown:
                found.confidence *= 0.8
        return sorted(late, key=lambda found: (-found.confidence, -found.seconds, found.rank))

    def _without_sleepers(self, late: list[Late]) -> list[Late]:
        """Who sleeps may wait for one that is stopped, in the store or for a file, which nobody records; at the end of
        a step, where rank 0 is outside of all operations, also for one that computes."""
        standings = self.graph.standings
        stopped = {found.rank for found in late if standings[found.rank].halted}
        at_commit = all(found.gate.waiters[0][1].op == Op.COMMIT for found in late)
        awake = {rank for rank in self.graph.accused if standings[rank].halted or standings[rank].computes} | stopped
        is_why = awake and (at_commit or stopped)
        return [found for found in late if found.rank in awake] if is_why else late

    def stuck(self) -> list[Stuck]:
        """Operations that all have entered and that have lasted too long since the last did, the oldest first."""
        found = [*self._stuck_collectives(), *self._stuck_transfers()]
        return sorted(found, key=lambda stuck: -stuck.seconds)

    def _late(self) -> list[Late]:
        idle = sorted(
            standing.idle_seconds
            for rank, standing in self.graph.known()
            if rank in self.graph.accused or (rank not in self.graph.waiting and rank not in self.graph.held)
        )
        most = (len(self.graph.standings) - len(self.graph.unknown & self.graph.standings.keys())) / 2
        found = []
        for rank, gates in self.graph.accused.items():
            standing = self.graph.standings[rank]
            # Most stall together: the few that do not are early, not the others late.
            crowd = len(idle) - bisect_left(idle, standing.idle_seconds / 2) > most
            for gate in sorted(gates, key=self.waited, reverse=True):
                if self.is_late(standing, gate, FIRST_SECONDS if crowd else 0.0):
                    found.append(Late(rank, gate, self.waited(gate), 0.99 if standing.halted else 0.9))
                    break
        return found

    def is_late(self, standing: Standing, gate: Gate, least: float = 0.0) -> bool:
        """Whether a rank keeps a gate's waiters for longer than it may."""
        waited, at_commit = self.waited(gate), gate.waiters[0][1].op == Op.COMMIT
        if standing.halted and not (at_commit and standing.record.ended):
            return waited >= HALTED_SECONDS and self._alone(standing, (rank for rank, _ in gate.waiters))
        # Who has ended has given its word, which its waiter may have yet to read.
        allowed, _ = self.given(standing, gate, least)
        unseen = self.now - standing.taken
        # Where it is the only root, others that still wait later show that it has not come since its report. What
        # nobody has seen is not known: it may have come, and the report that says so is on its way.
        later = max(self.graph.standings[rank].taken for rank, _ in gate.sample()) - standing.taken
        known = max(0.0, min(REPORT_SECONDS, later)) if gate.roots == 1 else 0.0
        share, unmoved = starved_share(standing), idle_at(self.graph, standing.record.rank, gate)
        # What has passed since its report is taken to be as what had passed before, also if it runs: it may loop, but
        # who merely waits its turn on a crowded machine runs just so.
        idle = (unmoved + known) * (1.0 - share)
        # Cheap questions first: this is asked of every rank that computes while others wait.
        if min(waited, waited - unseen + known, idle) < allowed:
            return False
        gap, longest = self._gaps(gate, standing)
        return idle >= allowed + self._with_peers(gap, longest, gate, allowed) and unmoved >= NOTED_SECONDS + gap

    def _alone(self, halted: Standing, others: Iterable[int]) -> bool:
        """Whether one who is stopped is so while some of these go on, or have ended: who suspends a session stops one
        after the other, and not all reports of it have come."""
        since = halted.stopped_since
        if halted.gone or since is None:
            return True
        standings = (self.graph.standings[rank] for rank in others if rank in self.graph.standings)
        return any(one.gone or (not one.stands and one.taken >= since + PAUSE_SECONDS_MAX) for one in standings)

    def given(self, standing: Standing, gate: Gate, least: float = 0.0) -> tuple[float, float]:
        """How long a rank may keep a gate's waiters, and how long it might if nothing were known of it."""
        usual = max(self.allowed(gate), least)
        record = standing.record
        if gate.waiters[0][1].op == Op.COMMIT and record.rank == COMMITTER and standing.computes:
            usual = max(usual, COMPUTING_SECONDS)
        return self.patience.allowed_seconds(record.rank, record.step, waiting_at(gate), usual), usual

    def pause(self, gate: Gate, late: Standing) -> float:
        """For how much longer than its gate's waiters may wait a rank may be outside, since its peers were, too."""
        return self._with_peers(*self._gaps(gate, late), gate, self.allowed(gate))

    def _with_peers(self, gap: float, longest: float, gate: Gate, allowed: float) -> float:
        waiters = [operation for _, operation in gate.sample()]
        known = [operation.usual_gap_seconds for operation in waiters if operation.usual_gap_seconds is not None]
        if 2 * len(known) <= len(waiters):
            return gap + longest
        usual = median_high(operation.usual_seconds or 0.0 for operation in waiters)
        most = PEERS_FACTOR * usual + PEERS_MARGIN_SECONDS - allowed
        # Who comes late to one of a step's operations is as late for the next, to which it still has to compute.
        gap, longest = max(gap, median(known)), max(longest, *known)
        return gap + min(longest, max(0.0, most, 2 * (longest - PEERS_UNUSUAL * max(known))))

    def _gaps(self, gate: Gate, late: Standing) -> tuple[float, float]:
        """How long the peers had been outside, each its longest time since the late rank entered anything: most of
        them, and the longest of those who have come.

        The waiters, or all ranks if these took longer: a stage of a pipeline has one waiter only.
        """
        since = late.taken - late.idle_seconds
        standings = self.graph.standings
        waiters = [max(operation.gap_seconds, standings[rank].stalled(since)) for rank, operation in gate.sample()]
        some = [one.stalled(since) for one in self._some if one is not late]
        gap = max(median(waiters), median(some) if some else 0.0)
        return gap, max(gap, *waiters)

    def _halted_inside(self) -> list[Late]:
        """Ranks that were stopped, or died, within what they had entered."""
        halted = {rank for rank, standing in self.graph.known() if standing.halted} - self.graph.accused.keys()
        if not halted:
            return []
        found = {}
        for group in self.graph.groups.values():
            for seq, waiters in group.under_way.items():
                gate = Gate(group.communicator, seq, waiters, group)
                others_left = all(rank in halted for rank, _ in waiters)
                for rank, operation in waiters:
                    if others_left and self.graph.standings[rank].gone:
                        continue  # nobody waits for it, and how it ended its agent tells
                    seconds = self.age(rank, operation) if others_left else self.waited(gate)
                    late = rank in halted and seconds >= HALTED_SECONDS
                    if late and self._alone(self.graph.standings[rank], group.members):
                        found[rank] = Late(rank, gate, seconds, 0.99)
        for transfer in self.graph.transfers:
            if transfer.peer in halted and self.graph.standings[transfer.peer].record.ended:
                continue  # it has done its part, as its waiter may have yet to read
            waiters = [(transfer.rank, transfer.operation)]
            gate = Gate(transfer.communicator, transfer.operation.seq, waiters, peer=transfer.peer)
            late = transfer.peer in halted and self.waited(gate) >= HALTED_SECONDS
            if late and self._alone(self.graph.standings[transfer.peer], (transfer.rank,)):
                found[transfer.peer] = Late(transfer.peer, gate, self.waited(gate), 0.99)
        return list(found.values())

    def _stuck_collectives(self) -> Iterable[Stuck]:
        for group in self.graph.groups.values():
            for seq, waiters in group.under_way.items():
                if not group.holds(seq) or any(member in self.graph.unknown for member in group.members):
                    continue
                if all(self.graph.standings[rank].gone for rank, _ in waiters):
                    continue
                # Nobody leaves what a member that waits for a processor has to do its part in.
                share = max(starved_share(self.graph.standings[rank]) for rank, _ in waiters)
                seconds = self._since_last(group, waiters) * (1.0 - share)
                if seconds >= median_high(allowed_seconds(operation) for _, operation in waiters):
                    inside = tuple(sorted(rank for rank, _ in waiters))
                    yield Stuck(group.communicator, waiters[0][1], group.members, inside, seconds)

    def _since_last(self, group: Group, waiters: list[tuple[int, Operation]]) -> float:
        """For how long all were in it by the oldest of their reports; less if a member has gone on to another."""
        standings = self.graph.standings
        entered = [
            standings[rank].taken - place.last.age_seconds for rank, place in group.at.items() if place.last is not None
        ]
        return min(standings[rank].taken for rank, _ in waiters) - max(entered)

    def _stuck_transfers(self) -> Iterable[Stuck]:
        standings = self.graph.standings
        for transfer in self.graph.transfers:
            if (
                transfer.peer in self.graph.unknown
                or transfer.rank not in self.graph.held
                or standings[transfer.rank].gone
            ):
                continue
            peer, taken = standings[transfer.peer], standings[transfer.rank].taken
            # The peer entered its side when it last entered anything, or before.
            seconds = min(transfer.operation.age_seconds, taken - peer.taken + peer.idle_seconds)
            seconds *= 1.0 - max(starved_share(peer), starved_share(standings[transfer.rank]))
            if seconds >= allowed_seconds(transfer.operation):
                members = (transfer.peer, transfer.rank)
                yield Stuck(transfer.communicator, transfer.operation, members, (transfer.rank,), seconds)


def waiting_at(gate: Gate) -> Waiting:
    """The class of the operation in which a gate's waiters are."""
    return waiting_in(gate.waiters[0][1].op, len(gate.communicator.members))


def starved_share(standing: Standing) -> float:
    """Of the time since a rank last moved, in which share it may have waited for a processor."""
    starved = min(standing.record.starved_seconds, STARVED_SECONDS_MAX)
    return min(1.0, starved / standing.idle_seconds) if starved and standing.idle_seconds else 0.0
