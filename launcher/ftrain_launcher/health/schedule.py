"""Pure: who is measured with whom, in rounds of disjoint pairs, so that no measurement shares a node with another.

The circle method of round-robin tournaments: n - 1 rounds (n, if n is odd) in which everybody meets everybody once. A
sick node drags down another partner in each round, a sick link shows in one round only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def rounds(nodes: Sequence[T], count: int | None = None) -> list[list[tuple[T, T]]]:
    """The first ``count`` rounds, by default all. With an odd number of nodes, one rests in each."""
    circle: list[T | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    found = []
    for turn in range(len(circle) - 1):
        order = [circle[0], *circle[1 + turn :], *circle[1 : 1 + turn]]
        half = len(order) // 2
        pairs = zip(order[:half], reversed(order[half:]), strict=True)
        found.append([(a, b) for a, b in pairs if a is not None and b is not None])
    return list(islice(filter(None, found), count))


def apart(pairs: Sequence[tuple[T, T]], host_of: Callable[[T], Hashable]) -> list[list[tuple[T, T]]]:
    """The same pairs in turns in which no two share a host: emulated nodes would disturb each other."""
    turns: list[tuple[set[Hashable], list[tuple[T, T]]]] = []
    for pair in pairs:
        hosts = {host_of(node) for node in pair}
        turn = next((t for t in turns if not t[0] & hosts), None)
        if turn is None:
            turns.append(turn := (set(), []))
        turn[0].update(hosts)
        turn[1].append(pair)
    return [members for _, members in turns]
