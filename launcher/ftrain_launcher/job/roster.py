"""The job's nodes and positions, indexed so that one event costs the same with four nodes or a thousand.

A *vacant* position has no node; a position is *waited for* while its node has yet to acknowledge the generation
that is being formed. Deadlines lie in a heap in which old entries stay until they come up: an entry counts only
while it is still its node's deadline.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from ftrain_launcher.from_agent import Join, Stopped
from ftrain_launcher.job.membership import Cordon, Node, NodeState
from ftrain_launcher.job.sizes import Sizes
from ftrain_launcher.to_agent import Cordoned

_ON_THEIR_WAY = (NodeState.STARTING, NodeState.AWAY)


class Roster:
    """Who is there, who holds which position, and until when we wait for whom."""

    def __init__(self, positions: int, least: int | None = None) -> None:
        """``least``: with so many nodes the job can go on; None: with one for each position."""
        self.sizes = Sizes(positions if least is None else least, positions)
        """How many nodes the job may have."""
        self.nodes: dict[str, Node] = {}
        """All nodes by name, in order of their numbers; those that are gone stay, so that they are not let in again."""
        self.positions: list[str | None] = [None] * positions
        """The node that holds each position; None: vacant."""
        self.vacant: set[int] = set(range(positions))
        self.waited_for: set[int] = set()
        self.cordoned: dict[str, Node] = {}
        """Those that are to be given no ranks, members that still have some included, and none that is gone."""
        self.mark = ""
        """Ends all new names: no two controllers of a job may think of the same one."""
        self._by_state: dict[NodeState, dict[str, Node]] = {state: {} for state in NodeState}
        self._removed: Counter[NodeState] = Counter()
        """How many nodes have left each of these since it was made."""
        self._alarms: list[tuple[float, str]] = []

    def new_name(self) -> str:
        """A name that no node has had."""
        number = len(self.nodes)
        while f"node-{number}{self.mark}" in self.nodes:
            number += 1
        return f"node-{number}{self.mark}"

    def add(self, name: str) -> Node:
        """A new node, that is starting."""
        node = self.nodes[name] = Node(name=name, number=len(self.nodes))
        self._by_state[node.state][name] = node
        return node

    def move(self, node: Node, state: NodeState) -> None:
        """Change a node's state (IllegalMove if it may not)."""
        old = node.state
        node.move(state)
        here = self._by_state[old]
        del here[node.name]
        self._removed[old] += 1
        if self._removed[old] > len(here):  # A dict goes on passing over the places of what was taken out of it.
            self._by_state[old], self._removed[old] = dict(here), 0
        self._by_state[state][node.name] = node

    def in_state(self, state: NodeState) -> list[Node]:
        """The nodes in a state, in order of their numbers."""
        return sorted(self._by_state[state].values(), key=lambda node: node.number)

    def all_gone(self) -> bool:
        """Nothing is expected of any node any more."""
        return not self.present()

    def expected(self) -> int:
        """How many nodes may still come and take a position: they are starting, or away for a moment."""
        away = [node for node in self._by_state[NodeState.AWAY].values() if node.position is None]
        cordoned = sum(node.position is None and node.state in _ON_THEIR_WAY for node in self.cordoned.values())
        return len(self._by_state[NodeState.STARTING]) + len(away) - cordoned

    def of_launcher(self, launcher: str) -> Node | None:
        """The node that runs, or should, at this launcher's host."""
        return next((n for n in self.nodes.values() if n.launcher == launcher and not n.gone), None)

    def missing(self) -> int:
        """How many nodes the job lacks to go on, that are neither here nor on the way."""
        return max(0, self.sizes.least - self.held() - self.idle() - self.expected())

    def held(self) -> int:
        """How many positions have a node."""
        return len(self.positions) - len(self.vacant)

    def superfluous(self) -> int:
        """How many of these nodes the job could do without; less than none: it lacks some."""
        return self.held() - self.sizes.least

    def idle(self) -> int:
        """How many nodes can take a position."""
        return len(self._by_state[NodeState.IDLE])

    def ready(self) -> int:
        """How many of these there is nothing left to be known of: for what need not be done at once."""
        return sum(not node.unchecked for node in self._by_state[NodeState.IDLE].values())

    def present(self) -> int:
        """How many nodes there are, or will be in a moment, with ranks or without."""
        gone = len(self._by_state[NodeState.LOST]) + len(self._by_state[NodeState.RELEASED])
        return len(self.nodes) - gone

    def members(self) -> list[Node]:
        """The nodes that hold positions, in order of position."""
        return [self.nodes[name] for name in self.positions if name is not None]

    def left_over(self) -> list[Node]:
        """Nodes that have stopped and been given no position, or gave it away: what they hold is known.

        Some may be away for a moment.
        """
        states = (NodeState.IDLE, NodeState.CORDONED, NodeState.AWAY)
        nodes = (node for state in states for node in self._by_state[state].values())
        found = [node for node in nodes if node.position is None and node.inventory is not None]
        return sorted(found, key=lambda node: node.number)

    def leave_over(self, size: int) -> None:
        """Of the members, who have all stopped, only so many keep positions: cordoned ones go first, then the last."""
        members = sorted(self.members(), key=lambda n: (n.cordon is None, not n.unchecked, -(n.position or 0)))
        for node in members[: self.held() - size]:
            assert node.position is not None
            self._free(node)
            node.position = node.store_port = node.durable = None
            self.move(node, NodeState.IDLE if node.cordon is None else NodeState.CORDONED)

    def reshape(self, size: int) -> None:
        """So many positions from now on, at least one a member: these get the first ones, in the order they had."""
        members, awaited = self.members(), {self.positions[p] for p in self.waited_for}
        self.positions[:] = [node.name for node in members] + [None] * (size - len(members))
        self.vacant.clear()
        self.vacant.update(range(len(members), size))
        self.waited_for.clear()
        for position, node in enumerate(members):
            node.position = position
            if node.name in awaited:
                self.waited_for.add(position)

    def adopt(self, names: Sequence[str]) -> None:
        """These hold the positions, whatever was known here; none of them is gone. All are to be left then."""
        were = {node.name for node in self.members()}
        for node in self.members():
            node.position = node.inventory = node.store_port = node.durable = None
        self.positions[:] = [None] * len(names)
        self.vacant.clear()
        self.vacant.update(range(len(names)))
        self.waited_for.clear()
        for position, name in enumerate(names):
            node = self.nodes.get(name) or self.add(name)
            if node.cordon is not None and name not in were:
                self.uncordon(node)
            if node.state is not NodeState.ACTIVE:
                self.move(node, NodeState.IDLE)
            self._place(node, position)

    def fill(self, groups: Sequence[Sequence[int]] = ()) -> list[Node]:
        """Give vacant positions to idle nodes, those that were checked first; returns these nodes.

        Hosts that are meant for a position come first. Then, position by position, the first node that shares no
        failure domain with others of the position's group, else the one that shares it with the fewest.
        """
        idle = self.in_state(NodeState.IDLE) if self.vacant else []
        ready = self._fill_from([node for node in idle if not node.unchecked], groups)
        return ready + self._fill_from([node for node in idle if node.unchecked], groups)

    def _fill_from(self, idle: list[Node], groups: Sequence[Sequence[int]]) -> list[Node]:
        chosen = {n.meant_for: n for n in reversed(idle) if n.meant_for in self.vacant}
        taken = [self._place(node, position) for position, node in chosen.items() if position is not None]
        rest = [n for n in idle if n.state is NodeState.IDLE]
        for position in sorted(self.vacant)[: len(rest)]:
            beside = self._domains_beside(position, groups)
            node = next((n for n in rest if n.failure_domain not in beside), None)
            if node is None:
                node = min(rest, key=lambda n: beside[n.failure_domain])
            rest.remove(node)
            taken.append(self._place(node, position))
        return taken

    def _place(self, node: Node, position: int) -> Node:
        self.vacant.remove(position)
        self.positions[position] = node.name
        node.position = position
        self.move(node, NodeState.ACTIVE)
        return node

    def _domains_beside(self, position: int, groups: Sequence[Sequence[int]]) -> Counter[str]:
        """How many of the other members of a position's group are in each failure domain."""
        group = next((g for g in groups if position in g), ())
        names = [self.positions[p] for p in group]
        domains = Counter(self.nodes[name].failure_domain for name in names if name is not None)
        del domains[""]
        return domains

    def remove(self, node: Node, state: NodeState) -> None:
        """A node is lost or released; what it held becomes vacant."""
        self.move(node, state)
        self.wait(node, None)
        self.cordoned.pop(node.name, None)
        self._free(node)

    def _free(self, node: Node) -> None:
        if node.position is not None:
            self.positions[node.position] = None
            self.vacant.add(node.position)
            self.waited_for.discard(node.position)

    # ---- who is to be given no ranks

    def cordon(self, node: Node, cordon: Cordon) -> None:
        """A node is to be given no ranks; if it has some, it keeps them until it is vacated."""
        node.cordon = cordon
        if not node.gone:
            self.cordoned[node.name] = node
        if node.state is NodeState.IDLE:
            self.move(node, NodeState.CORDONED)

    def told_cordons(self) -> tuple[Cordoned, ...]:
        """What the nodes are told of it when a generation is formed."""
        found = ((node.name, node.cordon) for node in self.cordoned.values() if node.cordon is not None)
        return tuple(Cordoned(name, c.reason, c.since, c.quarantined) for name, c in found)

    def adopt_cordons(self, told: Sequence[Cordoned]) -> None:
        """What the nodes were told of it is newer than what is known here; a node may be known from that alone."""
        for node in [n for n in self.cordoned.values() if n.name not in {c.node for c in told}]:
            self.uncordon(node)
        for one in told:
            node = self.nodes.get(one.node) or self.add(one.node)
            if node.cordon is None:
                self.cordon(node, Cordon(reason=one.reason, since=one.since, quarantined=one.quarantined))

    def cordon_of_host(self, hostname: str) -> Cordon | None:
        """Why a host's last node was to be given no ranks, if all that it was are gone."""
        there = [node for node in self.nodes.values() if node.hostname == hostname]
        return there[-1].cordon if there and all(node.gone for node in there) else None

    def uncordon(self, node: Node) -> None:
        """It may hold ranks again, whether it was checked or not."""
        node.cordon = None
        node.unchecked = False
        self.cordoned.pop(node.name, None)
        if node.state is NodeState.CORDONED:
            self.move(node, NodeState.IDLE)

    def vacate(self, node: Node) -> None:
        """A cordoned member, whose workers are stopped, gives its position away. What it holds others may read yet."""
        self.move(node, NodeState.CORDONED)
        self.wait(node, None)
        self._free(node)
        node.position = node.store_port = node.durable = None
        node.formed = 0

    # ---- what is heard of a node

    def arrive(self, node: Node, join: Join) -> None:
        """A node's agent is there, for the first time or again."""
        node.host, node.hostname, node.daemon_port = join.host, join.hostname, join.daemon_port
        node.failure_domain = join.failure_domain
        node.away_since = None
        self.wait(node, None)
        if node.position is not None:
            self.move(node, NodeState.ACTIVE)
        else:
            self.move(node, NodeState.IDLE if node.cordon is None else NodeState.CORDONED)

    def leave(self, node: Node, now: float, until: float) -> None:
        """A node's agent is away; it may come back until then. No generation is formed without its answer."""
        if node.position is not None:
            self.waited_for.add(node.position)
            node.inventory = node.store_port = None
        node.connection = None
        node.away_since = now if node.away_since is None else node.away_since
        self.move(node, NodeState.AWAY)
        self.wait(node, until)

    def leave_all(self, now: float, until: float) -> None:
        """Nobody is connected any more; all have until then to come back, or to come."""
        for node in self.nodes.values():
            if node.state is NodeState.STARTING:
                self.wait(node, max(until, node.deadline or 0.0))
            elif not node.gone:
                self.leave(node, now, until)

    def ask(self, node: Node, until: float) -> None:
        """A member is to stop, and has until then to answer: what it said before counts no more."""
        assert node.position is not None
        node.inventory = node.store_port = node.durable = None
        self.waited_for.add(node.position)
        self.wait(node, until)

    def answer(self, node: Node, stopped: Stopped) -> None:
        """A member has stopped."""
        assert node.position is not None
        node.inventory, node.store_port, node.durable = stopped.inventory, stopped.store_port, stopped.durable
        node.staying = stopped.staying
        self.wait(node, None)
        self.waited_for.discard(node.position)

    # ---- deadlines

    def wait(self, node: Node, until: float | None) -> None:
        """Wait for a node until then; None: there is nothing to wait for."""
        node.deadline = until
        if until is not None:
            heapq.heappush(self._alarms, (until, node.name))

    def postpone(self, seconds: float) -> None:
        """Nobody was listened to for so long: whoever is waited for has that much more time."""
        for node in self.nodes.values():
            if node.deadline is not None:
                self.wait(node, node.deadline + seconds)

    def next_deadline(self) -> float | None:
        """The earliest deadline of any node."""
        while self._alarms:
            when, name = self._alarms[0]
            if self.nodes[name].deadline == when:
                return when
            heapq.heappop(self._alarms)
        return None

    def overdue(self, now: float) -> Node | None:
        """The node whose deadline passed first, if any has."""
        deadline = self.next_deadline()
        return None if deadline is None or deadline > now else self.nodes[self._alarms[0][1]]
