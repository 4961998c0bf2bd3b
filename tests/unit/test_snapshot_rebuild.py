"""Bringing chunks back: whoever waits for it is told when the last one is there, whatever else is under way then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.gather import Order
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.losses import Losses, Put
from ftrain_snapshot.manifest import CHUNK_BYTES, Header, UnitDescriptor, checksum
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.node import Node
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.rebuild import Rebuild
from ftrain_snapshot.store import Store
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(3, 1, 0)
PARITY = (0, 0, 0)
"""(lane, rotation, stripe): position 0 keeps the parity of rotation 0."""
BYTES = memoryview(b"\5" * 100)


class FakeGather:
    def __init__(self) -> None:
        self.orders: list[Order] = []

    def begin(self, order: Order) -> None:
        self.orders.append(order)


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """Position 0 of three, with a protected snapshot whose parity is damaged."""
    peers = tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(3))
    membership = Membership(2, 0, 1, 1, peers, SNAPSHOT)
    store, codec = Store(tmp_path), codec_for(1, "numpy")
    store.enter(membership)
    catalog = store.begin(SNAPSHOT, 1)
    assert catalog is not None
    for position in range(3):
        header = Header(SNAPSHOT, position, 3, len(BYTES), 0, 0, 0)
        catalog.put(UnitDescriptor(position, 0, header, checksum(BYTES).to_bytes(8, "little")))
    store.place_parity(SNAPSHOT, *PARITY, CHUNK_BYTES)[: len(BYTES)] = BYTES
    store.record_parity(SNAPSHOT, *PARITY, checksum(BYTES))
    catalog.put_parity(store.describe_parity(SNAPSHOT, 0, 0, codec.generator, 128))
    store.mark_damaged(SNAPSHOT, {PARITY})
    loop = Loop(lambda: 0.0)
    yield Node(
        loop=loop, store=store, membership=membership, group=group_of(0, 3, 1), codec=codec, links={}, tell_gate=print
    )
    loop.close()


@pytest.mark.parametrize("planned", [False, True])
def test_who_waits_is_told_when_the_last_chunk_is_back_even_if_a_plan_is_due(node: Node, planned: bool) -> None:
    """A member says something new, for which a plan is made; what was on its way comes right behind it."""
    gather, left = FakeGather(), []
    rebuild = Rebuild(
        node,
        gather,
        SNAPSHOT,
        lambda: {1, 2},
        lambda: left.append(SNAPSHOT in node.store.damaged),  # type: ignore[arg-type]
    )
    rebuild.losses.claimed.add(PARITY[:2])
    rebuild.plan()
    node.loop.turn()
    (order,) = gather.orders
    if planned:
        rebuild.sources.hear(1, ())
        rebuild.plan()
    order.on_stripe(0, BYTES)
    order.on_done()
    node.loop.turn()
    assert left[-1:] == [False]
    assert len(gather.orders) == 1


def test_only_the_right_bytes_are_put_and_only_where_the_snapshot_still_is(node: Node) -> None:
    losses = Losses(node, SNAPSHOT)
    rotation = next(r for r in node.group.data_rotations(0) if node.group.chunk_of(0, r, 0) == 0)
    place, units = (0, rotation, 0), losses.units(0)
    assert losses.put(place, units, memoryview(b"\6" * 100)) is Put.WRONG
    assert losses.put(place, units, BYTES) is Put.UNWANTED  # its lane was not prepared for it
    catalog = losses.catalog()
    assert catalog is not None
    catalog.dropped = True
    assert losses.put(PARITY, units, BYTES) is Put.UNWANTED
    assert (losses.repaired, losses.places()) == (0, {PARITY})


def test_parity_goes_on_record_when_none_of_it_is_lost_any_more(node: Node) -> None:
    losses = Losses(node, SNAPSHOT)
    catalog = losses.catalog()
    assert catalog is not None
    catalog.parity.clear()
    assert not losses.settle(0)
    assert losses.put(PARITY, losses.units(0), BYTES) is Put.DONE
    assert (losses.settle(0), losses.settle(0)) == (True, False)
    assert catalog.parity_of(*PARITY[:2]) is not None
