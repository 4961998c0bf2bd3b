"""Pure: the job's state machine. Events in, commands out; it reads no clock and opens no socket.

A job gathers its nodes, then goes from generation to generation, each formed in two steps:

1. ``Stop(g)`` to every member: end the workers of older generations, say what the daemon holds. A member that
   does not answer, or does not come back within its grace time, is lost, and a spare takes its position.
2. When all that are left have acknowledged ``g``, the newest snapshot that can be read or decoded from what they
   hold is chosen (`formation.py`), or the job ends (`policy.py`). When every position is held, ``Form(g)`` goes out.

A fault at any moment, also while forming, is just the next generation. Every event is journaled before its
commands are carried out, so replaying the journal rebuilds this object (`controller.py` is the shell). Whatever
was not carried out is said again when agents and engine reconnect.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from ftrain_launcher.causes import Sign, describe
from ftrain_launcher.durable import SEARCH_SECONDS_MAX, DurableTier
from ftrain_launcher.events import (
    Announce,
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    HostCame,
    JobConfig,
    JobStarted,
    Joined,
    Left,
    Progress,
    Send,
    Tick,
)
from ftrain_launcher.formation import Past, Start, choose_start
from ftrain_launcher.history import History
from ftrain_launcher.incidents import Incident
from ftrain_launcher.membership import Node, NodeState, Phase, Rank, check_phase
from ftrain_launcher.messages import (
    ArenaShort,
    DurableEnded,
    Form,
    Join,
    NodeGone,
    RankRestored,
    RankStepped,
    ReapNode,
    Shutdown,
    StartNode,
    Stop,
    StopJob,
    Stopped,
    ToAgent,
    Trouble,
    Unpin,
    WorkerExit,
    WriteDurable,
)
from ftrain_launcher.policy import EXIT_NODES, EXIT_USAGE
from ftrain_launcher.ranks import Ranks
from ftrain_launcher.roster import Roster
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.messages import Levels, Peer, SnapshotId
from ftrain_snapshot.placement import Groups, groups

_STARTS_FAILED_MIN = 3
"""So many nodes may be lost in a row before they ran, or half as many as the job has."""


_HARMLESS = ("daemon_exit", "chunks_damaged")
"""Troubles that stop nobody."""


class Coordinator:
    """The job: call `handle` with each event and the time it happened; carry out what it returns."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.phase = Phase.GATHERING
        self.generation = 0
        """The newest generation that was announced."""
        self.formed = 0
        """The newest generation that was formed: ``ranks``, ``restore`` and ``levels`` are of this one."""
        self.restore: SnapshotId | None = None
        """The snapshot that it started from."""
        self.levels = Levels()
        self._protected = False
        """A snapshot was protected once: from then on the job never begins anew."""
        self._judged: Start | None = None
        """Where the generation that is being formed could start, when last all that are left had answered."""
        self.groups: Groups = ()
        """The positions that are coded together; from the first generation on they never change."""
        self.exit_code = 0
        self.exit_message = ""
        self.durable = DurableTier(config.work.durable)
        """What is written to storage."""
        self._roster = Roster(config.nodes)
        self._ranks = Ranks()
        self._form_sent: Form | None = None
        """What the first node of the formed generation was sent; the others' differ in the position alone."""
        self._history = History(config.work.max_restarts)
        self._starts_failed = 0
        """Nodes lost in a row before they ran."""
        self._end_deadline: float | None = None
        self._hosts_deadline: float | None = None
        """Until when to wait for hosts; None: enough are there, or on their way."""
        self._commands: list[Command] = []

    @property
    def ranks(self) -> dict[int, Rank]:
        """The ranks of the formed generation."""
        return self._ranks.by_number

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes by name."""
        return self._roster.nodes

    @property
    def positions(self) -> list[str | None]:
        """The node that holds each position; None: vacant."""
        return self._roster.positions

    @property
    def incidents(self) -> list[Incident]:
        """The newest incidents, oldest first."""
        return self._history.log.entries

    @property
    def incidents_total(self) -> int:
        """How many incidents there were."""
        return self._history.log.total

    # ---- the two doors

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; return what must be done, in order."""
        self._commands = []
        if self.phase is not Phase.ENDED:
            self._take_in(event, now)
            if self.config.hosts:
                self._wait_for_hosts(now)
        elif isinstance(event, ControllerRestarted):
            self._commands.append(EndJob(self.exit_code, self.exit_message))  # Nobody may have heard it.
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """When `Tick` is due, if nothing else happens before."""
        own = (self._end_deadline, self._hosts_deadline, self.durable.next_deadline())
        deadlines = (self._roster.next_deadline(), *own)
        return min((d for d in deadlines if d is not None), default=None)

    # ---- events

    def _take_in(self, event: Event, now: float) -> None:
        match event:
            case JobStarted():
                self._start_missing(self.config.nodes + self.config.spares, now)
            case HostCame():
                self._host_came(event, now)
            case Joined(join, connection):
                self._join(join, connection, now)
            case Left(name, connection):
                self._leave(name, connection, now)
            case NodeGone(name, reason):
                node = self.nodes.get(name)
                if node is not None and not node.gone:
                    self._lose(node, reason, now)
            case WorkerExit():
                self._exit(event, now)
            case Stopped():
                self._stopped(event, now)
            case RankRestored():
                self._restored(event)
            case RankStepped():
                self._stepped(event, now)
            case Trouble():
                self._trouble(event, now)
            case ArenaShort():
                self._arena_short(event, now)
            case Progress():
                if self._concerns_formed(event.generation):
                    if event.sealed is not None:
                        self.levels = Levels(sealed=event.sealed, protected=event.protected)
                    self._write_what_is_due(event, now)
            case DurableEnded():
                if event.generation == self.formed and self.phase is Phase.RUNNING:
                    self._tell_of_write(self.durable.end(event, now))
            case StopJob(reason, exit_code):
                self._end(exit_code, reason, now)
            case ControllerRestarted():
                self._resume(now)
            case Tick():
                self._tick(now)
            case _:
                assert_never(event)

    def _join(self, join: Join, connection: int, now: float) -> None:
        """An agent is there, for the first time or again, perhaps before its old connection is seen to be closed."""
        node = self.nodes.get(join.node) or self._roster.add(join.node)
        node.connection = connection
        if node.gone:
            self._send(node, Shutdown("the job goes on without this node", 0.0))
            return
        node.host, node.hostname, node.daemon_port = join.host, join.hostname, join.daemon_port
        node.failure_domain = join.failure_domain
        came = self.config.hosts and node.state is NodeState.STARTING
        node.away_since = None
        self._roster.wait(node, None)
        self._roster.move(node, NodeState.IDLE if node.position is None else NodeState.ACTIVE)
        if came:
            missing = self._roster.missing() + self._roster.expected()
            more = f"{missing} to come" if missing else "all are here"
            self._announce(f"{node.name} is {node.hostname} ({node.host}); {more}")
        if self.phase is Phase.ENDING:
            self._send(node, Shutdown(self.exit_message, self.config.shutdown_grace_seconds))
        elif node.position is None:
            self._fill_positions(now)
        elif self.phase is Phase.STOPPING:
            self._send_stop(node, now)  # Also if it has answered: its daemon or its store may have gone with its agent.
        else:
            self._readopt(node, join, now)
            if self.phase is Phase.RUNNING and self.durable.writing is not None:
                self._send(node, WriteDurable(self.durable.writing))

    def _readopt(self, node: Node, join: Join, now: float) -> None:
        """A member is back while the job runs. If it runs what it should, nothing happens."""
        assert node.position is not None
        mine = self._ranks.of(node.position)
        here = {r.rank for r in join.ranks} if join.generation == self.formed else set()
        missing = [r.rank for r in mine if not r.finished and r.rank not in here]
        if not missing:
            return
        if join.stopped == self.formed > join.generation and not any(r.restored or r.stepped for r in mine):
            self._send_form(node)  # It never got it.
        else:  # Nobody is left to tell what became of them.
            reason = f"without rank {', '.join(map(str, missing))}"
            self._fault(Sign(kind="agent_lost", node=node.name, time=now, reason=reason), now)

    def _leave(self, name: str, connection: int, now: float) -> None:
        """A connection closed; of no matter if the agent has made a newer one since."""
        node = self.nodes.get(name)
        if node is None or node.gone or node.connection != connection:
            return
        node.connection = None
        if self.phase is Phase.ENDING:
            self._roster.remove(node, NodeState.RELEASED)
            self._finish_if_all_left()
        else:
            self._await_return(node, now)

    def _await_return(self, node: Node, now: float) -> None:
        node.connection = None
        node.away_since = now if node.away_since is None else node.away_since
        node.inventory = node.store_port = None
        if self.phase is Phase.STOPPING and node.position is not None:
            self._roster.waited_for.add(node.position)
        self._roster.move(node, NodeState.AWAY)
        self._roster.wait(node, now + self.config.agent_grace_seconds)

    def _exit(self, event: WorkerExit, now: float) -> None:
        rank = self.ranks.get(event.rank)
        if not self._concerns_formed(event.generation) or rank is None or rank.node != event.node or rank.finished:
            return
        if not event.finished and (event.code != 0 or event.failure is not None):
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
            self._fault(sign, now)
        elif self.phase is Phase.RUNNING:
            if self._ranks.finish(rank):
                self._settle(now)
            if self._ranks.all_finished and not self.durable.finish(now):
                self._end(0, "training finished", now)
            self._tell_of_write(None)

    def _stopped(self, event: Stopped, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.state is not NodeState.ACTIVE or node.position is None:
            return
        if self.phase is not Phase.STOPPING or event.generation != self.generation:
            return
        node.inventory, node.store_port, node.durable = event.inventory, event.store_port, event.durable
        self._roster.wait(node, None)
        self._roster.waited_for.discard(node.position)
        self._form_if_ready(now)

    def _restored(self, event: RankRestored) -> None:
        rank = self._running_rank(event.generation, event.rank)
        incident = self._history.log.open
        if rank is not None and self._ranks.restore(rank, event.time) and incident is not None:
            incident.timeline.restored = self._ranks.restored_at

    def _stepped(self, event: RankStepped, now: float) -> None:
        rank = self._running_rank(event.generation, event.rank)
        if rank is not None and self._ranks.step(rank, event.time):
            self._settle(now)

    def _settle(self, now: float) -> None:
        """All ranks have made a step, or had none left to make: the incident is over."""
        incident = self._history.log.close(first_step=self._ranks.stepped_at)
        if incident is not None and incident.seconds is not None:
            self._announce(
                f"incident {incident.number}: training again after {incident.seconds:.2f} s, "
                f"{incident.steps_lost} sealed steps lost"
            )
        self._replace_spares(now)

    def _trouble(self, event: Trouble, now: float) -> None:
        node = self.nodes.get(event.node)
        if node is None or node.gone or self.phase not in (Phase.STOPPING, Phase.RUNNING):
            return
        sign = Sign(kind=event.kind, node=event.node, time=now, reason=event.reason)
        if event.kind in _HARMLESS:
            if self._history.log.record_harmless(sign, self.formed):
                self._announce(f"{describe(sign)}; training goes on")
        elif self._concerns_formed(event.generation):
            self._fault(sign, now)
        elif event.generation == self.generation:
            # What was prepared for the generation that is being formed has broken again.
            self._begin_again(sign, now)

    def _arena_short(self, event: ArenaShort, now: float) -> None:
        if not self._concerns_formed(event.generation):
            return
        needed, available = event.needed_bytes / 2**20, event.available_bytes / 2**20
        self._end(
            EXIT_USAGE,
            f"too little shared memory on {event.node}: the snapshots need {needed:,.0f} MiB, "
            f"{available:,.0f} MiB are free; make /dev/shm larger or give --arena-dir another tmpfs",
            now,
        )

    def _resume(self, now: float) -> None:
        """A new controller: nobody is connected to it yet, and nobody could reach the one before."""
        grace = now + self.config.agent_grace_seconds
        for node in self.nodes.values():
            if node.state is NodeState.STARTING:
                self._roster.wait(node, max(grace, node.deadline or 0.0))
            elif not node.gone:
                self._await_return(node, now)
        if self.phase is Phase.ENDING:
            self._end_deadline = now + self.config.shutdown_grace_seconds + self.config.stop_timeout_seconds

    def _tick(self, now: float) -> None:
        if self._end_deadline is not None and now >= self._end_deadline:
            self._finish()
        self._tell_of_write(self.durable.tick(now))
        if self.durable.is_overdue(now):
            self._end(0, "training finished (whether its last checkpoint is to be written, nobody said)", now)
        if self._hosts_deadline is not None and now >= self._hosts_deadline:
            missing = f"{self._roster.missing()} of {self.config.nodes} hosts did not come"
            self._end(EXIT_NODES, f"{missing} within {self.config.host_wait_seconds:g} s (--join-timeout-seconds)", now)
        while (node := self._roster.overdue(now)) is not None:
            match node.state:
                case NodeState.STARTING:
                    reason = "it did not join in time"
                case NodeState.AWAY:
                    reason = "its agent did not come back"
                case _:
                    reason = "it did not stop its workers in time"
            self._lose(node, reason, now)

    # ---- nodes

    def _host_came(self, event: HostCame, now: float) -> None:
        """A host has room for a node: it is new, or lost the one that it had, or did not hear the last answer."""
        node = self._roster.of_launcher(event.launcher)
        if node is not None and node.state is not NodeState.STARTING:
            self._lose(node, "its processes are gone", now)
            node = None
        if self.phase is Phase.ENDING:
            return
        if node is None:
            node = self._roster.add(self._roster.new_name())
            node.launcher, node.hostname, node.meant_for = event.launcher, event.hostname, event.position
            self._roster.wait(node, now + self.config.start_timeout_seconds)
        self._commands.append(StartNode(node.name))

    def _wait_for_hosts(self, now: float) -> None:
        """Where a position is vacant and no host is on its way to it, the job waits, but not for ever."""
        if self.phase not in (Phase.GATHERING, Phase.STOPPING) or not self._roster.missing():
            self._hosts_deadline = None
        elif self._hosts_deadline is None:
            self._hosts_deadline = now + self.config.host_wait_seconds
            if self.generation:
                self._announce(f"waiting for a host: {self._roster.missing()} of {self.config.nodes} are missing")

    def _start_node(self, now: float) -> None:
        node = self._roster.add(self._roster.new_name())
        self._roster.wait(node, now + self.config.start_timeout_seconds)
        self._commands.append(StartNode(node.name))

    def _lose(self, node: Node, reason: str, now: float) -> None:
        """Give a node up for good; a spare takes its position."""
        seen = now if node.away_since is None else node.away_since
        was_starting = node.state is NodeState.STARTING
        self._roster.remove(node, NodeState.RELEASED if self.phase is Phase.ENDING else NodeState.LOST)
        self._commands.append(ReapNode(node.name))
        if self.phase is Phase.ENDING:
            self._finish_if_all_left()
            return
        if self.durable.finishing and node.position is not None:
            self._end(0, f"training finished ({node.name} was lost before the last checkpoint was written)", now)
            return
        runs = self.phase is Phase.RUNNING
        if not node.formed and (was_starting or not runs):
            self._starts_failed += 1
            if not runs and self._starts_are_hopeless():
                count = f"{self._starts_failed} nodes in a row were lost before they could run"
                self._end(EXIT_NODES, f"{count}; the last: {node.name} ({reason})", now)
                return
        if node.position is None:
            self._replace_spares(now) if runs else self._fill_positions(now)
        elif not (runs and all(r.finished for r in self._ranks.of(node.position))):  # Else nobody misses it.
            sign = Sign(kind="node_lost", node=node.name, time=seen, reason=reason)
            self._fault(sign, now, ask_again=0 < node.formed == self.formed)

    def _starts_are_hopeless(self) -> bool:
        return self._starts_failed >= max(_STARTS_FAILED_MIN, self.config.nodes // 2)

    def _fill_positions(self, now: float) -> None:
        """Give vacant positions to idle nodes, and ask for more nodes where too few are on their way."""
        if self.phase is Phase.GATHERING:
            if self._roster.idle() < self.config.nodes or self._first_nodes_may_come():
                self._start_missing(self.config.nodes - self._roster.idle(), now)
            else:
                self._roster.fill(self.groups)
                self._next_generation(now)
        elif self.phase is Phase.STOPPING:
            for node in self._roster.fill(self.groups):
                self._send_stop(node, now)
            self._start_missing(len(self._roster.vacant), now)
            self._form_if_ready(now)

    def _first_nodes_may_come(self) -> bool:
        """The first nodes are meant for the ranks; a spare takes the place of one only if it does not come."""
        return any(n.number < self.config.nodes for n in self._roster.in_state(NodeState.STARTING))

    def _replace_spares(self, now: float) -> None:
        """Ask for new spares in place of those that were used or lost."""
        if self.phase is Phase.RUNNING and not self._starts_are_hopeless():
            self._start_missing(self.config.spares - self._roster.idle(), now)

    def _start_missing(self, wanted: int, now: float) -> None:
        """Real hosts come by themselves."""
        if not self.config.hosts:
            for _ in range(wanted - self._roster.expected()):
                self._start_node(now)

    # ---- generations

    def _fault(self, sign: Sign, now: float, *, ask_again: bool = False) -> None:
        """Something broke: the next generation, or, while one is being formed, one more thing to know before.

        ``ask_again``: the start depends on what the others hold, and that may have grown since they said it.
        """
        if self.durable.finishing:  # There is nothing left to be done again.
            self._end(0, f"training finished ({describe(sign)} before the last checkpoint was written)", now)
        elif self.phase is Phase.STOPPING:
            self._history.take(sign, self.formed, again=False)
            for node in self._roster.members():
                if ask_again and node.position not in self._roster.waited_for:
                    self._send_stop(node, now)
            self._fill_positions(now)
        else:
            self._starts_failed = 0
            self._begin_again(sign, now)

    def _begin_again(self, sign: Sign, now: float) -> None:
        self._history.take(sign, self.formed, again=True)
        self._next_generation(now)

    def _next_generation(self, now: float) -> None:
        """Announce it; every member, also one that is away, must say that it has left the old ones."""
        self.phase = check_phase(self.phase, Phase.STOPPING)
        self.durable.abandon()
        self.generation += 1
        for node in self._roster.members():
            if node.state is NodeState.ACTIVE:
                self._send_stop(node, now)
            elif node.position is not None:
                self._roster.waited_for.add(node.position)
        self._fill_positions(now)

    def _send_stop(self, node: Node, now: float, *, search: bool = False) -> None:
        """``search``: have it look at the storage as well."""
        assert node.position is not None
        node.inventory = node.store_port = node.durable = None
        self._roster.waited_for.add(node.position)
        self._roster.wait(node, now + self.config.stop_timeout_seconds + SEARCH_SECONDS_MAX * search)
        self._send(node, Stop(self.generation, host_store=node.position == 0, search_durable=search))

    def _form_if_ready(self, now: float) -> None:
        """Once all that are left have stopped: decide whether and where to start; once nobody is missing, form."""
        if self._roster.waited_for:
            return
        self._judged = self._choose_start()
        first = self._roster.members()[0] if not self._roster.vacant else None
        start = self.durable.start(self._judged, first.durable if first is not None else None)
        judgement = self._history.judge(start, now)
        for text in judgement.news:
            self._announce(text)
        if not judgement.action.resume:
            self._end(judgement.action.exit_code, judgement.action.reason, now)
        elif first is not None:
            if start.undecided:
                self._send_stop(first, now, search=True)
            elif first.store_port is None:
                reason = "its store did not start"
                self._begin_again(Sign(kind="form_failed", node=first.name, time=now, reason=reason), now)
            elif self._place_in_groups(now):
                self._form(start, first.host, first.store_port, now)

    def _place_in_groups(self, now: float) -> bool:
        """Decide once who is coded with whom; False: the job has ended, because the labels do not allow it."""
        try:
            self.groups = self.groups or self._groups_of_members()
        except PlacementImpossible as error:
            self._end(EXIT_USAGE, str(error), now)
        return bool(self.groups)

    def _groups_of_members(self) -> Groups:
        return groups([n.failure_domain for n in self._roster.members()], self.config.work.parity)

    def _choose_start(self) -> Start:
        members = [(n.position, n) for n in self._roster.members() if n.position is not None]
        past = Past(
            generation=self.formed,
            restore=self.restore,
            levels=self.levels,
            protected=self._protected,
            nodes=self._ranks.nodes,
            survivors=frozenset(p for p, n in members if n.formed == self.formed),
            judged=self._judged,
            demotions=self._history.demotions,
        )
        holdings = {p: n.inventory.holdings for p, n in members if n.inventory is not None}
        grouping = self.groups or groups(self.config.nodes, self.config.work.parity)  # Nothing was coded yet.
        return choose_start(past, holdings, groups=grouping, parity=self.config.work.parity)

    def _form(self, start: Start, store_host: str, store_port: int, now: float) -> None:
        members = self._roster.members()
        self.phase = check_phase(self.phase, Phase.RUNNING)
        self.formed = self.generation
        self.restore = start.restore
        self.durable.started(start)
        self.levels = start.levels
        self._protected, self._judged = start.protected, None
        self._ranks = Ranks([n.name for n in members], self.config.work.nproc_per_node)
        self._starts_failed = 0
        self._history.resumed(start, now)
        self._form_sent = Form(
            generation=self.formed,
            position=0,
            peers=tuple(Peer(p, n.name, n.host, n.daemon_port) for p, n in enumerate(members)),
            store_host=store_host,
            store_port=store_port,
            restore=self.restore,
            groups=self.groups,
            durable_start=start.durable,
            durable_newest=self.durable.newest,
            work=self.config.work,
        )
        for node in members:
            node.formed = self.formed
            self._send_form(node)
        where = "from the beginning" if start.version is None else f"after step {start.version}"
        self._announce(f"generation {self.formed}: {len(members)} nodes, {len(self.ranks)} ranks, {where}{start.note}")
        if start.durable is not None and self.formed == 1:
            self._announce("to begin anew instead, give --durable another URL")

    def _send_form(self, node: Node) -> None:
        assert self._form_sent is not None
        self._send(node, msgspec.structs.replace(self._form_sent, position=node.position))

    # ---- the durable tier

    def _write_what_is_due(self, progress: Progress, now: float) -> None:
        if self.phase is Phase.RUNNING:
            self._tell_of_write(self.durable.report(progress, now))
            if self.durable.is_settled(progress):
                self._end(0, "training finished", now)

    def _tell_of_write(self, message: WriteDurable | Unpin | None) -> None:
        """To all members; and people, how it went."""
        if message is not None:
            for node in self._roster.members():
                self._send(node, message)
        for text in self.durable.take_news():
            self._announce(text)

    # ---- the end

    def _end(self, exit_code: int, message: str, now: float) -> None:
        """Ask everybody to end; nothing else is decided after this."""
        if self.phase is Phase.ENDING:
            return
        self.phase = check_phase(self.phase, Phase.ENDING)
        self.exit_code, self.exit_message = exit_code, message
        self.durable.abandon()
        grace = self.config.shutdown_grace_seconds
        self._end_deadline = now + grace + self.config.stop_timeout_seconds
        for node in self.nodes.values():
            if node.gone:
                continue
            self._roster.wait(node, None)
            if node.connection is not None:
                self._send(node, Shutdown(message, grace))
            else:
                self._release(node)
        self._finish_if_all_left()

    def _release(self, node: Node) -> None:
        """There is nobody to ask: its engine sees to it that nothing of it goes on running."""
        self._roster.remove(node, NodeState.RELEASED)
        self._commands.append(ReapNode(node.name))

    def _finish_if_all_left(self) -> None:
        if self.phase is Phase.ENDING and self._roster.all_gone():
            self._finish()

    def _finish(self) -> None:
        for node in self.nodes.values():
            if not node.gone:
                self._release(node)
        self._end_deadline = None
        self.phase = check_phase(self.phase, Phase.ENDED)
        self._commands.append(EndJob(self.exit_code, self.exit_message))

    # ---- small things

    def _concerns_formed(self, generation: int) -> bool:
        """A message about the workers that run, or, while they are being stopped, that ran."""
        return generation == self.formed and generation > 0 and self.phase in (Phase.RUNNING, Phase.STOPPING)

    def _running_rank(self, generation: int, rank: int) -> Rank | None:
        return self.ranks.get(rank) if self.phase is Phase.RUNNING and generation == self.formed else None

    def _send(self, node: Node, message: ToAgent) -> None:
        self._commands.append(Send(node.name, message))

    def _announce(self, text: str) -> None:
        self._commands.append(Announce(text))
