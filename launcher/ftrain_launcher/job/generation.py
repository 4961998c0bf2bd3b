"""Pure: the newest generation that was formed, what its gate said since, and what is left of it for the next one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ftrain_launcher.from_agent import Join
from ftrain_launcher.job.causes import Sign
from ftrain_launcher.job.demotion import Demotion
from ftrain_launcher.job.formation import Past, Start, choose_start
from ftrain_launcher.job.membership import Node
from ftrain_launcher.job.ranks import Ranks
from ftrain_launcher.job.worlds import Worlds
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.status import Levels


def recalled(form: Form) -> Generation:
    """The generation that a node was told of, as far as it knows: what its gate has said since will be said again."""
    seen = [None if o is None else msgspec.structs.replace(o, position=-1) for o in (form.origin, form.older)]
    origin, older = seen
    restore = origin.snapshot if origin is not None else form.restore
    start = Start(
        restore,
        0,
        Levels() if restore is None else Levels(sealed=restore.version),
        protected=restore is not None or form.durable_start is not None,
        older=None if older is None else older.snapshot,
        durable=form.durable_start,
    )
    first = msgspec.structs.replace(form, position=0, origin=origin, older=older)
    return Generation(start, first, form.quorums[-2] if len(form.quorums) > 1 else ())


class Generation:
    """Before the first one: number 0, without ranks."""

    def __init__(self, start: Start | None = None, form: Form | None = None, before: Sequence[str] = ()) -> None:
        self.start = start or Start(None, 0)
        self.levels = self.start.levels
        """What its gate reported last."""
        self.form = form
        """What its first node was sent; the others' differ in the position alone."""
        self.before = tuple(before)
        """The nodes of the generation that was formed before it, in order of position."""
        self.number = form.generation if form else 0
        self.ranks = Ranks([peer.node for peer in form.peers], form.work.nproc_per_node) if form else Ranks()
        self.ended: list[Sign] = []
        """Of ranks that ended without an error. Where others break off for want of them, they were too soon."""
        self.unprotected_since: float | None = None
        """While nothing is protected: when the first snapshot was sealed; infinite: people have been told."""
        origins = (form.origin, form.older) if form else ()
        self.described: dict[str, int] = {}
        """Since which snapshot other numbers of ranks can take over what a node's ranks capture; without those whose
        ranks have said that none can, or nothing yet."""
        self._held = [{p.node: p.position for p in reversed(o.holders)} if o else {} for o in origins]
        """What each node holds of the worlds that it starts from: its position there."""
        self._judged: Start | None = None
        """Where the next one could start, when last all that are left had answered."""

    @property
    def parity(self) -> int:
        """Lost nodes of a group that it survives."""
        return self.form.work.parity if self.form else 0

    @property
    def safe(self) -> int | None:
        """The newest snapshot of its own that is as safe as any will be."""
        return self.levels.protected if self.parity else self.levels.sealed

    @property
    def is_captured(self) -> bool:
        """Whether it goes on from a snapshot of its own size, or has one that is safe."""
        origin = None if self.form is None else self.form.origin
        return origin is None or (self.safe is not None and self.safe > origin.snapshot.version)

    @property
    def is_described(self) -> bool:
        """Whether all nodes have said that other numbers of ranks can take that snapshot over."""
        safe = self.safe
        since = [self.described.get(node) for node in self.ranks.nodes]
        return safe is not None and all(version is not None and version <= safe for version in since)

    @property
    def news(self) -> list[str]:
        """What people are told when it begins."""
        where = "from the beginning" if self.start.version is None else f"after step {self.start.version}"
        if self.form is not None and (self.form.origin or self.start.is_of_other_ranks(len(self.ranks.by_number))):
            where += ", re-sharded"
        size = f"{len(self.ranks.nodes)} nodes, {len(self.ranks.by_number)} ranks"
        news = [f"generation {self.number}: {size}, {where}{self.start.note}"]
        if self.start.durable is not None and self.number == 1:
            news.append("to begin anew instead, give --durable another URL")
        return news

    def form_for(self, position: int) -> Form:
        """The message for the node at a position."""
        assert self.form is not None
        return self._form_of(self.form, position, self.form.peers[position].node)

    def form_without_ranks(self, node: str) -> Form | None:
        """The message for a node that has no position, but holds something of the origin; None: it does not."""
        return self._form_of(self.form, -1, node) if self.form is not None and node in self._held[0] else None

    def needs(self, node: str) -> bool:
        """Whether what a node holds of other worlds may still be wanted."""
        return any(node in held for held in self._held)

    def reads(self, node: str) -> bool:
        """Whether it may yet have to be read again what a node holds of the world before."""
        return node in self._held[0] and not self.is_captured

    def _form_of(self, form: Form, position: int, node: str) -> Form:
        known = zip((form.origin, form.older), self._held, strict=True)
        origin, older = (o and msgspec.structs.replace(o, position=held.get(node, -1)) for o, held in known)
        return msgspec.structs.replace(form, position=position, origin=origin, older=older)

    def lacks(self, position: int, join: Join) -> list[int]:
        """The ranks that the node at a position should run, and does not, as its agent says that came back."""
        if join.forming and join.accepted == self.number:
            return []
        here = {r.rank for r in join.ranks} if join.generation == self.number else set()
        return [r.rank for r in self.ranks.of(position) if not r.finished and r.rank not in here]

    def is_unknown_to(self, position: int, join: Join) -> bool:
        """Whether the node at a position, whose agent came back, stopped for this generation but never got `Form`."""
        ran = any(r.restored or r.stepped for r in self.ranks.of(position))
        return join.stopped == self.number > max(join.generation, join.accepted) and not ran

    def _sealed(self, members: Sequence[Node]) -> tuple[int, ...]:
        """What its gate says, which ran at position 0, if that node is left."""
        gate = next((n for n in members if self.ranks.nodes[:1] == (n.name,) and n.formed == self.number), None)
        sealed = gate.inventory.sealed if gate is not None and gate.inventory is not None else ()
        return sealed if len(sealed) == len(self.ranks.nodes) else ()

    def next_start(
        self, members: Sequence[Node], worlds: Worlds, *, stays: bool, demotions: Sequence[Demotion], keep: bool = True
    ) -> Start:
        """Where the next one starts, as far as memory is concerned; all of ``members`` have said what they hold.

        ``stays``: in the same world. ``keep``: those are all that are left, and that they were will be remembered.
        """
        here = {n.name for n in members if n.formed == self.number}
        survivors = frozenset(p for p, name in enumerate(self.ranks.nodes) if name in here)
        past = Past(
            generation=self.number,
            restore=self.start.restore,
            levels=self.levels,
            protected=self.start.protected,
            nodes=self.ranks.nodes,
            survivors=survivors,
            sealed=self._sealed(members),
            judged=self._judged,
            demotions=demotions,
        )
        start = choose_start(past, worlds.held(members, survivors, stays=stays))
        if keep:
            self._judged = start
        return start
