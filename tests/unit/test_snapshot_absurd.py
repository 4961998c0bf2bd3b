"""Messages of every kind, with values that are in no order, to a whole daemon: one that knows its generation by heart.

Whoever sends them has proved itself: a peer or a client gone mad. What cannot be decoded or does not belong here is a
ProtocolError, which closes that connection; what can be decoded and makes no sense is refused or ignored. Nothing else
is raised, no state grows with what was sent, and the daemon answers as before.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshot_nodes import capture

from ftrain_snapshot import arena
from ftrain_snapshot import messages as m
from ftrain_snapshot import wire as w
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import decode
from ftrain_snapshot.inventory import DAMAGES_MAX, Damage, Holding, Inventory
from ftrain_snapshot.ledger import RECORDS_MAX, SLOTS
from ftrain_snapshot.manifest import Header, UnitDescriptor
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.placement import groups
from ftrain_snapshot.service import Service
from ftrain_snapshot.words import SnapshotId

few = settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
NODES, SIZE = 3, 300_000
MEMORY_BYTES = 8 << 20
"""What the arena's file system can still give."""
KNOWN = SnapshotId(0, 1, 0)
"""The snapshot that the daemon holds."""
PEER = msgspec.msgpack.Decoder(w.PeerMessage)
REQUEST = msgspec.msgpack.Decoder(m.Request)

extreme = st.sampled_from([2, 3, 48, 10**6, 2**31, 2**40, 2**56, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**63)])
numbers = st.sampled_from([0, 0, 0, 1, 1, 2]) | extreme
snapshots = st.sampled_from([KNOWN, SnapshotId(1, 1, 1), SnapshotId(2, 1, 2)]) | st.builds(
    SnapshotId, numbers, st.just(1) | numbers, numbers
)
_PLAIN: dict[object, st.SearchStrategy[object]] = {
    int: numbers,
    bool: st.booleans(),
    float: st.floats(),
    str: st.sampled_from(
        ["", "x", "auto", "xor", "\0", "node-1", "." * 300, "\ud800\n".encode("utf-8", "replace").decode()]
    ),
    bytes: st.sampled_from([b"", bytes(8), bytes(16), b"\xff" * 7, bytes(4096)]),
    type(None): st.none(),
    SnapshotId: snapshots,
}


def values(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Anything that has the right shape."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple and parts[1:] == (...,):
        return st.lists(values(parts[0]), max_size=3).map(tuple)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.builds(kind, **{name: values(hint) for name, hint in typing.get_type_hints(kind).items()})
    return st.one_of([values(part) for part in parts])


class Silence:
    """A peer or a client that takes whatever it is told."""

    role, closed, welcomed = "worker", False, True

    def send(self, message: w.PeerMessage) -> None:
        msgspec.msgpack.encode(message)

    def send_bulk(self, message: w.PeerMessage, body: memoryview, *, urgent: bool = False) -> None:
        self.send(message)

    def answer(self, reply: m.Reply, body: memoryview | None = None) -> None:
        msgspec.msgpack.encode(reply)

    def drop_bulk(self, wanted: object) -> None: ...

    def close(self, reason: str = "") -> None: ...


class Daemon:
    """A service in this process, stepped by hand, that holds a snapshot and is linked to all others."""

    def __init__(self, folder: Path, position: int, restore: SnapshotId | None) -> None:
        self.service = Service(node_dir=folder, host="127.0.0.1", port=0, secret=b"s", grace_seconds=3600.0)
        self.service.loop.spawn(self.service._attach())
        peers = tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(NODES))
        self.membership = Membership(1, position, 1, 1, peers, groups=groups(NODES, 1), codec="numpy", scrub=False)
        self.serve(self.membership)
        for _ in self.service._store.reserve(0, SIZE):
            pass
        with capture(folder, 0, KNOWN, bytes(SIZE - 64), b"manifest") as captured:
            captured.finish()
        if restore is not None:
            self.serve(msgspec.structs.replace(self.membership, generation=1, restore=restore))
        self.session.protect.scan()
        for _ in range(20):
            self.service.loop.turn()

    @property
    def session(self) -> typing.Any:
        return self.service._session

    def serve(self, membership: Membership) -> None:
        assert isinstance(self.service._configure(membership), m.Done)
        for position in range(NODES):
            if position != membership.position:
                self.session._link(position, Silence())

    def hears(self, position: int, message: w.PeerMessage, body: bytes) -> bool:
        """What comes over a connection, as bytes; whether it was taken for a message."""
        try:
            self.session._on_message(position, decode(PEER, msgspec.msgpack.encode(message)), memoryview(body))
        except ProtocolError:
            return False
        finally:
            self.turn()
        return True

    def opens(self) -> None:
        """All say that they are ready: the gate's next word is written."""
        for position in range(NODES):
            if self.session.gate is not None and position != self.membership.position:
                assert self.hears(position, w.Announce((), True, ()), b"")

    def asked(self, request: m.Request) -> None:
        try:
            self.service.on_request(Silence(), decode(REQUEST, msgspec.msgpack.encode(request)))  # type: ignore[arg-type]
        except ProtocolError:
            return
        finally:
            self.turn()

    def turn(self) -> None:
        for _ in range(5):
            self.service.loop.turn()

    def check(self) -> None:
        """It answers, and nothing has grown."""
        self.opens()
        msgspec.msgpack.encode(m.StatusReply(self.service._status()))
        msgspec.msgpack.encode(m.InventoryReply(Inventory(self.service._holdings())))
        if (keeper := self.session.gate) is not None:
            assert len(keeper._gate._records) <= RECORDS_MAX
            assert len(keeper._gate._abandoned) <= SLOTS


