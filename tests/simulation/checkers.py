"""The invariants, apart from the faults. They know what really happened; the coordinator only what it heard.

Checked at each formation: no worker of an older generation runs on a member; no rank is on two nodes; the start is
decodable from what the members really hold, and nothing newer is; no sealed step is lost to dead workers, and one
at most to a lost node. At the end: the code is the one that the faults call for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from simulation.machines import Machine, Worker
from simulation.training import decodable

from ftrain_launcher.detect.patience import Patience
from ftrain_launcher.engine_messages import ReapNode, StartNode
from ftrain_launcher.job.candidates import Candidates
from ftrain_launcher.job.complaints import Complaints
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.ending import Ending
from ftrain_launcher.job.events import CheckNodes, Command, EndJob, Event, NodeChecked, Tick, UncordonNode
from ftrain_launcher.job.fencing import Fence
from ftrain_launcher.job.first_snapshot import FirstSnapshot
from ftrain_launcher.job.flushing import Flushing
from ftrain_launcher.job.forming import Forming
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.growth import Growth
from ftrain_launcher.job.halting import Halting
from ftrain_launcher.job.history import History
from ftrain_launcher.job.incidents import IncidentLog
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import (
    EXIT_LOST,
    EXIT_NODES,
    EXIT_NOT_FLUSHED,
    EXIT_PROGRAM,
    EXIT_USAGE,
    isolations_max,
)
from ftrain_launcher.job.preflight import Preflight
from ftrain_launcher.job.quarantine import Quarantine
from ftrain_launcher.job.ranks import Ranks
from ftrain_launcher.job.recruiting import Recruiting
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.job.running import Running
from ftrain_launcher.job.sizes import Sizes
from ftrain_launcher.job.worlds import Worlds
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.placement import Groups, groups
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from simulation.cluster import Cluster


_NODES = (Candidates, Fence, Roster, Sizes, Recruiting, Growth, FirstSnapshot, Ending, Flushing, Preflight, Quarantine)
_WORK = (Generation, Ranks, Running, Forming, Worlds, Halting, DurableTier, History, IncidentLog)
_SAID = (Complaints, Patience)


def state_of(thing: object) -> object:
    """All that a coordinator knows, to compare two."""
    if not isinstance(thing, (Coordinator, Orders, *_NODES, *_WORK, *_SAID)):
        return thing
    # Alarms are an index of the nodes' deadlines, cleared of old entries by whoever asks for the next.
    return {name: state_of(value) for name, value in vars(thing).items() if name != "_alarms"}


class Checkers:
    """Told of everything that really happens, and of every event and its commands."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.sealed_versions: list[SnapshotId] = []
        """Sealed by all, and not undone by a start from an older one."""
        self.unprotected = 0
        """How many of the newest may be unprotected, since a daemon was restarted while they were in flight."""
        self.damaged: set[int] = set()
        """Positions whose share was lost, and is not whole again with its parity."""
        self.lost_since_formed: set[str] = set()
        self.never_ran = 0
        """Nodes that were lost before they ran a worker."""
        self.started_with: list[str] = []
        """The nodes that held all positions when the job last could have been formed."""
        self.trace: list[object] | None = None
        self.moved = 0
        """How many nodes gave their ranks to another one."""
        self._positions: list[str | None] = []
        self._generation = self._formed = 0
        self._names: set[str] = set()
        self._spawned = 0
        self._running: dict[int, Worker] = {}
        self._ever_protected = False
        self._groups: Groups = ()
        self.healthy: set[str] = set()
        """Nodes that have passed a health check."""
        self.writers = self.from_storage = 0
        """How many were started; how often the job was formed from what they had written."""

    @property
    def _parity(self) -> int:
        return self.cluster.config.work.parity

    def too_much_is_damaged(self) -> bool:
        """More positions of a group than it has parity."""
        return any(len(self.damaged.intersection(g)) > self._parity for g in self.cluster.coordinator.groups)

    def is_whole(self) -> bool:
        """One more node may be lost without harm."""
        return not self.damaged

    # ---- what really happens

    def sealed(self, snapshot: SnapshotId) -> None:
        self.sealed_versions.append(snapshot)

    def protected(self, machines: Mapping[int, Machine]) -> None:
        """Every position has stored its parity, though a node may have been lost, or have left, since it did."""
        holders = self.cluster.coordinator.positions
        self.damaged = {p for p in self.damaged if not machines[p].alive or machines[p].name != holders[p]}
        self.unprotected = 0
        self._ever_protected = True

    def abandoned(self) -> None:
        self.unprotected += 1

    def lost(self, machine: Machine) -> None:
        self.lost_since_formed.add(machine.name)
        position = self.cluster.coordinator.nodes[machine.name].position
        if position is not None:
            self.damaged.add(position)

    def _look_who_moved(self, coordinator: Coordinator) -> None:
        """Nodes that give their positions away are as good as lost to the job, and only cordoned ones do."""
        if coordinator.phase is not Phase.STOPPING or self._positions == coordinator.positions:
            return
        for position, name in enumerate(self._positions):
            node = coordinator.nodes[name] if name is not None else None
            if node is not None and coordinator.positions[position] != name and not node.gone:
                assert node.cordon is not None, f"{name} gave its position away"
                assert node.state is NodeState.CORDONED
                assert not any(w.alive for w in self.cluster.machines[node.name].workers.values()), "it still runs"
                self.lost_since_formed.add(node.name)
                self.damaged.add(position)
                self.moved += 1
        before = set(self._positions)
        for name in coordinator.positions:
            if name is not None and name not in before:
                assert coordinator.nodes[name].cordon is None, f"{name} is cordoned and was given a position"
        self._positions = list(coordinator.positions)

    def _look_who_is_checked(self, event: Event, commands: list[Command], coordinator: Coordinator) -> None:
        """Who gathered was checked; what comes after waits for no check, and is not disturbed by one."""
        if (isinstance(event, NodeChecked) and event.ok) or (isinstance(event, UncordonNode) and event.force):
            self.healthy.add(event.node)
        if self.cluster.config.preflight and self._generation == 0 < coordinator.generation:
            assert self.healthy.issuperset(coordinator.positions), "a node was not checked"
        if coordinator.phase is Phase.STOPPING:
            if None in coordinator.positions:
                idle = [node.name for node in coordinator.nodes.values() if node.state is NodeState.IDLE]
                assert not idle, f"a position is vacant, and {idle} are idle"
            checked = {name for c in commands if isinstance(c, CheckNodes) for name in c.nodes}
            assert all(coordinator.nodes[name].cordon is not None for name in checked), "checked during a recovery"

    def repaired(self, machine: Machine) -> None:
        self.damaged.discard(machine.position)

    def spawned(self, worker: Worker) -> None:
        """Of the nodes that hold positions, only those of one generation run workers, and each rank runs once."""
        if worker.machine.name not in self.cluster.coordinator.positions:
            return
        assert worker.generation >= self._spawned, "an older generation has ranks again"
        if worker.generation > self._spawned:
            self._spawned = worker.generation
            self._running.clear()
            for machine in self._members():
                for other in machine.workers.values():
                    assert other is worker or not other.alive, "two generations have ranks"
        other = self._running.get(worker.rank)
        assert other is None or not other.alive, f"rank {worker.rank} was given twice"
        self._running[worker.rank] = worker

    def _members(self) -> list[Machine]:
        return [self.cluster.machines[name] for name in self.cluster.coordinator.positions if name is not None]

    # ---- what the coordinator makes of it

    def after(self, event: Event, commands: list[Command]) -> None:
        """After every event."""
        coordinator, now = self.cluster.coordinator, self.cluster.world.now
        if self.trace is not None:
            self.trace.append((now, event, commands))
        self._look_who_moved(coordinator)
        self._look_who_is_checked(event, commands, coordinator)
        most = isolations_max(self.cluster.config.nodes)
        assert coordinator.quarantine.isolations(now) <= most, "the policy took out too many nodes"
        assert coordinator.generation >= self._generation, "generations go back"
        self._generation = coordinator.generation
        if None not in coordinator.positions:
            self.started_with = [name for name in coordinator.positions if name is not None]
        deadline = coordinator.next_deadline()
        assert not isinstance(event, Tick) or deadline is None or deadline > now, "a deadline was left unhandled"
        for command in commands:
            if isinstance(command, StartNode):
                assert self.cluster.config.hosts or command.node not in self._names, "a name was given twice"
                self._names.add(command.node)
            if isinstance(command, ReapNode):
                self.never_ran += not coordinator.nodes[command.node].formed
                if command.node in self.cluster.machines:
                    self.lost(self.cluster.machines[command.node])
            if isinstance(command, EndJob) and command.exit_code == EXIT_LOST:
                self._check_lost(command.message)
        if coordinator.formed != self._formed:
            self._formed = coordinator.formed
            self._at_formation(coordinator)

    def _check_lost(self, message: str) -> None:
        """The job gives up, since its state is lost."""
        assert self.too_much_is_damaged() or self.cluster.storage.refused, f"not lost at all: {message}"

    def _at_formation(self, coordinator: Coordinator) -> None:
        members = self._members()
        nproc, nodes = self.cluster.config.work.nproc_per_node, self.cluster.config.nodes
        assert len(members) == nodes, "a position is vacant"
        assert len({m.name for m in members}) == nodes, "a node holds two positions"
        for position, machine in enumerate(members):
            for worker in machine.workers.values():
                assert not worker.alive or worker.generation >= coordinator.formed, "an older generation still runs"
            for rank in range(position * nproc, (position + 1) * nproc):
                assert coordinator.ranks[rank].node == machine.name, "ranks moved"
        # A member may have died a moment ago, which nobody knows yet: then what it held when it answered counts.
        memories = {p: m.memory for p, m in enumerate(members)}
        start = coordinator.restore
        assert len(coordinator.ranks) == nodes * nproc
        self._check_groups(coordinator.groups, [m.failure_domain for m in members])
        durable = coordinator._formed.form.durable_start
        if durable is not None:
            assert start is None, "storage was preferred to memory"
            assert durable.step == max(self.cluster.storage.complete), "it is not the newest, or not complete"
            self._ever_protected = False
        assert start is not None or not self._ever_protected, "the job began anew after a snapshot was protected"
        if start is not None:
            assert decodable(memories, start, coordinator.groups, self._parity), f"{start} is not complete"
        if self.cluster.plan.protection_ends_with_stop:
            for snapshot in {s for memory in memories.values() for s in memory}:
                if (start is None or snapshot > start) and decodable(
                    memories, snapshot, coordinator.groups, self._parity
                ):
                    raise AssertionError(f"{snapshot} is complete and newer than {start}")
        if durable is None:
            self._check_steps_lost(coordinator, start)
        else:
            self._check_steps_after(coordinator, durable.step)

    def _check_groups(self, grouping: Groups, domains: list[str]) -> None:
        """Chosen by the labels of the nodes that formed the job, and never again."""
        if not self._groups:
            assert grouping == groups(domains, self._parity)
            self._groups = grouping
        assert grouping == self._groups, "who is coded with whom has changed"

    def _check_steps_lost(self, coordinator: Coordinator, start: SnapshotId | None) -> None:
        kept = [s for s in self.sealed_versions if start is not None and s <= start]
        lost = len(self.sealed_versions) - len(kept)
        if not self.lost_since_formed:
            assert lost == 0, f"{lost} sealed steps lost to dead workers"
        elif not self.too_much_is_damaged():
            assert lost <= 1 + self.unprotected, f"{lost} sealed steps lost with {self.lost_since_formed}"
        incident = coordinator.incidents[-1] if coordinator.incidents else None
        if incident is not None and incident.timeline.formed == self.cluster.world.now:
            # Of several in a row that a restarted daemon left unprotected, the older ones may be overwritten already.
            known = lost - max(0, self.unprotected - 1)
            if self.too_much_is_damaged():  # A node that had left is back: what the others held, nobody knows.
                known = min(known, 1)
            assert known <= incident.steps_lost <= lost + 1, f"{lost} steps lost, {incident.steps_lost} reported"
        self.sealed_versions = kept
        self.lost_since_formed.clear()

    def _check_steps_after(self, coordinator: Coordinator, step: int) -> None:
        """Of a start from storage: no more steps are said to be lost than were made."""
        newest = max(training.step for training in self.cluster.trainings.values())
        if coordinator.incidents and coordinator.incidents[-1].timeline.formed == self.cluster.world.now:
            told = coordinator.incidents[-1].steps_lost
            assert 0 <= told <= max(0, newest - step), f"{told} steps lost from {newest} to {step}"
        self.sealed_versions = []
        self.lost_since_formed.clear()
        self.from_storage += 1

    def writes(self) -> None:
        """A writer was started."""
        self.writers += 1

    def at_end(self, exit_code: int, message: str) -> None:
        """The job has ended."""
        coordinator, plan = self.cluster.coordinator, self.cluster.plan
        assert coordinator.phase is Phase.ENDED
        assert (exit_code, message) == (coordinator.exit_code, coordinator.exit_message)
        assert state_of(coordinator) == state_of(self.cluster.shell.replayed()), "the replayed state is another"
        assert all(n.state in (NodeState.LOST, NodeState.RELEASED) for n in coordinator.nodes.values())
        if message.startswith("flushed at"):
            step = coordinator.flushing.step
            assert exit_code == 0
            assert self.sealed_versions[-1].version == step, "a step was done after the one that was kept"
            assert plan.config.work.durable is None or step in self.cluster.storage.complete
        elif exit_code == EXIT_NOT_FLUSHED:
            assert coordinator.flushing.wanted
        elif exit_code == 0:
            assert plan.program_error_step is None
            assert all(i.closed for i in coordinator.incidents), "an incident is still open"
            assert all(r.finished for r in coordinator.ranks.values())
        elif exit_code == EXIT_PROGRAM:
            assert plan.program_error_step is not None, message
            assert "ValueError: boom" in message
        elif exit_code == EXIT_USAGE:
            domains = [self.cluster.machines[name].failure_domain for name in self.started_with]
            with pytest.raises(PlacementImpossible):
                groups(domains, self._parity)
        elif exit_code == EXIT_NODES:
            assert self.never_ran >= 3 or (plan.config.preflight and "--preflight" in message), message
        else:
            assert exit_code == EXIT_LOST, message
            assert coordinator.durable.newest is None or self.cluster.storage.refused, message
            doubtful = "could not be certified" in message and self.cluster.doubtful
            assert doubtful or not plan.gentle, f"one loss at a time is no reason to give up: {message}"
