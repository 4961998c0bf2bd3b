"""The generation that is announced: its members are asked to stop, and once all that are left have, it is decided.

What comes of it is for the coordinator to carry out: it begins, it is announced anew, or the job ends. An elastic
job that lacks a node begins with those that are left: a new world (`worlds.py`), whose start another one captured.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ftrain_launcher.from_agent import Stopped
from ftrain_launcher.job.causes import Sign
from ftrain_launcher.job.durable import SEARCH_SECONDS_MAX, DurableTier
from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.job.fencing import Fence
from ftrain_launcher.job.formation import Start
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.history import History
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_USAGE, Action
from ftrain_launcher.job.quarantine import Quarantine
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.job.rungs import rung_of
from ftrain_launcher.job.worlds import World, Worlds, is_same, place
from ftrain_launcher.to_agent import STORE_SECONDS_MAX, Form, Stop
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.placement import Groups
from ftrain_snapshot.words import SnapshotId

Outcome = Generation | Sign | Action | None
"""The generation, that can begin; what has broken of it, so that it must be announced anew; how the job ends; or
nothing yet."""


class Forming:
    """One job's; the roster, the durable tier and the history are the coordinator's."""

    def __init__(
        self,
        config: JobConfig,
        roster: Roster,
        orders: Orders,
        durable: DurableTier,
        history: History,
        quarantine: Quarantine,
        fence: Fence,
    ) -> None:
        self.number = 0
        """The newest generation that was announced."""
        self.worlds = Worlds()
        """Those that were formed so far."""
        self._shrink_at: float | None = None
        """When to go on with fewer nodes; None: nobody is missing, or too few are there."""
        self._told: set[tuple[int, int]] = set()
        """Numbers of nodes that people know to carry less parity than was asked for, and how much."""
        self._config = config
        self._roster = roster
        self._orders = orders
        self._durable = durable
        self._history = history
        self._quarantine = quarantine
        self._fence = fence

    @property
    def groups(self) -> Groups:
        """The positions that are coded together in the newest world."""
        return self.worlds.newest.groups if self.worlds.newest is not None else ()

    @property
    def deadline(self) -> float | None:
        """When a job that waits for nothing but a node goes on without it."""
        return None if self._roster.waited_for else self._shrink_at

    def is_overdue(self, now: float) -> bool:
        """Whether that time has come."""
        return self.deadline is not None and now >= self.deadline

    # ---- who has stopped

    def announce(self, now: float, size: int) -> None:
        """The next one, of so many nodes; every member, also one that is away, must say that it left the old ones."""
        self.number += 1
        self._shrink_at = None
        if size != len(self._roster.positions):
            self._roster.reshape(size)
        for node in self._roster.members():
            if node.state is NodeState.ACTIVE:
                self.ask(node, now)
            elif node.position is not None:
                self._roster.waited_for.add(node.position)

    def ask(self, node: Node, now: float, *, search: bool = False) -> None:
        """Have a member stop, and say what it holds; ``search``: on storage as well."""
        hosts_store = node.position == 0
        seconds = self._config.stop_timeout_seconds + STORE_SECONDS_MAX * hosts_store + SEARCH_SECONDS_MAX * search
        self._roster.ask(node, now + seconds)
        below = self._durable.below if search else None
        stop = Stop(
            self.number,
            host_store=hosts_store,
            search_durable=search,
            search_below=below,
            suspects=self._history.suspects,
        )
        self._orders.send(node, stop)

    def fill(self, now: float) -> None:
        """Give vacant positions to idle nodes; they have to say what they hold, too."""
        same = self.worlds.newest is not None and self.worlds.newest.nodes == len(self._roster.positions)
        for node in self._roster.fill(self.groups if same else ()):
            self.ask(node, now)

    def ask_again(self, now: float) -> None:
        """Ask those that have answered: what they hold may have grown."""
        for node in self._roster.members():
            if node.position not in self._roster.waited_for:
                self.ask(node, now)

    def take(self, answer: Stopped) -> bool:
        """A member has stopped; False: that was for another generation, or the node is none."""
        node = self._roster.nodes.get(answer.node)
        if node is None or node.state is not NodeState.ACTIVE or node.position is None:
            return False
        if answer.generation != self.number:
            return False
        self._roster.answer(node, answer)
        return True

    # ---- what comes of it

    def decide(self, formed: Generation, now: float) -> Outcome:
        """Once all that are left have stopped: where to go on after ``formed``, or the end.

        It begins once nobody is missing.
        """
        if self._roster.waited_for:
            return None  # without a look at all nodes: each answer comes here, and there are as many
        stopped = self._stopped()
        if any(node.state is NodeState.AWAY for node in stopped):
            return None
        if not self._fence.allows({node.name for node in stopped}, formed):
            return None
        first = self._roster.members()[0] if not self._roster.vacant else None
        in_memory = self._start_in_memory(formed)
        start = self._durable.start(in_memory, first.durable if first is not None else None)
        judgement = self._history.judge(start, now)
        self._orders.announce(judgement.news)
        if not judgement.action.resume:
            return judgement.action
        self._quarantine.judge(self._history.log.forming, now)
        if self._shrinks(now) or self._moves(formed, in_memory, now):
            return self.decide(formed, now)
        if first is None:
            self._note_wait()
            return None
        if start.undecided:
            self.ask(first, now, search=True)
            return None
        if first.store_port is None:
            return Sign(kind="form_failed", node=first.name, time=now, reason="its store did not start")
        return self._form(start, formed, first.store_port, now)

    def _start_in_memory(self, formed: Generation, without: Sequence[Node] = ()) -> Start:
        """``without``: as it would be if these were not here."""
        stopped = [node for node in self._stopped() if node not in without]
        if without and not self._fence.allows({node.name for node in stopped}, formed):
            return Start(None, 0, lost="too few nodes of the last generation would be left")
        stays = self._stays(formed.ranks.nodes)
        demotions, keep = self._history.demotions, not without
        return formed.next_start(stopped, self.worlds, stays=stays, demotions=demotions, keep=keep)

    def _stopped(self) -> list[Node]:
        """Who has said what it holds, once nobody is waited for: members, and those for whom there was no position."""
        return [*self._roster.members(), *self._roster.left_over()]

    def _stays(self, before: Sequence[str]) -> bool:
        """Whether the next generation is of the same world as the one that these nodes were."""
        if not self._config.elastic:
            return True
        positions, is_kept = self._roster.positions, self._roster.sizes.is_kept
        return is_same(before, positions) or (is_kept and len(before) == len(positions))

    def _shrinks(self, now: float) -> bool:
        """All that are left have stopped, and nobody came in time for a vacant position: whether it is given up.

        The same with positions of which there are too many for a mesh.
        """
        roster = self._roster
        size = roster.sizes.at_most(roster.held())
        if size in (0, len(roster.positions)):
            self._shrink_at = None
            return False
        if self._shrink_at is None:
            self._shrink_at = now + self._config.shrink_after_seconds * bool(roster.vacant)
        if now < self._shrink_at:
            return False
        self._shrink_at = None
        roster.leave_over(size)
        roster.reshape(size)
        first = roster.members()[0]
        if first.store_port is None:  # Another node was to host it.
            self.ask(first, now)
        return True

    def _note_wait(self) -> None:
        """Of a job that would do without a node if it could: why it does not."""
        incident, sizes = self._history.log.forming, self._roster.sizes
        if incident is not None and sizes.is_kept:
            incident.decide(f"waits for another node: {sizes.reason}")

    def _moves(self, formed: Generation, start: Start, now: float) -> bool:
        """Cordoned members, who have stopped, give their positions to idle nodes, or up; whether any does."""
        if not self._roster.cordoned or self._roster.vacant:
            return False
        left = self._quarantine.vacate(start, lambda nodes: self._start_in_memory(formed, nodes))
        self.fill(now)
        return bool(left)

    def begun(self, generation: Generation) -> None:
        """Its members are noted; what other nodes hold is of no use any more, unless somebody reads it."""
        for node in self._roster.members():
            node.formed = generation.number
        for node in self._roster.left_over():
            if not generation.needs(node.name):
                node.inventory = None

    def tell(self, generation: Generation) -> None:
        """Its members that it is formed, and nodes without ranks whose bytes others read."""
        for node in self._roster.members():
            assert node.position is not None
            self._orders.send(node, generation.form_for(node.position))
        for node in self._roster.left_over():
            if (form := generation.form_without_ranks(node.name)) is not None:
                self._orders.send(node, form)
        self._orders.announce(generation.news)

    def adopt(self, form: Form) -> None:
        """A generation was formed by another controller: its nodes have told of it, the journal does not."""
        self.number, self._shrink_at = max(self.number, form.generation), None
        for origin in (form.older, form.origin):
            if origin is not None and self.worlds.of(origin.snapshot) is None:
                first, size = origin.snapshot.generation, origin.nodes
                self.worlds.begin(World(first=first, nodes=size, parity=origin.parity, groups=origin.groups))
        self.worlds.begin(World(first=form.world, nodes=len(form.peers), parity=form.work.parity, groups=form.groups))

    def _form(self, start: Start, formed: Generation, store_port: int, now: float) -> Generation | Action:
        """Who is coded with whom is decided once for each world, if the nodes' labels allow it."""
        members, before = self._roster.members(), formed.ranks.nodes
        try:
            world = self._world(members, before)
        except PlacementImpossible as error:
            return Action(False, str(error), EXIT_USAGE)
        self.worlds.begin(world)
        origin = self._origin(start.restore, self._stopped())
        older = self._origin(start.older, self._stopped()) if origin is not None else None
        if origin is not None:  # It was as good as protected, if it could be decoded: nobody begins anew after it.
            start = msgspec.structs.replace(start, protected=True)
        self._durable.started(start)
        durable = start.durable is not None
        rung = rung_of(before, [n.name for n in members], staying=sum(n.staying for n in members), durable=durable)
        self._history.resumed(start, now, self._told_of(world, start, origin, before, members), rung)
        work = self._config.work
        form = Form(
            generation=self.number,
            position=0,
            peers=tuple(Peer(p, n.name, n.host, n.daemon_port) for p, n in enumerate(members)),
            store_host=members[0].host,
            store_port=store_port,
            restore=start.restore if origin is None else None,
            origin=origin,
            older=older,
            groups=world.groups,
            durable_start=start.durable,
            durable_newest=self._durable.newest,
            quorums=tuple(self._fence.after(formed, [n.name for n in members])),
            world=world.first,
            cordoned=self._roster.told_cordons(),
            incidents=self._history.log.total,
            work=work if world.parity == work.parity else msgspec.structs.replace(work, parity=world.parity),
        )
        return Generation(start, form, before)

    def _world(self, members: Sequence[Node], before: Sequence[str]) -> World:
        """The one that these nodes are of, or a new one. Raises PlacementImpossible."""
        if self.worlds.newest is not None and self._stays(before):
            return self.worlds.newest
        asked = self._config.work.parity
        domains = [n.failure_domain for n in members]
        world = place(domains, asked, first=self.number, elastic=self._config.elastic)
        if world.parity < asked and (world.nodes, world.parity) not in self._told:
            self._told.add((world.nodes, world.parity))
            self._orders.announce([f"warning: {_nodes(world)} can carry parity {world.parity} only, not {asked}"])
        return world

    def _origin(self, snapshot: SnapshotId | None, nodes: Sequence[Node]) -> Origin | None:
        """Where a snapshot is, if another world captured it."""
        if snapshot is None or self.worlds.of(snapshot) in (None, self.worlds.newest):
            return None
        return self.worlds.origin(nodes, snapshot, self._config.work.codec)

    def _told_of(
        self, world: World, start: Start, origin: Origin | None, before: Sequence[str], members: Sequence[Node]
    ) -> str:
        """What became of the nodes and of the state, in words."""
        if world.first < self.number or not before:
            return _changes(before, [n.name for n in members], sum(n.staying for n in members))
        ranks = world.nodes * self._config.work.nproc_per_node
        moves = origin is not None or start.is_of_other_ranks(ranks)
        state = f"; state of step {start.version} is re-sharded" if moves else ""
        return f"goes on with {_nodes(world)} ({ranks} ranks){state}"


def _nodes(world: World) -> str:
    return f"{world.nodes} node{'s' * (world.nodes != 1)}"


def _changes(before: Sequence[str], now: Sequence[str], staying: int) -> str:
    """Who holds positions that others held in the generation before; ``staying``: workers in the same processes."""
    moved = [(old, new) for old, new in zip(before, now, strict=False) if old != new]
    news = [f"{new} takes over from {old}" for old, new in moved]
    if staying:
        news.append(f"{staying} ranks go on in the same processes")
    return ", ".join(news) or "all ranks restart on the same nodes"
