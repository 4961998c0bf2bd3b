"""Pure: who waits for whom, drawn in text.

    ranks 0-2 --all_reduce #1042 'tp' 0.8 s--> rank 3
    rank 7 --all_reduce #311 'dp' 0.7 s--> rank 3
      ranks 4-6 --all_reduce #1042 'tp' 0.6 s--> rank 7

Ranks that wait in the same operation for the same ranks are one line; below it, deeper by one, stand those that
wait for them in turn. Many groups of one kind (the tensor-parallel groups of 1,000 ranks) are one line where what they
wait for waits further in one line, or not at all; groups with names of their own, only where the lines are too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ftrain_launcher.detect.verdict import Wait
from ftrain_launcher.detect.wording import label, name_ranks

LINES_MAX = 16
_INDENT = "  "
_CIRCLE = "they wait for each other in a circle: none of them can go on"


class _Edge(msgspec.Struct):
    communicators: set[str]
    op: str
    seq: int
    waiters: set[int]
    waited_for: set[int]
    seconds: float
    groups: int = 1
    """So many groups of ranks, each of which waits for itself."""


def draw(waits: Iterable[Wait]) -> list[str]:
    """The lines of the graph, the longest waiting first; at most ``LINES_MAX``, and one that counts the rest."""
    edges = _merged(_edges(waits), by_name=True)
    if len(edges) > LINES_MAX:
        edges = _merged(edges, by_name=False)
    lines, circle = _lines(edges)
    if len(lines) > LINES_MAX:
        lines[LINES_MAX:] = [f"... and {len(lines) - LINES_MAX} more"]
    return [*lines, _CIRCLE] if circle else lines


def _edges(waits: Iterable[Wait]) -> list[_Edge]:
    edges: dict[tuple[object, ...], _Edge] = {}
    for wait in waits:
        key = (wait.communicator, wait.op, wait.seq, frozenset(wait.waited_for))
        called = label(wait.communicator, wait.description)
        edge = edges.setdefault(key, _Edge({called}, wait.op, wait.seq, set(), set(wait.waited_for), wait.seconds))
        edge.waiters.add(wait.waiter)
        edge.seconds = max(edge.seconds, wait.seconds)
    return sorted(edges.values(), key=lambda edge: (-edge.seconds, min(edge.waiters)))


def _merged(edges: list[_Edge], *, by_name: bool) -> list[_Edge]:
    """One line for groups of one kind; what they wait for is merged first, so each link of a chain takes a round."""
    while True:
        merged: dict[tuple[object, ...], _Edge] = {}
        for edge, end in zip(edges, _ends(edges), strict=True):
            name = min(edge.communicators) if by_name else ""
            into = merged.setdefault((name, edge.op, edge.seq, bool(edge.waited_for), end), edge)
            if into is not edge:
                into.communicators |= edge.communicators
                into.waiters |= edge.waiters
                into.waited_for |= edge.waited_for
                into.seconds = max(into.seconds, edge.seconds)
                into.groups += edge.groups
        if len(merged) == len(edges):
            return edges
        edges = list(merged.values())


def _ends(edges: Sequence[_Edge]) -> list[tuple[int, bool]]:
    """Where each edge leads: into another, to ranks that do not wait, or, of some of each, to a place of its own."""
    waiters = set().union(*(edge.waiters for edge in edges))
    ends = []
    for index, (edge, after) in enumerate(zip(edges, _following(edges), strict=True)):
        is_mixed = after is None and not edge.waited_for.isdisjoint(waiters)
        ends.append((index if is_mixed else -1 if after is None else after, is_mixed))
    return ends


def _following(edges: Sequence[_Edge]) -> list[int | None]:
    """For each edge the one in which all that it waits for wait in turn; None: there is none, or more than one."""
    by_waiter: dict[int, set[int]] = {}
    for index, edge in enumerate(edges):
        for rank in edge.waiters:
            by_waiter.setdefault(rank, set()).add(index)
    found: list[int | None] = []
    for edge in edges:
        candidates = set().union(*(by_waiter.get(rank, {-1}) for rank in edge.waited_for))
        only = candidates.pop() if len(candidates) == 1 else -1
        found.append(None if only == -1 else only)
    return found


def _lines(edges: Sequence[_Edge]) -> tuple[list[str], bool]:
    following = _following(edges)
    waiting_for: dict[int | None, list[int]] = {}
    for index, after in enumerate(following):
        waiting_for.setdefault(after, []).append(index)
    lines: list[str] = []
    drawn: set[int] = set()

    def draw_from(root: int) -> None:
        stack = [(root, 0)]
        while stack:
            index, depth = stack.pop()
            if index not in drawn:
                drawn.add(index)
                lines.append(_INDENT * depth + _line(edges[index]))
                stack += [(n, depth + 1) for n in reversed(waiting_for.get(index, []))]

    for root in waiting_for.get(None, []):
        draw_from(root)
    circle = len(drawn) < len(edges)  # What no root leads to is a circle, or hangs on one.
    for index in range(len(edges)):
        draw_from(index)
    return lines, circle


def _line(edge: _Edge) -> str:
    target = name_ranks(edge.waited_for) if edge.waited_for else "nobody: all have entered"
    groups = f" ({edge.groups} groups)" if edge.groups > 1 else ""
    names = sorted(edge.communicators)
    where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
    return f"{name_ranks(edge.waiters)} --{edge.op} #{edge.seq} {where} {edge.seconds:.1f} s--> {target}{groups}"
