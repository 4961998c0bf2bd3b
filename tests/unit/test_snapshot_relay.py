"""Sums that are handed on: who may ask for which, and what is said when one cannot be made."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ftrain_snapshot.loop import Loop
from ftrain_snapshot.rebuild_plan import Source
from ftrain_snapshot.relay import LINK_SECONDS_MAX, OPEN_MAX, PIECE_STRIPES_MAX, Relays
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(3, 1, 0)
HERE, ASKER = 1, 0


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, bytes, Any]] = []

    def send_bulk(self, message: Any, body: memoryview, *, urgent: bool, on_sent: Any = None) -> None:
        self.sent.append((message, bytes(body), on_sent))


class FakeNode:
    """Position 1 of four; connected to who asks and to position 2."""

    def __init__(self, link: FakeLink) -> None:
        self.now = 0.0
        self.loop = Loop(lambda: self.now)
        self.links: dict[int, Any] = {ASKER: link, 2: FakeLink()}
        self.group = SimpleNamespace(members=(0, 1, 2, 3))
        self.membership = SimpleNamespace(restore=SNAPSHOT)
        self.position = HERE

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn()


class FakeGather:
    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.given_back: list[memoryview] = []

    def begin(self, order: Any) -> None:
        self.orders.append(order)

    def give_back(self, data: memoryview) -> None:
        self.given_back.append(data)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def gather() -> FakeGather:
    return FakeGather()


@pytest.fixture
def node(link: FakeLink) -> Iterator[FakeNode]:
    made = FakeNode(link)
    yield made
    made.loop.close()


@pytest.fixture
def relays(node: FakeNode, gather: FakeGather) -> Relays:
    return Relays(node, gather)  # type: ignore[arg-type]


def ask(*chain: int, stripes: int = 2) -> Fetch:
    return Fetch(SNAPSHOT, 0, 2, 10, 10 + stripes, 7, shares=tuple(Source(position, 5) for position in chain))


def test_a_sum_goes_to_its_asker_and_its_memory_back(relays: Relays, link: FakeLink, gather: FakeGather) -> None:
    relays.answer(ASKER, ask(HERE, 2, 3))
    (order,) = gather.orders
    assert order.relayed
    assert not order.checked
    data = memoryview(bytearray(b"sum"))
    order.on_stripe(10, data)
    ((message, body, on_sent),) = link.sent
    assert (message, body) == (Chunk(SNAPSHOT, 0, 2, 10, 0, 7), b"sum")
    assert gather.given_back == []
    on_sent()
    assert gather.given_back == [data]


@pytest.mark.parametrize(
    "fetch",
    [
        ask(2, HERE),  # not from here
        ask(HERE),  # no sum
        ask(HERE, 2, 2),
        ask(HERE, ASKER),
        ask(HERE, 9),
        ask(HERE, 2, stripes=0),
        ask(HERE, 2, stripes=PIECE_STRIPES_MAX + 1),
    ],
    ids=str,
)
def test_what_is_no_chain_is_refused(relays: Relays, link: FakeLink, gather: FakeGather, fetch: Fetch) -> None:
    relays.answer(ASKER, fetch)
    assert gather.orders == []
    ((message, _, _),) = link.sent
    assert isinstance(message, FetchFailed)
    assert message.attempt == 7


def test_there_is_a_bound_and_what_ends_makes_room(relays: Relays, link: FakeLink, gather: FakeGather) -> None:
    for _ in range(OPEN_MAX + 1):
        relays.answer(ASKER, ask(HERE, 2))
    assert len(gather.orders) == OPEN_MAX
    assert "as much as it can" in link.sent[-1][0].reason
    gather.orders[0].on_done()
    gather.orders[1].on_failed(2, None, silent=True)
    assert link.sent[-1][0] == FetchFailed(7, "position 2 did not give its part of a sum")
    for _ in range(3):
        relays.answer(ASKER, ask(HERE, 2))
    assert len(gather.orders) == OPEN_MAX + 2


def test_a_sum_waits_for_a_link_that_is_only_coming_up(relays: Relays, gather: FakeGather, node: FakeNode) -> None:
    relays.answer(ASKER, ask(HERE, 3, 2))
    relays.on_link(2)
    node.sleep(LINK_SECONDS_MAX / 2)
    assert gather.orders == []
    relays.on_link(3)
    assert len(gather.orders) == 1
    node.sleep(LINK_SECONDS_MAX)
    assert len(gather.orders) == 1


def test_a_sum_does_not_wait_for_long(relays: Relays, gather: FakeGather, node: FakeNode) -> None:
    relays.answer(ASKER, ask(HERE, 3))
    node.sleep(LINK_SECONDS_MAX + 0.01)
    assert len(gather.orders) == 1  # which says that there is no link


def test_what_waits_for_a_link_ends_with_its_generation(relays: Relays, gather: FakeGather, node: FakeNode) -> None:
    relays.answer(ASKER, ask(HERE, 3))
    relays.close()
    node.sleep(LINK_SECONDS_MAX + 0.01)
    assert gather.orders == []
