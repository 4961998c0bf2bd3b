"""Pure: a graph of waits to verdicts, the kind that explains most first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from ftrain_launcher.detect import mismatch, wording
from ftrain_launcher.detect.beside import is_beside
from ftrain_launcher.detect.hang import Judge, Late, Stuck
from ftrain_launcher.detect.mismatch import Difference
from ftrain_launcher.detect.patience import Patience
from ftrain_launcher.detect.records import Communicator
from ftrain_launcher.detect.timeouts import DIFFERENT_SECONDS, allowed_seconds
from ftrain_launcher.detect.verdict import WAITS_MAX, Kind, Verdict, Wait
from ftrain_launcher.detect.waits import Gate, Graph, Group, has_called, pending_of

SURE = 0.5
"""Below it a finding is a guess, and another explanation is looked for first."""
ENTRY_SECONDS = 0.02
"""Entries that are less apart are one: a batch of transfers, one step's buckets."""


class Findings:
    """What one look at one generation's graph finds."""

    def __init__(
        self, graph: Graph, generation: int, nodes: Mapping[int, str], now: float, patience: Patience | None = None
    ) -> None:
        self._graph, self._generation, self._nodes = graph, generation, nodes
        self.judge = Judge(graph, now, patience or Patience())

    def find(self) -> list[Verdict]:
        """One verdict or none."""
        differences = self._differences()
        if differences and differences[0].confidence >= SURE:
            return [self._mismatch(differences[0])]
        if late := self.judge.hung():
            return [self._hang(late)]
        if not self._graph.accused and (stuck := self.judge.stuck()):
            return [self._mismatch(differences[0]) if differences else self._stuck(stuck)]
        if not self._graph.accused and not self._graph.held:
            return self._knot()
        return []

    def _differences(self) -> list[Difference]:
        found = []
        for group in self._graph.groups.values():
            late = [seq for seq, gate in group.gates.items() if self.judge.waited(gate) >= self.judge.allowed(gate)]
            for seq, waiters in group.under_way.items():
                if any(self.judge.age(rank, operation) >= allowed_seconds(operation) for rank, operation in waiters):
                    late.append(seq)
            difference = (mismatch.in_group(group, late) if late else None) or self._inside_differ(group)
            if difference is not None:
                found.append(mismatch.settle(self._graph, difference))
        return sorted(found, key=lambda difference: -difference.confidence)

    def _inside_differ(self, group: Group) -> Difference | None:
        """What all have entered, some have been in for a while, and cannot be in together: that needs no history.

        Operations that have ended are not compared: they may be of a group that was made anew under its old name.
        """
        for seq, waiters in group.under_way.items():
            lasting = {rank: one for rank, one in waiters if self.judge.age(rank, one) >= DIFFERENT_SECONDS}
            difference = mismatch.differing(group, seq, lasting) if len(lasting) > 1 else None
            if difference is not None and not difference.legal:
                return difference
        return None

    def explain(self) -> Verdict | None:
        """What differs anywhere, also in operations that have ended."""
        found = mismatch.everywhere(self._graph)
        return self._mismatch(found[0]) if found else None

    def _hang(self, late: list[Late]) -> Verdict:
        first = late[0]
        standing = self._graph.standings[first.rank]
        # Which of them has kept others waiting a moment longer changes from look to look.
        ranks = tuple(found.rank for found in sorted(late, key=lambda found: (-found.confidence, found.rank)))
        clauses = self._who_is_late(first, ranks)
        given, usual = (0.0, 0.0) if standing.halted else self.judge.given(standing, first.gate)
        if given > usual:
            clauses.append(f"it was given {given:.1f} s, since it might have been slow only")
        verdict = self._verdict(
            Kind.HANG,
            ranks,
            sentence="; ".join(clauses),
            confidence=min(found.confidence for found in late),
            seconds=first.seconds,
            gates=[found.gate for found in late],
        )
        return msgspec.structs.replace(verdict, allowed_seconds=given)

    def _who_is_late(self, first: Late, ranks: tuple[int, ...]) -> list[str]:
        """At one gate, and which of these ranks keep others waiting elsewhere."""
        late, at_gate = set(ranks), set(first.gate.lacking())
        entered = "not entered"
        if first.rank not in at_gate:  # it was stopped within
            entered, at_gate = "been inside", {rank for rank, _ in first.gate.waiters}
        here = [rank for rank in ranks if rank in at_gate]
        elsewhere = [rank for rank in ranks if rank not in at_gate]
        has, them = ("have", "them") if len(here) > 1 else ("has", "it")
        called = _called(first.gate.waiters[0][1].op, first.gate.seq, first.gate.communicator)
        dead = "is dead, and " if len(here) == 1 and self._graph.standings[first.rank].gone else ""
        clauses = [f"{wording.ranks(here, self._nodes)} {dead}{has} {entered} {called} for {first.seconds:.1f} s"]
        waiters = sorted(rank for rank, _ in first.gate.waiters if rank not in late)
        waits = f"{wording.ranks(waiters)} {'wait' if len(waiters) > 1 else 'waits'} for {them}"
        clauses.append(waits if waiters else "the others have left it")
        if queued := [rank for rank in here if has_called(self._graph.standings[rank], first.gate)]:
            who = f"of {wording.ranks(queued)}: " if len(queued) < len(here) else ""
            clauses.append(f"{who}it was called, but the device has not reached it")
        if state := wording.state(self._graph.standings[first.rank].record.process):
            clauses.append(state if len(here) == 1 else f"of rank {first.rank}: {state}")
        if elsewhere:
            keep = "keep" if len(elsewhere) > 1 else "keeps"
            clauses.append(f"{wording.ranks(elsewhere, self._nodes)} {keep} others waiting, too")
        return clauses

    def _mismatch(self, found: Difference) -> Verdict:
        with_type = len({call.dtype for _, call in found.calls}) > 1
        calls = ", ".join(
            f"{wording.ranks(ranks)} called {wording.called(call, with_type=with_type)}"
            for ranks, call in found.calls[:4]
        )
        group, called = found.group, wording.group(found.group.communicator)
        gates = [gate for seq, gate in group.gates.items() if seq >= found.seq]
        if found.seq in group.under_way:
            gates.append(Gate(group.communicator, found.seq, group.under_way[found.seq], group))
        return self._verdict(
            Kind.MISMATCH,
            found.suspects,
            sentence=f"operation #{found.seq} of {called} differs: {calls}: an error of the program",
            confidence=found.confidence,
            seconds=max(map(self.judge.waited, gates), default=0.0),
            gates=gates,
        )

    def _stuck(self, stuck: list[Stuck]) -> Verdict:
        first = stuck[0]
        inside = Counter(self._nodes.get(rank, "?") for found in stuck for rank in found.inside)
        others = Counter(self._nodes.get(rank, "?") for rank in first.members)
        nodes = tuple(dict.fromkeys([node for node, _ in inside.most_common()] + sorted(others)))
        # Who has not left while others have is nearer to the fault than they are.
        ranks = first.inside if 2 * len(first.inside) <= len(first.members) else ()
        called = _called(first.operation.op, first.operation.seq, first.communicator)
        have = "have" if len(first.inside) > 1 else "has"
        who = f"all members have entered {called}, and {wording.ranks(first.inside)} {have} not left it"
        graph = self._graph
        waits = [
            _wait(rank, (), first.communicator, first.operation.op, first.operation.seq, first.seconds)
            for rank in first.inside
        ]
        verdict = self._verdict(
            Kind.COMMUNICATION_HANG,
            ranks,
            sentence=f"{who} for {first.seconds:.1f} s",
            confidence=0.6,
            seconds=first.seconds,
            gates=graph.gates,
            waits=waits,
            nodes=nodes,
        )
        return verdict

    def _knot(self) -> list[Verdict]:
        """Nobody is free: either one of those who seem to wait computes, or they wait in a circle."""
        gates = self.judge.overdue()
        if not gates or any(gate.unknown for gate in self._graph.gates):
            return []
        computing = self._computing(gates)
        if computing:
            return [self._hang(computing)]
        longest = gates[0].waiters[0][0]
        found = mismatch.circle(self._graph, longest)
        if found is None:
            return []
        parts = [f"rank {rank} waits in {self._where(rank)}" for rank in found.ranks[:4]]
        apart = f"; {wording.ranks(found.suspects)} departed from {found.departed}" if found.departed else ""
        return [
            self._verdict(
                Kind.MISMATCH,
                found.suspects,
                sentence=f"ranks wait for each other in a circle: {', '.join(parts)}{apart}: an error of the program",
                confidence=found.confidence,
                seconds=self.judge.waited(gates[0]),
                gates=gates,
            )
        ]

    def _computing(self, gates: list[Gate]) -> list[Late]:
        """Ranks that others wait for and that have something pending themselves, but do not wait for it.

        They compute, another thread of theirs waits for it, or they went on with it outstanding.
        """
        graph = self._graph
        signs = ((0.6, self._is_beside), (0.6, self._is_busy), (0.45, self._went_on))
        candidates: dict[int, Gate] = {}
        for gate in gates:
            for rank in gate.lacking():
                if rank in candidates or rank not in graph.waiting:
                    continue
                if not any(shows(rank, gate) for _, shows in reversed(signs)):
                    continue  # cheap questions first: in a knot of many ranks, all of them are asked
                if self.judge.is_late(graph.standings[rank], gate):
                    candidates[rank] = gate
        for confidence, shows in signs:
            found = [rank for rank, gate in candidates.items() if shows(rank, gate)]
            if found and 2 * len(found) <= len(graph.waiting):
                return [Late(rank, candidates[rank], self.judge.waited(candidates[rank]), confidence) for rank in found]
        return []

    def _is_beside(self, rank: int, gate: Gate) -> bool:
        return is_beside(self._graph, rank, gate)

    def _is_busy(self, rank: int, _: Gate) -> bool:
        return self._graph.standings[rank].busy

    def _went_on(self, rank: int, _: Gate) -> bool:
        """What it entered last has completed, so it went on with what is pending outstanding."""
        record = self._graph.standings[rank].record
        idle = record.idle_seconds
        if idle is None:
            ages = (place.last.age_seconds for place in record.collectives if place.last is not None)
            idle = min(ages, default=float("inf"))
        return min(operation.age_seconds for operation in pending_of(record)) > idle + ENTRY_SECONDS

    def _where(self, rank: int) -> str:
        gate = self._graph.waiting[rank][0]
        operation = next(operation for waiter, operation in gate.waiters if waiter == rank)
        return f"{_called(operation.op, gate.seq, gate.communicator)} for {wording.ranks(gate.lacking())}"

    def _verdict(
        self,
        kind: Kind,
        ranks: tuple[int, ...],
        sentence: str,
        confidence: float,
        seconds: float,
        gates: Iterable[Gate],
        waits: Iterable[Wait] = (),
        nodes: tuple[str, ...] = (),
    ) -> Verdict:
        steps = [self._graph.standings[rank].record.step for rank in ranks if rank in self._graph.standings]
        step = max(steps, default=-1)
        details = {}
        for rank in ranks[: wording.LISTED_MAX]:
            if (standing := self._graph.standings.get(rank)) is None:
                continue
            if state := wording.state(standing.record.process):
                details[f"state of rank {rank}"] = state
            if kind is Kind.MISMATCH and standing.record.departure is not None:
                details[f"program of rank {rank}"] = wording.departure(
                    standing.record.departure, standing.communicators
                )
        return Verdict(
            kind=kind,
            generation=self._generation,
            ranks=ranks,
            nodes=nodes,
            confidence=confidence,
            sentence=sentence,
            waits=(*waits, *self._waits(gates))[:WAITS_MAX],
            seconds=seconds,
            step=step if step >= 0 else None,
            details=details,
        )

    def _waits(self, gates: Iterable[Gate]) -> list[Wait]:
        """Who waits for whom: first at the given gates, then anywhere else, the longest first."""
        told: list[Wait] = []
        rest = sorted(self._graph.gates, key=self.judge.waited, reverse=True)
        for gate in dict.fromkeys((*gates, *rest)):
            if len(told) >= WAITS_MAX:
                break
            lacking = tuple(gate.lacking()[:WAITS_MAX])
            for rank, operation in gate.waiters[: WAITS_MAX - len(told)]:
                seconds = self.judge.age(rank, operation)
                told.append(_wait(rank, lacking, gate.communicator, operation.op, gate.seq, round(seconds, 3)))
        return sorted(told, key=lambda wait: -wait.seconds)


def _called(op: int, seq: int, communicator: Communicator) -> str:
    return f"{wording.written(op)} #{seq} of {wording.group(communicator)}"


def _wait(
    waiter: int, waited_for: tuple[int, ...], communicator: Communicator, op: int, seq: int, seconds: float
) -> Wait:
    return Wait(waiter, waited_for, communicator.name, wording.written(op), seq, seconds, communicator.description)


def explain(graph: Graph, generation: int, nodes: Mapping[int, str], now: float) -> Verdict | None:
    """What differs at all, however long or short it has lasted."""
    return Findings(graph, generation, nodes, now).explain()
