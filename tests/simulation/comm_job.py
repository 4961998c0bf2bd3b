"""A made-up job on simulated time: ranks go through their programs, agents read what a ring would show, ten times a
second, and the production detector is given the reports.

As with gloo: an operation ends when all members have entered it and none is stopped; it never ends if they entered
different ones. Sends do not wait for the other side. `reduce_scatter` is left when it is waited for.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulation.comm_programs import (
    Act,
    Action,
    Collective,
    Compute,
    Mark,
    Mesh,
    Receive,
    Send,
    WaitAll,
    Work,
    program,
)
from simulation.comm_ranks import Entry, Place, Rank
from simulation.world import World

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.patience import Patience
from ftrain_launcher.detect.records import Call, Communicator, NodeReport, Op, RankStep
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.detect.waits import LEFT_WHEN_WAITED, pending_of

READ_SECONDS = 0.1
REPORT_SECONDS = 0.5
LATENCY_SECONDS = 0.0005
FOREVER = 1e9


@dataclass(frozen=True)
class Reporting:
    """How well reports get through."""

    delay_seconds: Callable[[random.Random, int], float] = lambda dice, node: dice.uniform(0.0005, 0.005)
    lost: Callable[[random.Random, int, float], bool] = lambda dice, node, now: False


class Job:
    """``change`` is given each rank's step and its actions, and may change them: faults come in there."""

    def __init__(
        self,
        seed: int,
        work: Work,
        ranks_per_node: int,
        change: Callable[[Job, int, int, Iterator[Action]], Iterator[Action]],
        reporting: Reporting | None = None,
        steps: int = 10_000,
        patience: Patience | None = None,
        generation: int = 1,
    ) -> None:
        self.seed, self.work, self.mesh = seed, work, work.mesh
        self.world = World(seed)
        self.start = self.world.now
        self.change, self.reporting = change, reporting or Reporting()
        self.fault_at: float | None = None
        self.verdicts: list[tuple[float, Verdict]] = []
        self.per_node = ranks_per_node
        self.due: dict[int, float] = defaultdict(float)
        size = self.mesh.size
        self.nodes = {rank: f"node-{rank // ranks_per_node}" for rank in range(size)}
        self.patience, self.generation = patience or Patience(), generation
        self.detector = Detector(generation, self.nodes, patience=self.patience)
        self.groups = [self._communicators(rank) for rank in range(size)]
        self.ranks = []
        for rank in range(size):
            dice = random.Random(seed * 1000 + rank)
            self.ranks.append(Rank(rank, program(work, rank, dice, steps), dice, left=self.start, marked=self.start))
            self.world.after(self.world.between(0.0, 0.02), self._go_on, self.ranks[-1])
        for node in range((size + ranks_per_node - 1) // ranks_per_node):
            self.world.after(self.world.between(0.0, READ_SECONDS), self._read, node, -1.0)

    def run(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let simulated time pass."""
        self.world.run(self.world.now + seconds, done)

    def _communicators(self, rank: int) -> dict[str, Communicator]:
        """As torch names them: all groups of one kind by number; a mesh dimension's share nothing but their size."""
        groups = self.mesh.groups(rank)
        return {role: Communicator(f"{role}{members[0]}", members) for role, members in groups.items()}

    # What ranks do

    def _go_on(self, rank: Rank) -> None:
        if rank.letter in ("T", ""):
            rank.frozen = True
            return
        self._computes(rank, False)
        now = self.world.now
        while True:
            action = next(rank.actions, None)
            if action is None:
                actions = next(rank.steps, None)
                if actions is None:
                    rank.letter = ""
                    return
                rank.actions = self.change(self, rank.number, rank.step + 1, actions)
                continue
            match action:
                case Compute(seconds):
                    self._computes(rank, True)
                    return self.world.after(seconds, self._go_on, rank)
                case Mark():
                    rank.step += 1
                    rank.done.append(RankStep(rank.number, rank.step, now - rank.marked, rank.outside))
                    rank.marked, rank.outside = now, 0.0
                    rank.calls.append([])
                    rank.history.begin_step(rank.step + 2)  # the first is 1
                case WaitAll():
                    if not self._free(rank, rank.outstanding()):
                        return None
                case Act(kind, seconds):
                    if not self._act(rank, kind):
                        return self.world.after(seconds, self._go_on, rank)
                    return None
                case _:
                    entry = self._enter(rank, action)
                    goes_on = isinstance(action, Send) or action.asynchronous
                    if not goes_on and not self._free(rank, [entry]):
                        return None

    def _act(self, rank: Rank, kind: str) -> bool:
        """What happens to a rank; False: it goes on after a while."""
        if kind.startswith("quiet"):
            self._computes(rank, kind == "quiet computing")
            return False
        self.fault_at = self.world.now
        if kind == "stop soon":
            self.world.after(LATENCY_SECONDS / 2, self._stop, rank)
            return False
        rank.frozen = kind in ("stop", "gone")
        rank.letter = {"stop": "T", "gone": ""}.get(kind, "S")
        self._computes(rank, kind == "loop")
        return True

    def _stop(self, rank: Rank) -> None:
        rank.frozen, rank.letter = True, "T"
        self._computes(rank, False)

    def _computes(self, rank: Rank, does: bool) -> None:
        if rank.computing_since is not None:
            rank.cpu += self.world.now - rank.computing_since
        rank.computing_since = self.world.now if does else None

    def _free(self, rank: Rank, entries: list[Entry]) -> bool:
        """Whether a rank may go on at once; else it will when the last of these has ended."""
        for entry in entries:
            if entry.ended:
                self._leave(rank, entry)
        left = [entry for entry in entries if not entry.ended]
        rank.waiting_for = left or None
        return not left

    def _enter(self, rank: Rank, action: Collective | Send | Receive) -> Entry:
        now = self.world.now
        gap = 0.0 if rank.outstanding() else now - rank.left
        rank.outside += gap
        root = -1
        if isinstance(action, Collective):
            communicator, op, peer, root = self.groups[rank.number][action.group], action.op, -1, action.root
            place = rank.places.setdefault(communicator, Place(communicator))
        else:
            communicator, peer = self.groups[rank.number]["pp"], action.peer
            op = Op.SEND if isinstance(action, Send) else Op.RECEIVE
            place = rank.transfers.setdefault((op.name, peer), Place(communicator))
        number = sorted(self.groups[rank.number].values(), key=lambda one: one.name).index(communicator)
        kind = number, op, peer, action.elements.bit_length()
        place.entered += 1
        rank.entered = rank.moved = now
        rank.calls[-1].append(Call(number, op, max(peer, root), 4 * action.elements))
        entry = Entry(place.entered, op, action.elements, root, now, gap, kind)
        place.last = entry
        place.recent.append(entry)
        place.pending.append(entry)
        if isinstance(action, Collective):
            self._maybe_end(communicator, entry.seq)
        elif isinstance(action, Send):
            self.world.after(LATENCY_SECONDS, self._end, [(rank, entry)])
            self._deliver(rank.number, peer, entry.seq)
        else:
            sender = self.ranks[peer].transfers.get((Op.SEND.name, rank.number))
            if sender is not None and sender.entered >= entry.seq:
                self.world.after(LATENCY_SECONDS, self._end, [(rank, entry)])
        return entry

    def _deliver(self, source: int, destination: int, seq: int) -> None:
        place = self.ranks[destination].transfers.get((Op.RECEIVE.name, source))
        for entry in place.pending if place is not None else ():
            if entry.seq == seq:
                self.world.after(LATENCY_SECONDS, self._end, [(self.ranks[destination], entry)])

    def _maybe_end(self, communicator: Communicator, seq: int) -> None:
        entries: list[tuple[Rank, Entry]] = []
        for member in communicator.members:
            place = self.ranks[member].places.get(communicator)
            if place is None or place.entered < seq:
                return
            entries += [(self.ranks[member], entry) for entry in place.pending if entry.seq == seq]
        if len({(entry.op, entry.elements, entry.root) for _, entry in entries}) == 1:
            self.world.after(0.0005 + 4e-9 * entries[0][1].elements, self._end, entries)

    def _end(self, entries: list[tuple[Rank, Entry]]) -> None:
        if any(rank.frozen or rank.letter == "T" for rank, _ in entries):
            return
        for rank, entry in entries:
            entry.ended = True
            if rank.waiting_for is None or entry not in rank.waiting_for:
                if entry.op not in LEFT_WHEN_WAITED:
                    self._leave(rank, entry)
                continue
            self._leave(rank, entry)
            rank.waiting_for.remove(entry)
            if not rank.waiting_for:
                rank.waiting_for = None
                self._go_on(rank)

    def _leave(self, rank: Rank, entry: Entry) -> None:
        for place in (*rank.places.values(), *rank.transfers.values()):
            if entry in place.pending:
                place.pending.remove(entry)
                place.completed += 1
                rank.moved = self.world.now
                rank.history.add(entry.kind, int((self.world.now - entry.entered) * 1e9), int(entry.gap * 1e9))
        if not rank.outstanding():
            rank.left = self.world.now

    # What agents see

    def _read(self, node: int, told: float) -> None:
        now = self.world.now
        report = self._report(node)
        late = any(
            operation.usual_seconds is not None and operation.age_seconds > operation.usual_seconds
            for record in report.ranks
            for operation in pending_of(record)
        )
        news = late or any(record.process is not None and record.process.letter in "T" for record in report.ranks)
        if news or now - told >= REPORT_SECONDS:
            told = now
            if not self.reporting.lost(self.world.random, node, now - self.start):
                # One node's reports come in order, if late.
                self.due[node] = max(self.due[node], now + self.reporting.delay_seconds(self.world.random, node))
                self.world.at(self.due[node], self._take, report)
        self.world.after(self.world.between(0.9, 1.1) * READ_SECONDS, self._read, node, told)

    def _take(self, report: NodeReport) -> None:
        self.detector.take(report, self.world.now)
        for ended in self.detector.went_on():
            self.patience.went_on(ended)
        self.verdicts += [(self.world.now, verdict) for verdict in self.detector.verdicts(self.world.now)]

    def _report(self, node: int) -> NodeReport:
        table: dict[Communicator, int] = {}
        mine = self.ranks[node * self.per_node : (node + 1) * self.per_node]
        records = tuple(rank.record(self.world.now, table) for rank in mine)
        steps = tuple(step for rank in mine for step in rank.done)
        for rank in mine:
            rank.done = []
        return NodeReport(
            node=f"node-{node}", generation=self.generation, communicators=tuple(table), ranks=records, steps=steps
        )


__all__ = ["Job", "Mesh", "Reporting", "Work"]
