"""Pure: the job's state machine. Events in, commands out; it reads no clock and opens no socket.

A job gathers its nodes, then goes from generation to generation, each formed in two steps:

1. ``Stop(g)`` to every member: end the workers of older generations, say what the daemon holds. A member that
   does not answer, or does not come back within its grace time, is lost, and a spare takes its position.
2. When every position is held by a node that acknowledged ``g``: the newest snapshot that can be read or
   decoded from what they hold is chosen, and ``Form(g)`` goes out.

A fault at any moment, also while forming, is just the next generation. Every event is journaled before its
commands are carried out, so replaying the journal rebuilds this object (`controller.py` is the shell).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatchmethod

from ftrain_snapshot.ledger import explain, newest_complete

from ftrain_launcher.events import (
    Announce,
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    JobConfig,
    JobStarted,
    Joined,
    Left,
    Progress,
    Send,
    Tick,
)
from ftrain_launcher.incidents import Incident, Sign, Timeline, classify
from ftrain_launcher.membership import IllegalMove, Node, NodeState, Phase, Rank, check_phase
from ftrain_launcher.messages import (
    ArenaShort,
    Form,
    NodeGone,
    RankRestored,
    RankStepped,
    ReapNode,
    Shutdown,
    StartNode,
    Stop,
    StopJob,
    Stopped,
    Trouble,
    WorkerExit,
)
from ftrain_launcher.policy import EXIT_LOST, EXIT_NODES, decide
from ftrain_snapshot.messages import Holding, Levels, Peer, SnapshotId

INCIDENTS_KEPT = 1000
_JOINS_FAILED_MAX = 3
_EXIT_USAGE = 2

Holdings = Mapping[int, Sequence[Holding]]
"""What the node at each position holds."""


class Coordinator:
    """The job: call `handle` with each event and the time it happened; carry out what it returns."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.phase = Phase.GATHERING
        self.generation = 0
        self.nodes: dict[str, Node] = {}
        self.positions: list[str | None] = [None] * config.nodes
        """The node that holds each position; None: vacant."""
        self.ranks: dict[int, Rank] = {}
        self.restore: SnapshotId | None = None
        """The snapshot that this generation started from."""
        self.levels = Levels()
        self.incidents: list[Incident] = []
        self.incidents_total = 0
        self.exit_code = 0
        self.exit_message = ""
        self._faults_without_progress = 0
        self._last_signature = ""
        self._signature_before = ""
        """The last signature when the open incident began: a second look at one incident is no repetition."""
        self._names_given = 0
        self._joins_failed = 0
        self._end_deadline: float | None = None
        self._commands: list[Command] = []

    # ---- the two doors

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; return what must be done, in order."""
        self._commands = []
        if self.phase is not Phase.ENDED:
            self._on(event, now)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """When `Tick` is due, if nothing else happens before."""
        deadlines = [n.deadline for n in self.nodes.values() if n.deadline is not None and not n.gone]
        if self._end_deadline is not None:
            deadlines.append(self._end_deadline)
        return min(deadlines, default=None)

    # ---- events

    @singledispatchmethod
    def _on(self, event: object, now: float) -> None:
        raise IllegalMove(f"the coordinator does not know {type(event).__name__}")

    @_on.register
    def _(self, event: JobStarted, now: float) -> None:
        for _ in range(self.config.nodes + self.config.spares):
            self._start_node(now)

    @_on.register
    def _(self, event: Joined, now: float) -> None:
        join = event.join
        node = self.nodes.get(join.node)
        if node is None:
            node = self.nodes[join.node] = Node(name=join.node)
        if node.gone or self.phase is Phase.ENDING:
            self._send(node.name, Shutdown("the job goes on without this node", 0.0))
            return
        node.connection = event.connection
        node.host, node.daemon_port = join.host, join.daemon_port
        node.deadline = None
        if node.position is None:
            node.move(NodeState.IDLE)
            self._fill_vacancies(now)
        else:
            node.move(NodeState.ACTIVE)
            self._readopt(node, join.generation, join.stopped, now)

    @_on.register
    def _(self, event: Left, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.connection != event.connection:
            return
        node.connection = None
        if node.gone:
            return
        if self.phase is Phase.ENDING:
            node.move(NodeState.RELEASED)
            self._finish_if_all_left()
            return
        node.move(NodeState.AWAY)
        node.deadline = now + self.config.agent_grace_seconds

    @_on.register
    def _(self, event: NodeGone, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.gone:
            return
        if self.phase is Phase.ENDING:
            node.move(NodeState.RELEASED)
            self._finish_if_all_left()
        else:
            self._lose(node, event.reason, now)

    @_on.register
    def _(self, event: WorkerExit, now: float) -> None:
        if not self._is_current(event.node, event.generation):
            return
        rank = self.ranks.get(event.rank)
        if rank is None or rank.node != event.node or rank.finished:
            return
        sign = Sign(
            kind="worker_exit",
            node=event.node,
            time=now,
            rank=event.rank,
            pid=event.pid,
            code=event.code,
            signal=event.signal,
            failure=event.failure,
            step=event.step,
        )
        clean = event.finished or (event.code == 0 and event.failure is None)
        if self.phase is Phase.STOPPING:
            if not clean:
                self.incidents[-1].add(sign)
        elif clean:
            rank.finished = True
            if all(r.finished for r in self.ranks.values()):
                self._end(0, "training finished", now)
        else:
            self._fault(sign, now)

    @_on.register
    def _(self, event: Stopped, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.gone or self.phase is not Phase.STOPPING:
            return
        if event.generation != self.generation or node.position is None:
            return
        node.stopped = event.generation
        node.inventory, node.store_port = event.inventory, event.store_port
        if node.state is NodeState.ACTIVE:
            node.deadline = None
        self._form_if_ready(now)

    @_on.register
    def _(self, event: RankRestored, now: float) -> None:
        rank = self._running_rank(event.generation, event.rank)
        if rank is None:
            return
        rank.restored = True
        incident = self._open_incident()
        if incident and all(r.restored for r in self.ranks.values()):
            incident.timeline.restored = max(incident.timeline.restored or 0.0, event.time)

    @_on.register
    def _(self, event: RankStepped, now: float) -> None:
        rank = self._running_rank(event.generation, event.rank)
        if rank is None or rank.stepped:
            return
        rank.stepped = True
        incident = self._open_incident()
        if incident is None:
            return
        incident.timeline.first_step = max(incident.timeline.first_step or 0.0, event.time)
        if all(r.stepped for r in self.ranks.values()):
            self._close(incident)

    @_on.register
    def _(self, event: Trouble, now: float) -> None:
        if self.phase is Phase.ENDING or not self._is_current(event.node, event.generation):
            return
        if event.kind == "daemon_exit":
            self._announce(f"the daemon of {event.node} died and was started again; training goes on")
            self._record_harmless(event, now)
            return
        self._fault(Sign(kind=event.kind, node=event.node, time=now, reason=event.reason), now)

    @_on.register
    def _(self, event: ArenaShort, now: float) -> None:
        needed, available = event.needed_bytes / 2**20, event.available_bytes / 2**20
        self._end(
            _EXIT_USAGE,
            f"too little shared memory on {event.node}: the snapshots need {needed:,.0f} MiB, "
            f"{available:,.0f} MiB are free; make /dev/shm larger or give --arena-dir another tmpfs",
            now,
        )

    @_on.register
    def _(self, event: Progress, now: float) -> None:
        if event.generation != self.generation or self.phase is not Phase.RUNNING:
            return
        self.levels = Levels(sealed=event.sealed, protected=event.protected)
        start = -1 if self.restore is None else self.restore.version
        if event.sealed is not None and event.sealed > start:
            self._faults_without_progress = 0

    @_on.register
    def _(self, event: StopJob, now: float) -> None:
        self._end(event.exit_code, event.reason, now)

    @_on.register
    def _(self, event: ControllerRestarted, now: float) -> None:
        for node in self.nodes.values():
            node.connection = None
            if node.state in (NodeState.ACTIVE, NodeState.IDLE, NodeState.AWAY):
                node.move(NodeState.AWAY)
                node.deadline = now + self.config.agent_grace_seconds
        if self.phase is Phase.ENDING:
            self._end_deadline = now + self.config.shutdown_grace_seconds

    @_on.register
    def _(self, event: Tick, now: float) -> None:
        if self._end_deadline is not None and now >= self._end_deadline:
            self._finish()
            return
        for node in list(self.nodes.values()):
            if node.gone or node.deadline is None or now < node.deadline:
                continue
            node.deadline = None
            if node.state is NodeState.STARTING:
                self._joins_failed += 1
                self._lose(node, "it did not join in time", now)
                if self._joins_failed >= _JOINS_FAILED_MAX:
                    self._end(EXIT_NODES, f"{self._joins_failed} nodes in a row did not start", now)
            elif node.state is NodeState.AWAY:
                self._lose(node, "its agent did not come back", now)
            else:
                self._lose(node, "it did not stop its workers in time", now)

    # ---- nodes

    def _start_node(self, now: float) -> None:
        name = f"node-{self._names_given}"
        self._names_given += 1
        self.nodes[name] = Node(name=name, deadline=now + self.config.start_timeout_seconds)
        self._commands.append(StartNode(name))

    def _lose(self, node: Node, reason: str, now: float) -> None:
        """Give a node up for good; a spare takes its position."""
        node.move(NodeState.LOST)
        node.deadline = None
        self._commands.append(ReapNode(node.name))
        if self.phase is Phase.ENDING:
            self._finish_if_all_left()
            return
        if node.position is None:
            self._fill_vacancies(now)
            return
        self.positions[node.position] = None
        sign = Sign(kind="node_lost", node=node.name, time=now, reason=reason)
        self._fault(sign, now)

    def _fill_vacancies(self, now: float) -> None:
        """Give vacant positions to idle nodes, and ask for more nodes where too few are on their way."""
        if self.phase not in (Phase.GATHERING, Phase.STOPPING):
            return
        vacant = [p for p, name in enumerate(self.positions) if name is None]
        idle = [n for n in self.nodes.values() if n.state is NodeState.IDLE]
        starting = sum(n.state is NodeState.STARTING for n in self.nodes.values())
        if self.phase is Phase.GATHERING:
            # The first names are meant for the ranks; a spare takes their place only if they do not come.
            awaited = any(n.state is NodeState.STARTING for n in list(self.nodes.values())[: len(vacant)])
            if len(idle) >= len(vacant) and not (awaited and len(idle) < self.config.nodes + self.config.spares):
                self._take_positions(vacant, idle)
                self._next_generation(now)
            else:
                self._replace_missing(len(vacant) - len(idle) - starting, now)
            return
        for node in self._take_positions(vacant, idle):
            self._send_stop(node, now)
        self._replace_missing(len(vacant) - len(idle) - starting, now)
        self._form_if_ready(now)

    def _take_positions(self, vacant: list[int], idle: list[Node]) -> list[Node]:
        taken = []
        for position, node in zip(vacant, idle, strict=False):
            self.positions[position] = node.name
            node.position = position
            node.move(NodeState.ACTIVE)
            taken.append(node)
        return taken

    def _replace_missing(self, count: int, now: float) -> None:
        for _ in range(count):
            self._start_node(now)

    def _readopt(self, node: Node, generation: int, stopped: int, now: float) -> None:
        """A member is back. If it runs what it should, nothing happens; else the next generation sorts it out."""
        if self.phase is Phase.STOPPING:
            if node.stopped != self.generation or stopped != self.generation:
                self._send_stop(node, now)
            self._form_if_ready(now)
            return
        if generation == self.generation:
            return
        if stopped == self.generation and self._is_waiting_for_form(node):
            self._send(node.name, self._form_message(node))
            return
        sign = Sign(kind="agent_lost", node=node.name, time=now, reason="it came back without its workers")
        self._fault(sign, now)

    def _is_waiting_for_form(self, node: Node) -> bool:
        mine = [r for r in self.ranks.values() if r.node == node.name]
        return not any(r.restored or r.stepped or r.finished for r in mine)

    # ---- generations

    def _fault(self, sign: Sign, now: float) -> None:
        """Something broke: the next generation, or the end."""
        if self.phase is Phase.STOPPING:
            self._incident_for(sign, now).add(sign)
            self._fill_vacancies(now)
            return
        self._incident_for(sign, now).add(sign)
        self._faults_without_progress += 1
        self._next_generation(now)

    def _next_generation(self, now: float) -> None:
        self.phase = check_phase(self.phase, Phase.STOPPING)
        self.generation += 1
        for node in self.nodes.values():
            node.inventory = node.store_port = None
            if node.position is None or node.gone:
                continue
            if node.state is NodeState.ACTIVE:
                self._send_stop(node, now)
        self._fill_vacancies(now)

    def _send_stop(self, node: Node, now: float) -> None:
        node.inventory = node.store_port = None
        node.deadline = now + self.config.stop_timeout_seconds
        self._send(node.name, Stop(self.generation, host_store=node.position == 0))

    def _members(self) -> list[Node] | None:
        """All positions' nodes in order, if each is there and has stopped for this generation."""
        members = [self.nodes[name] for name in self.positions if name is not None]
        ready = len(members) == self.config.nodes and all(
            n.state is NodeState.ACTIVE and n.stopped == self.generation and n.inventory is not None
            for n in members
        )
        return members if ready else None

    def _form_if_ready(self, now: float) -> None:
        if self.phase is not Phase.STOPPING:
            return
        members = self._members()
        if members is None:
            return
        holdings = {p: n.inventory.holdings for p, n in enumerate(members) if n.inventory is not None}
        newest = newest_complete(holdings, self.config.nodes, self.config.work.parity)
        if newest is not None and newest.version > (-1 if self.restore is None else self.restore.version):
            self._faults_without_progress = min(self._faults_without_progress, 1)
        if not self._resume_is_decided(now):
            return
        if not self._choose_restore(holdings, newest, now):
            return
        if members[0].store_port is None:
            reason = "its store did not start"
            sign = Sign(kind="form_failed", node=members[0].name, time=now, reason=reason)
            self._incident_for(sign, now).add(sign)
            self._faults_without_progress += 1
            self._next_generation(now)
            return
        nproc = self.config.work.nproc_per_node
        self.ranks = {
            p * nproc + j: Rank(rank=p * nproc + j, node=node.name)
            for p, node in enumerate(members)
            for j in range(nproc)
        }
        self.phase = check_phase(self.phase, Phase.RUNNING)
        incident = self._open_incident()
        if incident:
            incident.timeline.formed = now
            incident.resumed_from = None if self.restore is None else self.restore.version
        for node in members:
            self._send(node.name, self._form_message(node))
        where = "from the beginning" if self.restore is None else f"after step {self.restore.version}"
        self._announce(f"generation {self.generation}: {len(members)} nodes, {len(self.ranks)} ranks, {where}")

    def _resume_is_decided(self, now: float) -> bool:
        """Ask the policy about the open incident; False if the job ends instead."""
        incident = self._open_incident()
        if incident is None or not incident.signs:
            return True
        cause = incident.cause = classify(incident.signs)
        before = self._signature_before
        action = decide(cause, before, self._faults_without_progress, self.config.work.max_restarts)
        self._last_signature = cause.signature
        if incident.timeline.decided is None:
            self._announce(f"incident {incident.number}: {cause.reason}")
            if not (cause.signature and cause.signature == before):
                self._announce_traceback(incident)
        incident.timeline.decided = now
        if not action.resume:
            self._end(action.exit_code, action.reason, now)
        return action.resume

    def _announce_traceback(self, incident: Incident) -> None:
        first = incident.cause.suspects[0] if incident.cause else None
        for sign in incident.signs:
            if first and (sign.node, sign.rank) == (first.node, first.rank) and sign.failure:
                self._announce(sign.failure.traceback.rstrip())

    def _choose_restore(self, holdings: Holdings, newest: SnapshotId | None, now: float) -> bool:
        """Take the newest complete snapshot; False (and the job ends) if there was one and none is left."""
        if newest is None and self._had_survivable(holdings):
            known = self.levels.sealed if self.levels.sealed is not None else "some"
            text = explain(holdings, self.config.nodes, self.config.work.parity)
            self._end(
                EXIT_LOST,
                f"the job's state is lost: step {known} was sealed, and no complete snapshot is left. {text}",
                now,
            )
            return False
        incident = self._open_incident()
        if incident:
            incident.steps_lost = self._steps_lost(holdings, newest)
        self.restore = newest
        if newest is not None:
            protected = self.levels.protected
            if protected is not None:
                protected = min(protected, newest.version)
            self.levels = Levels(sealed=newest.version, protected=protected)
        return True

    def _had_survivable(self, holdings: Holdings) -> bool:
        """Was there ever a snapshot that should have survived? If not, starting anew loses one step at most."""
        if self.restore is not None or self.levels.protected is not None:
            return True
        if self.config.work.parity == 0:
            return self.levels.sealed is not None
        survivors = [held for held in holdings.values() if held]
        stored = [{h.snapshot for h in held if h.parity} for held in survivors]
        return bool(stored) and bool(set.intersection(*stored))

    def _steps_lost(self, holdings: Holdings, newest: SnapshotId | None) -> int:
        """Sealed versions newer than the one resumed from: seen sealed by the gate, or held by all who had it."""
        start = -1 if newest is None else newest.version
        old_hands = [p for p, held in holdings.items() if held]
        held_by_all: set[int] | None = None
        for position in old_hands:
            mine = {h.snapshot.version for h in holdings[position] if h.data}
            held_by_all = mine if held_by_all is None else held_by_all & mine
        sealed = {v for v in held_by_all or set() if v > start} if len(old_hands) < len(holdings) else set()
        if self.levels.sealed is not None and self.levels.sealed > start:
            sealed.add(self.levels.sealed)
        return len(sealed)

    def _form_message(self, node: Node) -> Form:
        members = [self.nodes[name] for name in self.positions if name is not None]
        first = members[0]
        assert node.position is not None
        assert first.store_port is not None
        return Form(
            generation=self.generation,
            position=node.position,
            peers=tuple(Peer(p, n.name, n.host, n.daemon_port) for p, n in enumerate(members)),
            store_host=first.host,
            store_port=first.store_port,
            restore=self.restore,
            work=self.config.work,
        )

    # ---- incidents

    def _open_incident(self) -> Incident | None:
        return self.incidents[-1] if self.incidents and not self.incidents[-1].closed else None

    def _incident_for(self, sign: Sign, now: float) -> Incident:
        """The open incident, if its job has not been formed again since; else a new one."""
        last = self._open_incident()
        if last is not None and last.timeline.formed is None:
            return last
        if last is not None:
            self._close(last)
        self._signature_before = self._last_signature
        return self._add_incident(Incident(number=0, generation=self.generation, timeline=Timeline(detected=now)))

    def _add_incident(self, incident: Incident) -> Incident:
        self.incidents_total += 1
        incident.number = self.incidents_total
        self.incidents.append(incident)
        del self.incidents[:-INCIDENTS_KEPT]
        return incident

    def _record_harmless(self, event: Trouble, now: float) -> None:
        """A fault that stopped nobody: it enters the list closed, before an open one."""
        sign = Sign(kind=event.kind, node=event.node, time=now, reason=event.reason)
        incident = Incident(
            number=0, generation=self.generation, timeline=Timeline(detected=now, decided=now), signs=[sign]
        )
        incident.cause = classify([sign])
        incident.closed = True
        still_open = self.incidents.pop() if self._open_incident() else None
        self._add_incident(incident)
        if still_open is not None:
            self.incidents.append(still_open)

    def _close(self, incident: Incident) -> None:
        incident.closed = True
        if not all(r.stepped for r in self.ranks.values()):
            incident.timeline.first_step = None
        if incident.seconds is None:
            return
        self._announce(
            f"incident {incident.number}: training again after {incident.seconds:.2f} s, "
            f"{incident.steps_lost} sealed steps lost"
        )

    # ---- the end

    def _end(self, exit_code: int, message: str, now: float) -> None:
        if self.phase in (Phase.ENDING, Phase.ENDED):
            return
        self.phase = check_phase(self.phase, Phase.ENDING)
        self.exit_code, self.exit_message = exit_code, message
        grace = self.config.shutdown_grace_seconds
        self._end_deadline = now + grace + self.config.stop_timeout_seconds
        for node in self.nodes.values():
            if node.gone:
                continue
            node.deadline = None
            if node.connection is not None:
                self._send(node.name, Shutdown(message, grace))
            elif node.state in (NodeState.STARTING, NodeState.AWAY):
                # Nobody to ask: its engine sees to it that nothing of it goes on running.
                node.move(NodeState.RELEASED)
                self._commands.append(ReapNode(node.name))
        self._finish_if_all_left()

    def _finish_if_all_left(self) -> None:
        if self.phase is Phase.ENDING and all(n.gone for n in self.nodes.values()):
            self._finish()

    def _finish(self) -> None:
        for node in self.nodes.values():
            if not node.gone:
                node.move(NodeState.RELEASED)
                self._commands.append(ReapNode(node.name))
        self._end_deadline = None
        self.phase = check_phase(self.phase, Phase.ENDED)
        self._commands.append(EndJob(self.exit_code, self.exit_message))

    # ---- small things

    def _is_current(self, node: str, generation: int) -> bool:
        """A message about the workers that run, or, while stopping, about those that ran."""
        if self.phase is Phase.RUNNING:
            return generation == self.generation
        if self.phase is Phase.STOPPING and self._open_incident() is not None:
            return generation == self.generation - 1
        return False

    def _running_rank(self, generation: int, rank: int) -> Rank | None:
        if self.phase is not Phase.RUNNING or generation != self.generation:
            return None
        return self.ranks.get(rank)

    def _send(self, node: str, message: Stop | Form | Shutdown) -> None:
        self._commands.append(Send(node, message))

    def _announce(self, text: str) -> None:
        self._commands.append(Announce(text))
