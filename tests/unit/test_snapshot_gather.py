"""What is fetched from others, and this node's own part of it: how it is summed up, and who is to blame."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.gather import SOURCE_TIMEOUT_SECONDS, Gather, Order
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.rebuild_plan import Piece, Source
from ftrain_snapshot.wire import Chunk, Fetch
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(3, 1, 0)
HERE, NEAR, FAR = 1, 2, 3
PARTS = {HERE: b"\x01\x02\x03\x04", NEAR: b"\x10\x20\x30\x40", FAR: b"\x05\x06\x07"}
"""The last one is shorter: the end of a unit."""
SUM = bytes(a ^ b ^ c for a, b, c in zip(PARTS[HERE], PARTS[NEAR], PARTS[FAR] + b"\0", strict=True))


class FakeLink:
    def __init__(self) -> None:
        self.asked: list[Fetch] = []

    def send(self, message: Any) -> None:
        self.asked.append(message)


class FakeOrder(Order):
    """The sum of all three's parts of stripe 5."""

    def __init__(self, *, checked: bool) -> None:
        sources = tuple(Source(position, 1) for position in PARTS)
        super().__init__(SNAPSHOT, Piece(0, 2, 5, 6, sources), urgent=False, checked=checked)
        self.got: list[bytes] = []
        self.blamed: list[tuple[int, bool]] = []

    def length(self, stripe: int) -> int:
        return len(SUM)

    def expected(self, position: int, stripe: int) -> int | None:
        return None

    def on_stripe(self, stripe: int, data: memoryview) -> None:
        self.got.append(bytes(data))

    def on_done(self) -> None:
        self.got.append(b"done")

    def on_failed(self, source: int, damaged: int | None, *, silent: bool) -> None:
        self.blamed.append((source, silent))


class FakeNode:
    """Position 1; connected to both others."""

    position = HERE

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = Loop(lambda: self.now)
        self.links = {NEAR: FakeLink(), FAR: FakeLink()}
        self.codec = codec_for(1, "numpy")
        self.store = SimpleNamespace(my_part=lambda *_: (memoryview(PARTS[HERE]), 0))

    def hurry(self) -> None:
        """Nobody waits."""


@pytest.fixture
def node() -> Iterator[FakeNode]:
    made = FakeNode()
    yield made
    made.loop.close()


@pytest.fixture
def gather(node: FakeNode) -> Gather:
    return Gather(node)  # type: ignore[arg-type]


def give(gather: Gather, node: FakeNode, position: int) -> None:
    (fetch,) = node.links[position].asked
    gather.on_chunk(position, Chunk(SNAPSHOT, 0, 2, 5, 0, fetch.attempt), memoryview(PARTS[position]))


@pytest.mark.parametrize("order", [(NEAR, FAR), (FAR, NEAR)], ids=str)
def test_parts_are_summed_up_in_whatever_order_they_come(gather: Gather, node: FakeNode, order: Any) -> None:
    asked = FakeOrder(checked=False)
    gather.begin(asked)
    for position in order:
        assert asked.got == []
        give(gather, node, position)
    assert asked.got == [SUM, b"done"]


def test_who_is_silent_is_to_blame_and_not_this_node(gather: Gather, node: FakeNode) -> None:
    asked = FakeOrder(checked=False)
    gather.begin(asked)
    give(gather, node, FAR)
    node.now += SOURCE_TIMEOUT_SECONDS
    node.loop.turn()
    assert asked.blamed == [(NEAR, True)]


def test_this_nodes_own_part_is_looked_at_where_sources_are(gather: Gather) -> None:
    asked = FakeOrder(checked=True)
    gather.begin(asked)
    assert asked.blamed == [(HERE, False)]  # its checksum is not 0
