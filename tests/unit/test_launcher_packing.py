"""What all nodes are told alike is made once, and each gets its own message back."""

from __future__ import annotations

import msgspec
import pytest
from unit.coordinator_job import config, snapshot

from ftrain_launcher.packing import PackedForm, Packer, decode
from ftrain_launcher.to_agent import Elect, Form
from ftrain_snapshot.membership import Origin, Peer

NODES = 2000
PEERS = tuple(Peer(i, f"node-{i}", f"10.0.{i // 256}.{i % 256}", 29400 + i * 37 % 1000) for i in range(NODES))
ORIGIN = Origin(snapshot(3), NODES, 1, ((0, 1),), "numpy", PEERS)


def form(position: int, origin: Origin | None = None, older: Origin | None = None, generation: int = 2) -> Form:
    return Form(
        generation=generation,
        position=position,
        peers=PEERS,
        store_host="h",
        store_port=1,
        restore=None,
        origin=origin,
        older=older,
        work=config().work,
    )


def sent(packer: Packer, message: Form) -> bytes:
    return msgspec.msgpack.encode(packer.pack(message))


@pytest.mark.parametrize("position", [0, 7])
def test_each_node_gets_its_own_message_back(position: int) -> None:
    held, other = (msgspec.structs.replace(ORIGIN, position=p) for p in (position, -1))
    packer = Packer()
    for said in (form(position), form(position, held, other), form(0, other)):
        said = msgspec.structs.replace(said, generation=packer_generation(packer))
        assert decode(sent(packer, said)) == said


def packer_generation(packer: Packer) -> int:
    """A generation is said in one way only."""
    return 1 if packer._packed is None else packer._packed.generation + 1


def test_what_all_are_told_is_made_once_a_generation_and_a_peer_costs_few_bytes() -> None:
    packer = Packer()
    first, second = packer.pack(form(0)), packer.pack(form(1))
    assert first.common is second.common
    assert len(first.common) < 20 * NODES
    assert packer.pack(form(1, generation=3)).common is not first.common


def test_anything_else_is_as_it_was_said() -> None:
    assert decode(msgspec.msgpack.encode(Elect(3))) == Elect(3)


@pytest.mark.parametrize("common", [b"", b"no", b"x\x9c\x03\x00\x00\x00\x00\x01"])
def test_what_cannot_be_unpacked_is_refused(common: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.msgpack.encode(PackedForm(0, -1, -1, common)))
