"""A sum along a fixed binary tree over numbered leaves: the order of additions depends on the numbers alone.

Node (level, index) is the sum of the leaves from ``index << level`` on, ``1 << level`` of them; it is its left child
plus its right one. A child without leaves is left out, nothing is added for it. So any set of nodes that covers each
leaf once leads to the same total, bit by bit, whoever added up the parts, and whenever: values that come in rising
order need memory for as many sums as the count has binary digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
Node = tuple[int, int]
"""Level (0: a leaf) and index within the level."""


class FixedTree(Generic[T]):
    """Adds values up. ``add(left, right)`` may write into ``left``, which it then returns."""

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self.nodes: dict[Node, T] = {}
        """What has been added up so far."""

    def put(self, node: Node, value: T) -> None:
        """Take in the value of a leaf, or of a whole node; each leaf once."""
        level, index = node
        while (level, index ^ 1) in self.nodes:
            other = self.nodes.pop((level, index ^ 1))
            value = self._add(other, value) if index & 1 else self._add(value, other)
            level, index = level + 1, index >> 1
        self.nodes[level, index] = value

    def total(self) -> T | None:
        """The sum of all that was put in (None: nothing was), after which the tree is empty."""
        nodes, self.nodes = self.nodes, {}
        level = 0
        while len(nodes) > 1:
            for node in sorted(node for node in nodes if node[0] == level):
                value, parent = nodes.pop(node), (level + 1, node[1] >> 1)
                nodes[parent] = self._add(nodes[parent], value) if parent in nodes else value
            level += 1
        return next(iter(nodes.values()), None)


def nodes_of(leaves: Iterable[int]) -> list[Node]:
    """The nodes that are left when these leaves have been put into a tree, in a fixed order."""
    tree: FixedTree[None] = FixedTree(lambda left, right: None)
    for leaf in leaves:
        tree.put((0, leaf), None)
    return sorted(tree.nodes)
