"""A model of what the workers and daemons of one generation do: restore, step, seal, protect.

After each step every position seals its data (if the gate was open), and, once its group has sealed, stores its
parity; meanwhile training goes on. One sealed version at most is unprotected: that is what the gate is for. The
bytes are not there, only who has them. Whether something can be decoded is asked of the placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from simulation.machines import Machine, Worker

from ftrain_launcher.from_agent import (
    Failure,
    RankHalted,
    RankRestored,
    RankStepped,
    StateDescribed,
    StateUndescribed,
    Trouble,
)
from ftrain_launcher.job.events import Progress
from ftrain_launcher.to_agent import Form, HaltAfter
from ftrain_snapshot.pin import Pin
from ftrain_snapshot.placement import Groups, is_complete
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from simulation.cluster import Cluster

SLOTS = 3


def decodable(
    memories: Mapping[int, Mapping[SnapshotId, list[bool]]], snapshot: SnapshotId, grouping: Groups, m: int
) -> bool:
    """Can all data of a snapshot be read or decoded from what the positions hold?"""
    data = {p for p, memory in memories.items() if snapshot in memory and memory[snapshot][False]}
    parity = {p for p, memory in memories.items() if snapshot in memory and memory[snapshot][True]}
    return is_complete(data, parity, grouping, m)


class Training:
    """One generation of workers."""

    def __init__(self, cluster: Cluster, form: Form) -> None:
        self.cluster, self.world, self.form = cluster, cluster.world, form
        self.generation, self.restore = form.generation, form.restore
        self.nodes, self.parity = len(form.peers), form.work.parity
        self.groups = form.groups
        self.group_of = {p: group for group in form.groups for p in group}
        self.workers: dict[int, Worker] = {}
        self.machines: dict[int, Machine] = {}
        self.start_version = None if form.durable_start is None else form.durable_start.step
        self.base = form.restore if form.origin is None else form.origin.snapshot
        """What it starts from, whatever world that is of."""
        if self.base is not None:
            self.start_version = self.base.version
        self.step = -1 if self.start_version is None else self.start_version
        self.forget_pin()
        if form.work.durable is not None:
            self.world.after(0.5, self._beat)
        self.flying: SnapshotId | None = None
        """The version that is being sealed and protected."""
        self.abandoned = False
        """It will be sealed, but not protected."""
        self.sealed_by: set[int] = set()
        self.stored_by: set[int] = set()
        self.newest_sealed = form.restore
        self._begun = False
        self._is_described: bool | None = None

    # ---- the beginning

    def configure(self, machine: Machine) -> None:
        """The daemon drops what is newer than the start, and rebuilds what is missing of it."""
        machine.position = next((p.position for p in self.form.peers if p.node == machine.name), -1)
        for snapshot in [s for s in machine.memory if not self._may_keep(machine, s)]:
            del machine.memory[snapshot]
        if machine.position < 0:  # others read what it holds
            return
        self.machines[machine.position] = machine
        if self.restore is not None and machine.memory.get(self.restore) != [True, bool(self.parity)]:
            self.world.after(self.world.between(0.05, 0.5), self._repair, machine)

    def _may_keep(self, machine: Machine, snapshot: SnapshotId) -> bool:
        """What is newer than the start is not, and of other worlds nothing but the start."""
        if self.form.origin is not None:
            return snapshot in self._of_another_world()
        return self.base is not None and snapshot <= self.base and machine.share_of[snapshot] == machine.position

    def _origin_is_there(self) -> bool:
        """The workers read the start from the nodes that hold its shares."""
        origin = self.form.origin
        if origin is None:
            return True
        holders = ((p.position, self.cluster.machines[p.node]) for p in origin.holders)
        memories = {position: m.memory for position, m in holders if m.alive and m.daemon_up}
        return decodable(memories, origin.snapshot, origin.groups, origin.parity)

    def _drop_origin(self) -> None:
        for machine in self.cluster.machines.values():
            for snapshot in self._of_another_world() & machine.memory.keys():
                del machine.memory[snapshot]

    def _of_another_world(self) -> set[SnapshotId]:
        return {origin.snapshot for origin in (self.form.origin, self.form.older) if origin is not None}

    def _repair(self, machine: Machine) -> None:
        assert self.restore is not None
        if not machine.alive or machine.stopped > self.generation or self.cluster.ended:
            return
        held = machine.memory.get(self.restore, [False, False])
        memories = {p: m.memory for p, m in self.machines.items() if m.alive}
        if not held[False]:
            if decodable(memories, self.restore, self.groups, self.parity):
                machine.keep(self.restore, parity=False)
            elif len(memories) == self.nodes:
                self.world.after(0.2, self._give_up_restoring, machine)
                return
        elif self.parity:
            group = self.group_of[machine.position]
            if all(p in memories and memories[p].get(self.restore, [False])[False] for p in group):
                machine.keep(self.restore, parity=True)
                self.cluster.checkers.repaired(machine)
        if machine.memory.get(self.restore) != [True, bool(self.parity)]:
            self.world.after(self.world.between(0.05, 0.3), self._repair, machine)

    def _give_up_restoring(self, machine: Machine) -> None:
        if machine.alive and machine.generation == self.generation:
            machine.tell(Trouble(machine.name, self.generation, "restore_failed", ""), ("trouble",))

    def start(self, worker: Worker) -> None:
        self.workers[worker.rank] = worker
        self.world.after(self.world.between(0.05, 0.2), self._load, worker)

    def _load(self, worker: Worker) -> None:
        """Find the others through the store, then wait for the bytes."""
        if not worker.alive:
            return
        first = next(m for m in self.cluster.machines.values() if m.name == self.form.peers[0].node)
        if first.store != (self.generation, self.form.store_port):
            self.world.after(self.world.between(0.5, 2.0), self._raise_communication, worker)
            return
        machine = worker.machine
        if self.restore is not None and not machine.memory.get(self.restore, [False])[False]:
            self.world.after(0.1, self._load, worker)
            return
        if not self._origin_is_there():
            self.world.after(0.3, self._give_up_restoring, machine)
            return
        if self.form.origin is not None and self.base in self.cluster.doubtful:
            machine.tell(Trouble(machine.name, self.generation, "not_certified", "replicas differ"), ("trouble",))
            return
        worker.step = self.start_version
        worker.restored = RankRestored(machine.name, self.generation, worker.rank, worker.step, self.world.now)
        machine.tell(worker.restored, ("restored", worker.rank))
        total = self.nodes * self.cluster.config.work.nproc_per_node
        if not self._begun and len(self.workers) == total and all(w.restored for w in self.workers.values()):
            self._begun = True
            self.world.after(self.world.between(0.1, 0.3), self._take_step)

    # ---- steps

    def _take_step(self) -> None:
        """All ranks make a step together, or those that are left notice that somebody is gone."""
        if not all(w.alive for w in self.workers.values()):
            for worker in self.workers.values():
                if worker.alive and self.world.chance(0.7):
                    self.world.after(self.world.between(0.05, 1.0), self._raise_communication, worker)
            return
        if self._is_held():
            self.world.after(0.05, self._take_step)
            return
        plan = self.cluster.plan
        if self.step + 1 >= plan.steps:
            for worker in self.workers.values():
                self.world.after(self.world.between(0.0, 0.3), self._finish, worker)
            return
        if self.step + 1 == plan.program_error_step:
            rank = plan.program_error_rank % len(self.workers)
            self._raise_program_error(self.workers[rank])
            self.world.after(0.2, self._take_step)
            return
        self.step += 1
        for worker in self.workers.values():
            worker.step = self.step
            if worker.stepped is None:
                self.world.after(self.world.between(0.0, 0.02), self._say_stepped, worker, self.step)
        if self.flying is None and self._start_is_safe() and all(m.daemon_up for m in self.machines.values()):
            self._snapshot()
        self.world.after(self.world.between(0.1, 0.3), self._take_step)

    def _is_held(self) -> bool:
        """The ranks wait for the step after which they stop, or stand there and have it captured."""
        words = [m.word for m in self.machines.values()]
        last = next((word.step for word in words if isinstance(word, HaltAfter)), None)
        if last is None or self.step < last:
            return last is None and any(words)
        newest = max((s for s in (self.flying, self.newest_sealed) if s is not None), default=None)
        missing = self.flying is None and (newest is None or newest.version < self.step)
        if missing and self._start_is_safe() and all(m.daemon_up for m in self.machines.values()):
            self._snapshot()
        for worker in self.workers.values():
            machine = worker.machine
            sealed = newest is not None and newest.version == self.step and newest in machine.memory
            if sealed and isinstance(machine.word, HaltAfter) and worker.halted_after != self.step:
                worker.halted_after = self.step
                halted = RankHalted(machine.name, self.generation, worker.rank, self.step, True, self.world.now)
                machine.tell(halted, ("halted", worker.rank))
                self._report(1.0)
        return True

    def _say_stepped(self, worker: Worker, step: int) -> None:
        if worker.alive and worker.stepped is None:
            worker.stepped = RankStepped(worker.machine.name, self.generation, worker.rank, step, self.world.now)
            worker.machine.tell(worker.stepped, ("stepped", worker.rank))

    def _finish(self, worker: Worker) -> None:
        worker.end(code=0, finished=True)

    def _raise_communication(self, worker: Worker) -> None:
        if worker.alive:
            worker.report(failure=Failure(worker.step, "RuntimeError: gloo", "Traceback: gloo", True))

    def _raise_program_error(self, worker: Worker) -> None:
        failure = Failure(worker.step, "ValueError: boom", "Traceback: boom", False)
        worker.report(failure=failure)
        self.world.after(0.01, lambda: worker.end(code=1, failure=failure))

    # ---- snapshots

    def _start_is_safe(self) -> bool:
        """The gate opens once the start has its parity again: else a lost node would cost two sealed versions."""
        newest = self._newest_protected()
        return not self.parity or self.restore is None or (newest is not None and newest >= self.restore)

    def _snapshot(self) -> None:
        start = self.base if self.form.origin is not None else None
        kept = {s.slot for s in (self.newest_sealed, self._newest_protected() or start) if s is not None}
        free = [s for s in range(SLOTS) if s not in kept]
        pinned = self.pin.snapshot
        unpinned = [s for s in free if pinned is None or s != pinned.slot]
        if not unpinned:
            self.pin.give_way()
        slot = min(unpinned or free)
        if self.cluster.plan.undescribed_steps:
            self._say_if_described(self.step >= self.cluster.plan.undescribed_steps)
        self.flying = SnapshotId(self.step, self.generation, slot)
        self.sealed_by, self.stored_by, self.abandoned = set(), set(), False
        for position in self.machines:
            self.world.after(self.world.between(0.0, 0.1), self._seal, position, self.flying)

    def _say_if_described(self, is_described: bool) -> None:
        for machine in self.machines.values() if is_described is not self._is_described else ():
            place = machine.name, self.generation
            said = StateDescribed(*place, self.step) if is_described else StateUndescribed(*place, "unlike values")
            machine.tell(said, ("described",))
        self._is_described = is_described

    def _newest_protected(self) -> SnapshotId | None:
        whole = ({s for s, held in m.memory.items() if held == [True, True]} for m in self.machines.values())
        return max(set.intersection(*whole) - self._of_another_world(), default=None)

    def _seal(self, position: int, snapshot: SnapshotId) -> None:
        machine = self.machines[position]
        mine = machine.workers.values()
        if snapshot != self.flying or not machine.alive or machine.generation != self.generation:
            return
        if not all(w.alive or _is_done(w) for w in mine):
            return
        machine.keep(snapshot, parity=False)
        self.sealed_by.add(position)
        if len(self.sealed_by) == self.nodes:
            self.newest_sealed = snapshot
            self.cluster.checkers.sealed(snapshot)
            self._report(0.3)
            if not self.parity or self.abandoned:
                self.flying = None
            if not self.parity:
                self._drop_origin()
        if self.parity and not self.abandoned:
            group = self.group_of[position]
            if self.sealed_by.issuperset(group):
                for member in group:
                    self.world.after(self.world.between(0.02, 0.3), self._store, member, snapshot)

    def _store(self, position: int, snapshot: SnapshotId) -> None:
        group = self.group_of[position]
        sources = [self.machines[p] for p in group]
        if snapshot != self.flying or self.abandoned or not all(m.alive and m.daemon_up for m in sources):
            return
        if self.cluster.plan.protection_ends_with_stop and any(m.stopped > self.generation for m in sources):
            return
        self.machines[position].keep(snapshot, parity=True)
        self.stored_by.add(position)
        if len(self.stored_by) == self.nodes:
            self.pin.consider(self._newest_protected())
            self.cluster.checkers.protected(self.machines)
            self._drop_origin()
            self._report(0.5)
            self.flying = None

    def abandon(self) -> None:
        """A daemon was restarted: what is in flight will not be protected."""
        if self.flying is not None and not self.abandoned:
            self.abandoned = True
            self.cluster.checkers.abandoned()
            if len(self.sealed_by) == self.nodes:
                self.flying = None

    def _report(self, probability: float) -> None:
        """Now and then a heartbeat brings the levels."""
        agent = self.machines[0].agent
        awaited = self.cluster.coordinator.quarantine.moves or self.cluster.coordinator.halting.under_way
        if agent is not None and agent.line is not None and (awaited or self.world.chance(probability)):
            sealed = None if self.newest_sealed is None else self.newest_sealed.version
            newest = self._newest_protected()
            protected = None if newest is None else newest.version
            agent.line.up(Progress(self.generation, sealed, protected, self.pin.snapshot, self.flying is not None))

    def forget_pin(self) -> None:
        """The gate is started anew."""
        durable = self.form.work.durable
        self.pin = Pin(every=durable.every if durable is not None else 0, newest=self.form.durable_newest)

    def _beat(self) -> None:
        """Every heartbeat says what is pinned, until something else is the case."""
        machine = self.machines.get(0)
        self.pin.consider(self._newest_protected() if self.parity else self.newest_sealed)
        if self.cluster.ended is None and self.generation == self.cluster.coordinator.generation:
            if machine is not None and machine.alive and machine.daemon_up and machine.generation == self.generation:
                self._report(1.0)
            self.world.after(0.5, self._beat)


def _is_done(worker: Worker) -> bool:
    return worker.exit is not None and worker.exit.finished