@pytest.fixture(scope="module", params=[(0, None), (0, KNOWN), (1, None), (1, KNOWN)], ids=str)
def daemon(request, tmp_path_factory) -> Iterator[Daemon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "available", lambda folder: MEMORY_BYTES)
        made = Daemon(tmp_path_factory.mktemp("node"), *request.param)
        yield made
        made.service._close()


def numbers_in(kind: typing.Any, seen: set[object], where: str = "") -> Iterator[tuple[str, object]]:
    """(where it is, its bounds) of every number that may be in such a message."""
    if typing.get_origin(kind) is typing.Annotated and typing.get_args(kind)[0] is int:
        yield where, typing.get_args(kind)[1]
    elif kind is int:
        yield where, None
    elif isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
        seen.add(kind)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            yield from numbers_in(hint, seen, f"{kind.__name__}.{name}")
    else:
        for part in typing.get_args(kind):
            yield from numbers_in(part, seen, where)


@pytest.mark.parametrize("union", [w.PeerMessage, m.Request], ids=["peers", "clients"])
def test_every_number_that_may_come_has_its_bounds(union):
    found = dict(numbers_in(union, set()))
    assert len(found) > 10
    assert [where for where, bounds in found.items() if bounds is None] == []


@pytest.mark.parametrize(
    "message",
    [
        w.Drop(SnapshotId(2**63, 1, 0)),
        w.Drop(SnapshotId(-2, 1, 0)),
        w.Describe(UnitDescriptor(1, 0, Header(KNOWN, 2**31, 1, 64, 0, 0, 0), bytes(8))),
        w.Describe(UnitDescriptor(1, 0, Header(KNOWN, 0, 1, 2**57, 0, 0, 0), bytes(8))),
        w.Announce((Holding(KNOWN, 1, True, True),) * 17, True, ()),
        w.Restoring(KNOWN, (Damage(0, 0, 0, 1),) * (DAMAGES_MAX + 1), ()),
    ],
    ids=str,
)
def test_what_would_not_fit_is_no_message(message):
    with pytest.raises(ProtocolError):
        decode(PEER, msgspec.msgpack.encode(message))


def ids(kind: type) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", typing.get_args(w.PeerMessage), ids=ids)
@few
@given(data=st.data())
def test_a_peer_may_say_anything(daemon: Daemon, kind, data):
    other = 1 - daemon.membership.position
    daemon.opens()
    for message in data.draw(st.lists(values(kind), min_size=1, max_size=4)):
        daemon.hears(other, message, data.draw(st.sampled_from([b"", bytes(64), bytes(1000)])))
    daemon.check()


@pytest.mark.parametrize("kind", typing.get_args(m.Request), ids=ids)
@few
@given(data=st.data())
def test_a_client_may_ask_anything(daemon: Daemon, kind, data):
    if kind is m.Shutdown:
        return
    for request in data.draw(st.lists(values(kind), min_size=1, max_size=3)):
        if not isinstance(request, m.Configure):  # it is believed, and alters everything
            daemon.asked(request)
    daemon.check()


FIELDS = {name: kind for name, kind in typing.get_type_hints(Membership).items() if name != "resumed"}


@pytest.mark.parametrize("field", FIELDS)
@settings(few, max_examples=2)
@given(data=st.data())
def test_an_agent_may_ask_for_any_job(tmp_path_factory, field, data):
    daemon = Daemon(tmp_path_factory.mktemp("node"), 1, KNOWN)
    asked = msgspec.structs.replace(
        daemon.membership, generation=2, peers=daemon.membership.peers[: data.draw(st.integers(1, 4))]
    )
    others = data.draw(st.lists(st.sampled_from(list(FIELDS)), max_size=3))
    changes = {name: data.draw(values(FIELDS[name])) for name in (*others, field)}
    daemon.asked(m.Configure(msgspec.structs.replace(asked, **changes)))
    daemon.check()
    daemon.service._close()


@pytest.mark.parametrize("formed", [((0, 1),), ((1, 2), (0,)), ((0, 1), (1, 2)), ((0, 1, 2, 3),)], ids=str)
def test_groups_that_are_not_those_of_the_job_are_refused(daemon: Daemon, formed):
    membership = msgspec.structs.replace(daemon.membership, generation=9, groups=formed)
    assert isinstance(daemon.service._configure(membership), m.Refused)
    daemon.check()
