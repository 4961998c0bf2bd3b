"""The generation that is announced: its members are asked to stop, and once all that are left have, it is decided.

What comes of it is for the coordinator to carry out: it begins, it is announced anew, or the job ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftrain_launcher.causes import Sign
from ftrain_launcher.durable import SEARCH_SECONDS_MAX, DurableTier
from ftrain_launcher.events import JobConfig
from ftrain_launcher.formation import Start
from ftrain_launcher.generation import Generation
from ftrain_launcher.history import History
from ftrain_launcher.membership import Node, NodeState
from ftrain_launcher.messages import Form, Stop, Stopped
from ftrain_launcher.orders import Orders
from ftrain_launcher.policy import EXIT_USAGE, Action
from ftrain_launcher.quarantine import Quarantine
from ftrain_launcher.roster import Roster
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.messages import Peer
from ftrain_snapshot.placement import Groups, groups

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
    ) -> None:
        self.number = 0
        """The newest generation that was announced."""
        self.groups: Groups = ()
        """The positions that are coded together; from the first generation on they never change."""
        self._config = config
        self._parity = config.work.parity
        self._roster = roster
        self._orders = orders
        self._durable = durable
        self._history = history
        self._quarantine = quarantine

    # ---- who has stopped

    def announce(self, now: float) -> None:
        """The next one; every member, also one that is away, must say that it has left the old ones."""
        self.number += 1
        for node in self._roster.members():
            if node.state is NodeState.ACTIVE:
                self.ask(node, now)
            elif node.position is not None:
                self._roster.waited_for.add(node.position)

    def ask(self, node: Node, now: float, *, search: bool = False) -> None:
        """Have a member stop, and say what it holds; ``search``: on storage as well."""
        self._roster.ask(node, now + self._config.stop_timeout_seconds + SEARCH_SECONDS_MAX * search)
        self._orders.send(node, Stop(self.number, host_store=node.position == 0, search_durable=search))

    def fill(self, now: float) -> None:
        """Give vacant positions to idle nodes; they have to say what they hold, too."""
        for node in self._roster.fill(self.groups):
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
            return None
        first = self._roster.members()[0] if not self._roster.vacant else None
        in_memory = self._start_in_memory(formed)
        start = self._durable.start(in_memory, first.durable if first is not None else None)
        judgement = self._history.judge(start, now)
        self._orders.announce(judgement.news)
        if not judgement.action.resume:
            return judgement.action
        self._quarantine.judge(self._history.log.forming, now)
        if first is None or self._moves(formed, in_memory, now):
            return None
        if start.undecided:
            self.ask(first, now, search=True)
            return None
        if first.store_port is None:
            return Sign(kind="form_failed", node=first.name, time=now, reason="its store did not start")
        return self._form(start, formed.ranks.nodes, first.store_port, now)

    def _start_in_memory(self, formed: Generation, without: Sequence[Node] = ()) -> Start:
        """``without``: as it would be if these were not here."""
        grouping = self.groups or groups(self._config.nodes, self._parity)  # Nothing was coded yet.
        members = [node for node in self._roster.members() if node not in without]
        demotions, keep = self._history.demotions, not without
        return formed.next_start(members, groups=grouping, parity=self._parity, demotions=demotions, keep=keep)

    def _moves(self, formed: Generation, start: Start, now: float) -> bool:
        """Cordoned members, who have stopped, give their positions to idle nodes; whether any does."""
        if not self._roster.cordoned or self._roster.vacant:
            return False
        left = self._quarantine.vacate(start, lambda nodes: self._start_in_memory(formed, nodes), now)
        self.fill(now)
        return bool(left)

    def _form(self, start: Start, before: Sequence[str], store_port: int, now: float) -> Generation | Action:
        """Who is coded with whom is decided once, if the nodes' labels allow it."""
        members = self._roster.members()
        try:
            self.groups = self.groups or groups([n.failure_domain for n in members], self._parity)
        except PlacementImpossible as error:
            return Action(False, str(error), EXIT_USAGE)
        self._durable.started(start)
        self._history.resumed(start, now, _changes(before, [n.name for n in members]))
        form = Form(
            generation=self.number,
            position=0,
            peers=tuple(Peer(p, n.name, n.host, n.daemon_port) for p, n in enumerate(members)),
            store_host=members[0].host,
            store_port=store_port,
            restore=start.restore,
            groups=self.groups,
            durable_start=start.durable,
            durable_newest=self._durable.newest,
            work=self._config.work,
        )
        return Generation(start, form, before)


def _changes(before: Sequence[str], now: Sequence[str]) -> str:
    """Who holds positions that others held in the generation before."""
    moved = [(old, new) for old, new in zip(before, now, strict=False) if old != new]
    return ", ".join(f"{new} takes over from {old}" for old, new in moved) or "all ranks restart on the same nodes"
