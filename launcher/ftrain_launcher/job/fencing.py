"""Pure: who may decide where a job has several candidates for its controller, and when.

Two things keep two controllers from training the same job at once, whatever the network does:

1. A *term* is one controller's time in office. An agent obeys the highest that it has heard of, and writes it down
   before it says so. Terms are unique: each candidate has numbers of its own.
2. A generation is formed only with a *quorum* of the last one's nodes among its own, who have all stopped for it. Two
   quorums of one generation have a node in common, and that one serves the higher term. Until a generation has trained,
   it may never have begun: then a quorum of the one before is wanted as well (as in joint consensus, Raft, section 6).

A quorum is more than half of the nodes, or half of them with the first: dynamic linear voting (Jajodia and Mutchler,
ACM TODS 15(2), 1990), so that a job of two nodes survives the loss of its second. Quorums follow the membership: a
job may lose one node after another, down to the last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from ftrain_launcher.from_agent import Join
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.to_agent import Form

FIRST_TERM = 1
"""Of the candidate that the job begins with."""

Nodes = tuple[str, ...]


def is_quorum(nodes: Sequence[str], here: Collection[str]) -> bool:
    """Whether those that are here may speak for a generation's nodes, which are in order of position."""
    count = sum(node in here for node in nodes)
    return 2 * count > len(nodes) or (0 < 2 * count == len(nodes) and nodes[0] in here)


def next_term(newest: int, candidate: int, candidates: int) -> int:
    """The lowest term above ``newest`` that is this candidate's; the first one's are 1, 1 + ``candidates``, ..."""
    return newest + 1 + (candidate - newest) % candidates


class Fence:
    """Of whom a quorum is needed for the next generation; without candidates there is nothing to fence."""

    def __init__(self, *, active: bool) -> None:
        self.active = active
        self._since: list[Nodes] = []
        """The nodes of the newest generation that was seen to train, and of those that were formed since."""

    def after(self, before: Generation, nodes: Iterable[str]) -> list[Nodes]:
        """What is needed once a generation of these nodes is formed after another one, until it has trained."""
        now = tuple(nodes)
        return [known for known in self.needed(before) if known != now] + [now] if self.active else []

    def begin(self, quorums: Sequence[Nodes]) -> None:
        """A generation is formed; what was said of it is what `after` found."""
        self._since = list(quorums)

    def needed(self, formed: Generation) -> list[Nodes]:
        """The generations of which a quorum is needed, given the newest that was formed."""
        return [tuple(formed.ranks.nodes)] if formed.ranks.in_training else self._since

    def allows(self, here: Collection[str], formed: Generation) -> bool:
        """Whether these nodes may be the next generation, or most of it."""
        return not self.active or all(is_quorum(nodes, here) for nodes in self.needed(formed))


class Ask(msgspec.Struct, frozen=True):
    """These agents are to promise that they obey nobody of a lower term."""

    term: int
    nodes: Nodes


class Elected(msgspec.Struct, frozen=True):
    """This candidate is the controller."""

    term: int
    stopped: int
    """The newest generation that one of a quorum has stopped for: numbers up to that one may be in use."""
    recalled: Form | None = None
    """The newest generation that was formed, if the copy of the journal does not know of it."""


class Stale(msgspec.Struct, frozen=True):
    """This candidate's copy of the journal ends before a generation that was formed: it must not take over.

    Not until it knows what this node was told of that generation.
    """

    known: int
    formed: int
    node: str


class Election:
    """At a candidate that stands by: the agents that have lost their controller, and came here.

    Only these count: as long as most nodes are well with the controller that they have, nobody replaces it.
    """

    def __init__(self, candidate: int, candidates: int, term: int) -> None:
        """``term``: the newest that this candidate knows of."""
        self._candidate, self._candidates = candidate, candidates
        self._term = term
        self._asked_term = 0
        self._asked: set[str] = set()
        self._here: dict[str, Join] = {}
        self._recalled: Form | None = None
        """The newest generation that a node has told of."""

    def learn(self, form: Form) -> None:
        """A node has told what it took ranks of last."""
        if self._recalled is None or form.generation > self._recalled.generation:
            self._recalled = form

    def come(self, join: Join) -> None:
        """An agent is here, or has promised what it was asked."""
        self._here[join.node] = join
        self._term = max(self._term, join.term)
        if join.term > self._asked_term:  # It has promised another candidate more.
            self._asked_term, self._asked = 0, set()

    def go(self, node: str) -> None:
        """An agent is here no more."""
        self._here.pop(node, None)
        self._asked.discard(node)

    def poll(self, needed: Sequence[Nodes], formed: int) -> Ask | Elected | Stale | None:
        """What follows; ``needed`` and ``formed`` are from this candidate's copy of the journal.

        ``needed`` is empty where nothing was formed: nobody takes over then. That the job is at its end (``needed`` has
        one generation without nodes) may be told by anybody.
        """
        recalled = self._recalled if self._recalled is not None and self._recalled.generation > formed else None
        if recalled is not None:
            needed, formed = recalled.quorums, recalled.generation
        newest = max(self._here.values(), key=lambda join: join.accepted, default=None)
        if newest is not None and newest.accepted > formed:
            return Stale(formed, newest.accepted, newest.node)
        if not needed or not _have(needed, self._here):
            return None
        if not self._asked_term:
            self._asked_term = next_term(self._term, self._candidate, self._candidates)
        promised = {name: join for name, join in self._here.items() if join.term == self._asked_term}
        if _have(needed, promised):
            stopped = max((join.stopped for join in promised.values()), default=0)
            return Elected(self._asked_term, stopped, recalled)
        ask = tuple(name for name in self._here if name not in self._asked and name not in promised)
        self._asked.update(ask)
        return Ask(self._asked_term, ask) if ask else None


def _have(needed: Sequence[Nodes], here: Collection[str]) -> bool:
    return bool(here) and all(not nodes or is_quorum(nodes, here) for nodes in needed)
