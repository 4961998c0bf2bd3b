"""The invariants of a job that shrinks and grows: they look at what is really there, world by world.

At each formation: so many nodes as are allowed; the start is decodable from the nodes that it names, and nothing newer
is from all that were asked; no sealed step is passed over where no node was lost. The job gives up only where nothing
is decodable. At the end: it has grown back to its full size, if it had the time.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulation.checkers import Checkers
from simulation.machines import Machine
from simulation.training import decodable

from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Leave
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.words import SnapshotId

GROWN_BY_SECONDS = 40.0
"""After the last fault and the last formation."""


class ElasticCheckers(Checkers):
    """One job's."""

    forms: dict[int, Form]
    """Of each generation that was formed."""
    sizes: list[int]
    """How many nodes each of them had."""
    formed_at = 0.0

    def _look_who_moved(self, coordinator: Coordinator) -> None:
        """Who is cordoned gets no position, and keeps one only if it had one."""
        before = {name for name in self._positions if name is not None}
        for name in coordinator.positions:
            if name is not None and name not in before:
                assert coordinator.nodes[name].cordon is None, f"{name} is cordoned and was given a position"
        gone = before.difference(n for n in coordinator.positions if n is not None)
        for name in gone:
            node = coordinator.nodes[name]
            if node.state is NodeState.CORDONED:
                assert not any(w.alive for w in self.cluster.machines[name].workers.values()), "it still runs"
                self.moved += 1
                if node.cordon is not None and node.cordon.leave is not Leave.SOON:
                    self.lost_since_formed.add(name)
        if coordinator.phase not in (Phase.ENDING, Phase.ENDED):
            self._positions = list(coordinator.positions)

    def too_much_is_damaged(self) -> bool:
        return not self.cluster.plan.gentle or bool(self.cluster.doubtful)

    def is_whole(self) -> bool:
        """All run, and have protected something since they were formed."""
        coordinator = self.cluster.coordinator
        training = self.cluster.trainings.get(coordinator.formed)
        if coordinator.phase is not Phase.RUNNING or training is None or not training.parity:
            return False
        newest = training._newest_protected()
        alive = all(m.alive and m.generation == training.generation for m in training.machines.values())
        return alive and newest is not None and len(training.machines) == training.nodes

    def protected(self, machines: object) -> None:
        self.unprotected = 0
        self._ever_protected = True

    def _form_of(self, snapshot: SnapshotId) -> Form | None:
        """Of the generation that captured it."""
        return getattr(self, "forms", {}).get(snapshot.generation)

    def _decodable(self, machines: Iterable[Machine]) -> set[SnapshotId]:
        """What can be read or decoded from these nodes."""
        machines = list(machines)
        found = set()
        for snapshot in {s for machine in machines for s in machine.memory}:
            form = self._form_of(snapshot)
            memories = {m.share_of[snapshot]: m.memory for m in machines if snapshot in m.memory}
            if form is not None and decodable(memories, snapshot, form.groups, form.work.parity):
                found.add(snapshot)
        return found

    def _check_lost(self, message: str) -> None:
        nodes = self.cluster.coordinator.nodes
        left = [n for n in self._positions if n is not None and nodes[n].state is not NodeState.LOST]
        found = {s for s in self._decodable(self.cluster.machines[n] for n in left) if not self._is_doubted(s)}
        assert not found, f"{max(found)} is there, and the job gave up: {message}"

    def _is_doubted(self, snapshot: SnapshotId) -> bool:
        """It could not be certified, as the coordinator was told."""
        demotions = self.cluster.coordinator._history.demotions
        return any(each.doubtful and each.concerns(snapshot) for each in demotions)

    def _at_formation(self, coordinator: Coordinator) -> None:
        config, form = self.cluster.config, coordinator._formed.form
        assert form is not None
        members = self._members()
        self.forms = {**getattr(self, "forms", {}), form.generation: form}
        self.sizes = [*getattr(self, "sizes", []), len(members)]
        self.formed_at = self.cluster.world.now
        assert None not in coordinator.positions, "a position is vacant"
        assert config.least <= len(members) <= config.nodes, f"{len(members)} nodes"
        assert [peer.node for peer in form.peers] == [m.name for m in members]
        assert sorted(p for group in form.groups for p in group) == list(range(len(members)))
        assert len(coordinator.ranks) == len(members) * config.work.nproc_per_node
        start = coordinator.restore
        undescribed = self.cluster.plan.undescribed_steps
        assert form.origin is None or form.origin.snapshot.version >= undescribed, "no other world can resume that"
        assert start is not None or not self._ever_protected, "the job began anew after a snapshot was protected"
        if start is not None:
            assert not self._is_doubted(start), f"{start} could not be certified"
            self._check_start(form, start, members)
        if self.cluster.plan.protection_ends_with_stop:
            newer = [s for s in self._decodable(members) if (start is None or s > start) and not self._is_doubted(s)]
            assert not newer, f"{max(newer)} is complete and newer than {start}"
        if not self.cluster.doubtful:  # What is doubtful is done again.
            self._check_steps_lost(coordinator, start)

    def _check_start(self, form: Form, start: SnapshotId, members: list[Machine]) -> None:
        captured = self._form_of(start)
        assert captured is not None
        if form.origin is None:
            assert form.restore == start
            assert (captured.groups, len(captured.peers)) == (form.groups, len(form.peers)), "it is of another world"
            memories = {p: m.memory for p, m in enumerate(members) if m.share_of.get(start) == p}
            assert decodable(memories, start, form.groups, form.work.parity), f"{start} is not complete"
            return
        origin = form.origin
        assert (form.restore, origin.snapshot) == (None, start)
        assert (origin.nodes, origin.groups, origin.parity) == (
            len(captured.peers),
            captured.groups,
            captured.work.parity,
        )
        named = {peer.position: self.cluster.machines[peer.node] for peer in origin.holders}
        assert len(named) == len(origin.holders), "two nodes hold one share"
        assert all(machine.share_of[start] == p for p, machine in named.items())
        others = {machine.name for machine in named.values() if machine not in members}
        assert others <= {node.name for node in self.cluster.coordinator.nodes.values() if node.cordon is not None}
        memories = {p: machine.memory for p, machine in named.items()}
        assert decodable(memories, start, origin.groups, origin.parity), f"{start} is not complete"
        for position in range(len(members)):
            mine = next((p for p, machine in named.items() if machine is members[position]), -1)
            sent = self.cluster.coordinator._formed.form_for(position).origin
            assert sent is not None
            assert sent.position == mine

    def at_end(self, exit_code: int, message: str) -> None:
        super().at_end(exit_code, message)
        world = self.cluster.world
        since = world.now - max(self.cluster.faults.over_by, self.formed_at)
        # A simulated host may never hear that it was given up, if the controller dies just then.
        is_free = not self.cluster.config.hosts and not self.cluster.plan.undescribed_steps
        if exit_code == 0 and since > GROWN_BY_SECONDS and is_free:
            assert self.sizes[-1] == self.cluster.config.nodes, f"{self.sizes} nodes, and no more for {since:.0f} s"
