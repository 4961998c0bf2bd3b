"""Nodes that are to be given no ranks: cordoned by an operator, or taken out by the policy.

One that holds ranks gives them away when a generation is formed, whatever it is formed for, if another node is there
to take them and nothing but the snapshot in flight is lost by it; who has stopped says what it holds, so that is known
and not guessed. Where the ranks are to be moved in any case, a generation is formed for that alone: once all ranks
have stopped after one step, which is protected (`halting.py`), or at once, if anything of the present generation is
protected, so that all of the node's bytes are on other nodes too. A cordoned node stays connected. If the job would
lack a node, it takes those back that only the policy has taken out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.job.causes import DRAINED, Sign
from ftrain_launcher.job.events import CordonNode, Detect, JobConfig, Leave, NodeChecked, UncordonNode
from ftrain_launcher.job.formation import Start
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.history import History
from ftrain_launcher.job.incidents import Incident
from ftrain_launcher.job.membership import Cordon, Health, Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import isolate, isolations_max
from ftrain_launcher.job.recruiting import Recruiting
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.job.strikes import STRIKES_SECONDS, Strikes, strikes


class Quarantine:
    """One job's; all that it uses is the coordinator's."""

    def __init__(
        self, config: JobConfig, roster: Roster, recruiting: Recruiting, orders: Orders, history: History
    ) -> None:
        self._leavers: list[Node] = []
        """Hosts that are to be switched off."""
        self._isolations: list[float] = []
        """When the policy took out nodes, within the last hour."""
        self._left_in = 0
        """The number of the last incident in which members gave their positions away."""
        self._config = config
        self._roster = roster
        self._recruiting = recruiting
        self._orders = orders
        self._history = history

    # ---- for people

    def strikes(self, now: float) -> Strikes:
        """What the last hour says against each machine, by the names that `machines` has."""
        return strikes(self._history.log.entries, self.machines(), now)

    def machines(self) -> dict[str, str]:
        """Where each node runs: a host may come back as another node. An emulated one is its own machine."""
        nodes = self._roster.nodes.values()
        here = Counter(node.hostname for node in nodes if not node.gone)
        as_hosts = self._config.hosts
        return {n.name: n.hostname if as_hosts and n.hostname and here[n.hostname] < 2 else n.name for n in nodes}

    def isolations(self, now: float) -> int:
        """How many nodes the policy has taken out within the last hour."""
        return sum(now - then < STRIKES_SECONDS for then in self._isolations)

    @property
    def moves(self) -> bool:
        """A member is to give its ranks away: each snapshot that is protected counts."""
        return bool(self._leaving(Leave.NOW))

    # ---- what operators want

    def take(self, event: CordonNode | UncordonNode, now: float) -> None:
        """What an operator asks for; of no matter if the node is gone meanwhile."""
        node = self._roster.nodes.get(event.node)
        if node is None or node.gone or node.state is NodeState.STARTING:
            return
        if isinstance(event, CordonNode):
            self._cordon(node, event, now)
        elif node.cordon is not None:
            self._uncordon(node, event, node.cordon)

    def _cordon(self, node: Node, event: CordonNode, now: float) -> None:
        leaves = event.leave is not Leave.AT_NEXT_FAULT and node.position is not None
        stays = leaves and not self._config.work.parity
        leave = Leave.AT_NEXT_FAULT if stays else event.leave
        self._roster.cordon(node, Cordon(reason=event.reason, since=now, leave=leave))
        why = "; without parity nobody else has what it holds: it keeps its ranks" if stays else ""
        self._orders.announce([f"{node.name} is cordoned{_because(event.reason)}{why}"])

    def let_leave(self, name: str, reason: str, now: float) -> None:
        """A host is to be switched off soon: it gives its ranks away if it can, and is let go then."""
        node = self._roster.nodes.get(name)
        if node is not None and not node.gone and node not in self._leavers:
            self._leavers.append(node)
            self.take(CordonNode(name, reason, Leave.SOON), now)

    def let_go(self, formed: Generation) -> None:
        """While the job runs: who is to leave, and holds neither ranks nor what they began from, is not needed."""
        for node in [n for n in self._leavers if n.gone or (n.position is None and not formed.reads(n.name))]:
            self._leavers.remove(node)
            if not node.gone:
                self._roster.remove(node, NodeState.RELEASED)
                self._orders.reap(node)

    def _uncordon(self, node: Node, event: UncordonNode, cordon: Cordon) -> None:
        """A member that only was to leave needs no health check."""
        if event.force or (node.position is not None and not cordon.quarantined):
            self._let_in(node, "as it was asked for")
        else:
            node.cordon = msgspec.structs.replace(cordon, returning=True)
            self._orders.check([node.name])

    def arrived(self, node: Node) -> None:
        """Its agent is connected again: what was to be checked may not have been."""
        if node.cordon is not None and node.cordon.returning:
            self._orders.check([node.name])

    def checked(self, event: NodeChecked, now: float) -> None:
        """A health check has ended."""
        node = self._roster.nodes.get(event.node)
        if node is None or node.gone:
            return
        node.health = Health(event.ok, event.reason, now)
        if node.cordon is None or not node.cordon.returning:
            return
        if event.ok:
            self._let_in(node, "it passed its health check")
        else:
            node.cordon = msgspec.structs.replace(node.cordon, returning=False)
            self._orders.announce([f"{node.name} stays cordoned: its health check failed{_because(event.reason)}"])

    def _let_in(self, node: Node, why: str) -> None:
        self._roster.uncordon(node)
        self._orders.announce([f"{node.name} may hold ranks again: {why}"])

    # ---- what the policy wants

    def judge(self, incident: Incident | None, now: float) -> None:
        """Take out the nodes that are at fault for an incident once too often."""
        cause = incident.cause if incident is not None else None
        if incident is None or cause is None or not self._acts:
            return
        found, machines = self.strikes(now), self.machines()
        for machine in dict.fromkeys(machines[name] for name in cause.nodes if name in machines):
            node = self._node_at([name for name, where in machines.items() if where == machine], cause.nodes)
            reason = isolate(cause, machine, found)
            if node is not None and node.cordon is None and reason:
                self.take_out(node, reason, incident, now, wait=cause.kind != Kind.COMMUNICATION_HANG)

    @property
    def _acts(self) -> bool:
        return self._config.detect is Detect.ACT and self._config.work.parity > 0

    def _node_at(self, names: Sequence[str], suspects: Sequence[str]) -> Node | None:
        """Of all nodes that a machine was, the one that runs there now; of a host, at least the last one."""
        there = [self._roster.nodes[name] for name in names]
        named = [n for n in there if n.name in suspects and not n.gone]
        alive = [n for n in there if not n.gone]
        found = named or alive or (there if self._config.hosts else [])
        return found[-1] if found else None

    def take_out(self, node: Node, reason: str, incident: Incident, now: float, *, wait: bool = True) -> None:
        """Cordon a node, if the budget allows it. ``wait``: it may keep its ranks until that costs nothing."""
        if not self._acts or node.cordon is not None:
            return
        most = isolations_max(self._config.nodes)
        self._isolations = [then for then in self._isolations if now - then < STRIKES_SECONDS]
        if len(self._isolations) >= most:
            decision = f"{node.name} stays ({reason}): {most} nodes were taken out within an hour already"
        else:
            self._isolations.append(now)
            leave = Leave.SOON if wait else Leave.NOW
            self._roster.cordon(node, Cordon(reason=reason, since=now, quarantined=True, leave=leave))
            decision = f"{node.name} is quarantined: {reason}"
            if node.position is not None and not node.gone and not self._room():
                decision += "; it keeps its ranks until another node is there"
        if incident.decide(decision):
            self._orders.announce([decision])

    def readmit(self) -> bool:
        """Where a position can be given to nobody else, take back what the policy has taken out; whether it did."""
        found = False
        for node in self._roster.in_state(NodeState.CORDONED) if self._roster.missing() else ():
            if self._roster.missing() and node.cordon is not None and node.cordon.quarantined:
                self._let_in(node, "nobody else is there")
                found = True
        return found

    # ---- ranks are moved

    def due(self, formed: Generation, now: float) -> Sign | None:
        """While the job trains: whether a generation is wanted to move ranks alone, once all have been halted."""
        return self._move(self._leaving(Leave.SOON), formed, now)

    def due_now(self, formed: Generation, now: float) -> Sign | None:
        """Whether one is to be formed at once: what is protected of the present one is enough."""
        version, protected = formed.start.version, formed.levels.protected
        is_newer = protected is not None and (version is None or protected > version)
        return self._move(self._leaving(Leave.NOW), formed, now) if is_newer else None

    def _leaving(self, leave: Leave) -> list[Node]:
        members = (node for node in self._roster.cordoned.values() if node.state is NodeState.ACTIVE)
        return [node for node in members if node.cordon is not None and node.cordon.leave is leave]

    def _move(self, leaving: Sequence[Node], formed: Generation, now: float) -> Sign | None:
        """The first of them goes, if another node is there; else one is asked for."""
        if not leaving or not formed.ranks.in_training:
            return None
        first = min(leaving, key=_since)
        waits = now < _since(first) + self._config.shrink_after_seconds
        if not (self._roster.ready() if waits else self._room()):
            self._recruiting.replace_spares(now, wanted=len(leaving))
            return None
        assert first.cordon is not None
        return Sign(kind=DRAINED, node=first.name, time=now, reason=first.cordon.reason)

    @property
    def hindrance(self) -> str:
        """What keeps a member that is to leave from leaving; empty: nothing."""
        sizes = self._roster.sizes
        why = f" ({sizes.reason})" if sizes.is_kept else ""
        return "" if self._room() else f"no other node is there to take them{why}"

    def _room(self) -> int:
        """How many members may leave: others can take their positions, or the job goes on with fewer."""
        return self._roster.ready() + max(0, self._roster.superfluous())

    def vacate(self, start: Start, start_without: Callable[[Sequence[Node]], Start]) -> list[Node]:
        """Once all members have stopped: those that give their positions to idle nodes, or up, as far as can be.

        ``start`` is where the job goes on if all of them stay.
        """
        members = [node for node in self._roster.cordoned.values() if node.position is not None]
        leaving: list[Node] = []
        for node in sorted(members, key=_since):
            if len(leaving) == self._room():
                break
            assert node.cordon is not None
            soon = node.cordon.leave is Leave.SOON
            if _costs_little(start, start_without([*leaving, node]), nothing=soon):
                leaving.append(node)
            elif not leaving and not self._some_left and (not soon or self._is_planned):
                self._stays(node, node.cordon)
        for node in leaving:
            self._roster.vacate(node)
        if leaving and (incident := self._history.log.forming) is not None:
            self._left_in = incident.number
        return leaving

    @property
    def _some_left(self) -> bool:
        """Others have left in the generation that is being formed: who cannot go with them may go after them."""
        incident = self._history.log.forming
        return incident is not None and incident.number == self._left_in

    @property
    def _is_planned(self) -> bool:
        """The generation that is being formed is formed for nothing but to move ranks."""
        incident = self._history.log.forming
        return incident is not None and all(sign.kind == DRAINED for sign in incident.signs)

    def _stays(self, node: Node, cordon: Cordon) -> None:
        """It is not tried for ever: the next fault is the next occasion."""
        if cordon.leave is not Leave.AT_NEXT_FAULT:
            node.cordon = msgspec.structs.replace(cordon, leave=Leave.AT_NEXT_FAULT)
            self._orders.announce([f"{node.name} keeps its ranks: without it too little of the state would be left"])


def _since(node: Node) -> float:
    assert node.cordon is not None
    return node.cordon.since


def _costs_little(start: Start, without: Start, *, nothing: bool) -> bool:
    """Whether the job can start without some nodes, and from where; ``nothing``: from the same snapshot."""
    if without.lost or (nothing and without.restore != start.restore):
        return False
    return without.restore is not None or start.restore is None


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
