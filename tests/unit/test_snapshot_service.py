"""A daemon's long work, stepped by hand, and what it does when the world changes in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from ftrain_snapshot import arena
from ftrain_snapshot import messages as m
from ftrain_snapshot.membership import Membership, Origin, Peer
from ftrain_snapshot.placement import groups
from ftrain_snapshot.service import Service
from ftrain_snapshot.words import SnapshotId

UNIT_BYTES = 3 << 20


class Listener:
    """A client that notes what it is answered."""

    role, closed = "worker", False

    def __init__(self) -> None:
        self.replies: list[m.Reply] = []

    def answer(self, reply: m.Reply, body: memoryview | None = None) -> None:
        self.replies.append(reply)


def membership(generation: int, nodes: int, position: int = 1, origin: Origin | None = None) -> Membership:
    peers = tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(nodes))
    return Membership(
        generation, position, 1, 1, peers, groups=groups(nodes, 1), codec="numpy", scrub=False, origin=origin
    )


def shrunk(generation: int, before: Membership) -> Membership:
    """The first node is lost; its snapshot is read from the rest."""
    nodes = len(before.peers)
    origin = Origin(SnapshotId(0, 1, 0), nodes, 1, before.groups, "numpy", before.peers[1:], before.position)
    return membership(generation, nodes - 1, before.position - 1, origin)


@pytest.fixture
def service(tmp_path: Path, monkeypatch) -> Iterator[Service]:
    monkeypatch.setattr(arena, "TOUCH_BYTES", 1 << 18)
    made = Service(node_dir=tmp_path / "node", host="127.0.0.1", port=0, secret=b"s", grace_seconds=3600.0)
    made.loop.spawn(made._attach())
    yield made
    made._close()


def under_way(service: Service, before: Membership) -> Listener:
    """A reservation whose parity is just being touched."""
    assert isinstance(service._configure(before), m.Done)
    client = Listener()
    service.on_request(client, m.Reserve(0, UNIT_BYTES))  # type: ignore[arg-type]
    while not service._store._parities._mappings:
        service.loop.turn()
    assert not client.replies
    return client


def finish(service: Service) -> None:
    while service.loop._tasks:
        service.loop.turn()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()


def test_what_is_reserved_for_another_number_of_nodes_is_given_up(service) -> None:
    before = membership(1, 4)
    client = under_way(service, before)
    assert isinstance(service._configure(shrunk(2, before)), m.Done)
    finish(service)
    assert [type(reply) for reply in client.replies] == [m.Refused]
    later = Listener()
    service.on_request(later, m.Reserve(0, UNIT_BYTES))  # type: ignore[arg-type]
    finish(service)
    assert later.replies == [m.Done()]


@pytest.mark.parametrize(("generation", "resumed"), [(1, True), (2, False)])
def test_where_the_world_stays_it_is_finished(service, generation, resumed) -> None:
    client = under_way(service, membership(1, 4))
    assert isinstance(service._configure(replace(membership(generation, 4), resumed=resumed)), m.Done)
    finish(service)
    assert client.replies == [m.Done()]


def test_what_fails_in_the_daemon_leaves_its_files_to_the_next_one(service, tmp_path: Path) -> None:
    """As a kill does: the node's memory is not lost with it."""

    def fails() -> Iterator[None]:
        yield
        raise RuntimeError("a bug")

    under_way(service, membership(1, 4))
    service.loop.spawn(fails())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a bug"):
        service.run()
    assert (tmp_path / "node" / "control").exists()
    assert list((tmp_path / "node").glob("slot0.parity*"))
