"""All rings of a node's workers, read as one report. No code of the workers runs for it, and nobody is waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ftrain.comm.ring import Group, RingInvalid, ring_path
from ftrain_launcher.detect.records import Communicator, NodeReport, RankRecord, RankStep
from ftrain_launcher.processes.linux import is_stopped
from ftrain_launcher.rings.rank_reader import RankReader


class CommReader:
    """Reads one node's rings. A worker's ring is opened when it is there, and only if it is that worker's."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._generation = 0
        self._workers: Sequence[tuple[int, int, int]] = []
        self._communicators: list[Communicator] = []
        self._indices: dict[tuple[str, tuple[int, ...]], int] = {}
        """By name and members."""
        self._readers: dict[tuple[int, int, int], RankReader] = {}

    def look(self, generation: int, workers: Sequence[tuple[int, int, int]], node_folder: Path) -> bool:
        """Look at all rings once; returns whether there is news that should be told at once.

        Args:
            workers: rank, local rank and pid of each.
        """
        if (generation, list(workers)) != (self._generation, self._workers):
            self._change(generation, workers)
        now = time.monotonic_ns()
        for worker in self._workers:
            if worker not in self._readers:
                self._open(worker, node_folder, now)
        news = [reader.look(now) for reader in self._readers.values()]
        return any(news)

    def report(self, *, is_last: bool = False) -> NodeReport:
        """How the workers of the last look are now, and the steps that they have completed since the last report.

        Indices of communicators stay the same for as long as the generation does. ``is_last``: there will be no other
        one that tells what they did before.
        """
        ranks: list[RankRecord] = []
        steps: list[RankStep] = []
        unrecorded: list[int] = []
        stopped: list[int] = []
        for worker in self._workers:
            reader = self._readers.get(worker)
            record, done = (None, []) if reader is None else reader.report(time.monotonic_ns(), is_last=is_last)
            steps += done
            if record is None:
                unrecorded.append(worker[0])
                if reader is None and is_stopped(worker[2]):
                    stopped.append(worker[0])
            else:
                ranks.append(record)
        return NodeReport(
            node=self._node,
            generation=self._generation,
            communicators=tuple(self._communicators),
            ranks=tuple(ranks),
            steps=tuple(steps),
            unrecorded=tuple(unrecorded),
            stopped=tuple(stopped),
        )

    def read(self, generation: int, workers: Sequence[tuple[int, int, int]], node_folder: Path) -> NodeReport:
        """A last look and its report."""
        self.look(generation, workers, node_folder)
        return self.report(is_last=True)

    def close(self) -> None:
        """Let go of all rings."""
        self._change(0, ())

    def _change(self, generation: int, workers: Sequence[tuple[int, int, int]]) -> None:
        """Forget workers that are not these, and another generation's communicators."""
        wanted = set(workers) if generation == self._generation else set()
        for worker in self._readers.keys() - wanted:
            self._readers.pop(worker).close()
        if generation != self._generation:
            self._communicators.clear()
            self._indices.clear()
        self._generation, self._workers = generation, list(workers)

    def _open(self, worker: tuple[int, int, int], node_folder: Path, now_ns: int) -> None:
        rank, local_rank, pid = worker
        try:
            reader = RankReader(ring_path(node_folder, local_rank), rank, pid, self._index, now_ns)
        except (OSError, RingInvalid):
            return
        identity = reader.ring.identity
        if (identity.generation, identity.pid, identity.rank) != (self._generation, pid, rank):
            reader.close()
        else:
            self._readers[worker] = reader

    def _index(self, group: Group) -> int | None:
        if group.members is None:
            return None
        index = self._indices.setdefault((group.name, group.members), len(self._indices))
        self._communicators[index : index + 1] = [communicator_of(group)]
        return index


def communicator_of(group: Group) -> Communicator:
    """A ring's process group; torch calls a description that nobody gave "undefined"."""
    description = "" if group.description == "undefined" else group.description
    return Communicator(group.name, group.members or (), description)
