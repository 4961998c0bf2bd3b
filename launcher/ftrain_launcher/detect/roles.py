"""Which ranks do the same work, so that their times may be compared.

Members of a communicator in whose collectives all take the same part (all-reduce and its kin) do the same work in
each step: replicas, and parts of one layer. Ranks that send to each other are stages of a pipeline, whose work differs
by design, and so do the members of a group that only broadcasts, gathers or scatters.
"""

from __future__ import annotations

from collections import defaultdict

from ftrain_launcher.detect.records import Communicator, NodeReport, Op

_ROOTED = frozenset({Op.BROADCAST, Op.REDUCE, Op.GATHER, Op.SCATTER})
_ALIKE = frozenset(Op) - _ROOTED - {Op.BARRIER, Op.MONITORED_BARRIER, Op.SEND, Op.RECEIVE, Op.RECEIVE_ANY}


class Roles:
    """The roles of one generation's ranks, as far as their communication has shown them."""

    def __init__(self, communicators: list[Communicator]) -> None:
        self._communicators = communicators
        self._alike: set[int] = set()
        self._sending: set[tuple[int, int]] = set()
        self._found: list[list[int]] | None = None

    def take(self, report: NodeReport, numbers: list[int]) -> None:
        """Learn from a report; ``numbers`` are the job-wide ones of its communicators."""
        known = len(self._alike), len(self._sending)
        for record in report.ranks:
            for collectives in record.collectives:
                if collectives.last is not None and collectives.last.op in _ALIKE:
                    self._alike.add(numbers[collectives.communicator])
            for channel in record.channels:
                self._sending.add((min(record.rank, channel.peer), max(record.rank, channel.peer)))
        if known != (len(self._alike), len(self._sending)):
            self._found = None

    def groups(self) -> list[list[int]]:
        """Ranks of one role each, two or more; a rank that is in none of them is alone in its role."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def _find(self) -> list[list[int]]:
        of_rank: dict[int, set[int]] = defaultdict(set)
        for number in self._alike:
            for rank in self._communicators[number].members:
                of_rank[rank].add(number)
        pipelines = {number for a, b in self._sending for number in of_rank[a] & of_rank[b]}
        root: dict[int, int] = {}

        def find(rank: int) -> int:
            while root.setdefault(rank, rank) != rank:
                root[rank] = rank = root[root[rank]]
            return rank

        for number in self._alike - pipelines:
            first, *others = self._communicators[number].members
            for rank in others:
                root[find(rank)] = find(first)
        groups: dict[int, list[int]] = defaultdict(list)
        for rank in sorted(root):
            groups[find(rank)].append(rank)
        return [group for group in groups.values() if len(group) > 1]
