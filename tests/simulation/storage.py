"""Simulated storage and the writers that fill it: what is complete there, and which parts of what are not.

A writer reads its node's slot until it is done, and finds out if the slot was taken meanwhile. That of position 0
waits for the others' parts; with its own end the checkpoint exists. It dies with its generation, its node, or when
its agent is told that nobody waits for it; and any of them may hang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.machines import Machine

from ftrain_launcher.from_agent import DurableEnded, DurableSearch
from ftrain_launcher.to_agent import WriteDurable
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from simulation.cluster import Cluster


class Storage:
    """One URL."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.parts: set[tuple[int, SnapshotId, int]] = set()
        """Generation, snapshot, position."""
        self.complete: set[int] = set()
        self.refused = 0
        """How often it was asked what it holds, and did not say."""

    def search(self) -> DurableSearch:
        """What is there."""
        if not self.cluster.plan.gentle and self.cluster.world.chance(0.05):
            self.refused += 1
            return DurableSearch(failure="no answer")
        newest = max(self.complete, default=None)
        return DurableSearch(None if newest is None else DurableId(newest, f"step-{newest:08d}"))


class Writer:
    """One process of one node."""

    def __init__(self, machine: Machine, message: WriteDurable) -> None:
        self.machine, self.snapshot = machine, message.snapshot
        self.generation, self.position = machine.generation, machine.position
        self.alive = True
        self.hangs = False
        assert machine.writer is None or not machine.writer.alive, "a node has two writers"
        storage, world = machine.cluster.storage, machine.world
        self.storage, self.world = storage, world

        world.after(world.between(0.1, 2.0), self._read)

    def _read(self) -> None:
        if not self.alive or self.hangs:
            return
        if self.machine.memory.get(self.snapshot, [False])[False]:
            if self.world.chance(0.05):
                self.end("the storage refused")
            else:
                self.storage.parts.add((self.generation, self.snapshot, self.position))
                self._finish()
        else:
            self.end("it cannot be read any more")

    def _finish(self) -> None:
        nodes = self.machine.cluster.config.nodes
        written = sum((self.generation, self.snapshot, p) in self.storage.parts for p in range(nodes))
        if not self.alive or self.hangs:
            return
        if self.position == 0 and written < nodes:
            self.world.after(0.1, self._finish)
            return
        if self.position == 0:
            self.storage.complete.add(self.snapshot.version)
        self.end("")

    def end(self, failure: str) -> None:
        """The process ends by itself or is killed by somebody else; its agent, if there is one, tells."""
        if self.alive:
            self.alive = False
            ended = DurableEnded(self.machine.name, self.generation, self.position, self.snapshot, failure)
            self.machine.write_ended = ended
            self.machine.tell(ended, ("durable",))
