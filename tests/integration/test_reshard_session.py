"""A protected job goes on with half of its nodes: the session, from environment to certificate, without a launcher."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import torch
from integration.worker_node import Daemon, Forker, Node
from integration.worker_states import assert_same

from ftrain.durable.source import LocalUnits
from ftrain.link import Certified, Failed
from ftrain_snapshot import messages as m
from ftrain_snapshot.arena import SLOTS, home_path, table_path
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.words import SnapshotId

TRAIN = Path(__file__).with_name("reshard_train.py")
LANES, STEPS = 2, 12


class OldWorldDaemon(Daemon):
    """Answers for the units of another world, which lie in the folders of its nodes."""

    def __init__(self, node_dir: Path, lanes: int, nodes: dict[int, Path]) -> None:
        self.nodes = nodes
        self.reads: list[m.Read] = []
        self._own = threading.local()
        super().__init__(node_dir, lanes)

    def _answer(self, request: m.Request) -> m.Reply | None:
        match request:
            case m.GetUnits(snapshot):
                return m.Units(tuple(self._unit(p, lane, snapshot) for p in self.nodes for lane in range(LANES)))
        return super()._answer(request)

    def handle(self, body: bytes) -> bytes | None:
        request = msgspec.msgpack.decode(body, type=m.Request)
        if not isinstance(request, m.Read):
            return super().handle(body)
        self.reads.append(request)
        unit = LocalUnits(self.nodes[request.position], request.snapshot)
        data = b"".join(unit.read(request.lane, start, stop) for start, stop in request.ranges)
        reply = msgspec.msgpack.encode(m.Bytes(request.number, len(data)))
        self._own.data = data
        return reply

    def behind(self, reply: bytes) -> bytes:
        data, self._own.data = getattr(self._own, "data", b""), b""
        return data

    def _unit(self, position: int, lane: int, snapshot: SnapshotId) -> m.UnitInfo:
        header, _ = Lane(self.nodes[position], lane).regions[snapshot.slot].read(snapshot)
        return m.UnitInfo(
            position, lane, header.rank, header.world_size, header.data_bytes, header.manifest_offset,
            header.manifest_bytes, header.unit_bytes,
        )  # fmt: skip


def spread(folder: Path, target: Path, nodes: int) -> dict[int, Path]:
    """The lanes of one node as those of several, ``LANES`` each."""
    found = {}
    for position in range(nodes):
        found[position] = target / f"old{position}"
        found[position].mkdir(parents=True)
        for lane in range(LANES):
            for slot in range(SLOTS):
                for path in (home_path, table_path):
                    os.link(path(folder, slot, position * LANES + lane), path(found[position], slot, lane))
    return found


def test_half_of_the_nodes_go_on_to_the_last_bit(forker: Forker, tmp_path: Path) -> None:
    """Given 2 x 2 ranks that die, when 2 go on from what all 4 captured, then the end is that of an undisturbed run."""
    exact = {"FTRAIN_DETERMINISTIC_REDUCTION": "1"}
    with Node(forker, tmp_path / "whole", LANES) as node:
        assert node.run(TRAIN, STEPS, tmp_path / "undisturbed", -2, more=exact) == [0] * LANES, node.output(0)
    with Node(forker, tmp_path / "four", 2 * LANES) as node:
        assert node.run(TRAIN, STEPS, tmp_path / "broken", 6, more=exact) == [-9] * 4, node.output(0)
        assert node.newest.version == 6
        snapshot = node.newest
    nodes = spread(tmp_path / "four", tmp_path, 2)
    peers = (Peer(1, "node-1", "", 0),)
    origin = Origin(snapshot, 2, 1, (), "auto", peers, 1)
    with Node(forker, tmp_path / "two", LANES) as node:
        node.daemon.close()
        for path in nodes[1].iterdir():  # this node was position 1, and is 0 now
            os.link(path, tmp_path / "two" / path.name)
        node.daemon = OldWorldDaemon(tmp_path / "two", LANES, nodes)
        node.daemon.open((snapshot.slot + 1) % SLOTS)
        node.generation = 1
        code = node.run(TRAIN, STEPS, tmp_path / "resumed", -2, more=exact | {"FTRAIN_ORIGIN": encoded(origin)})
        assert code == [0] * LANES, (node.output(0), node.agent.of(Failed))
        assert node.daemon.reads
        assert {read.position for read in node.daemon.reads} == {0}
        [certified] = node.agent.of(Certified)
        assert (certified.version, certified.ranks, certified.samplers) == (6, LANES, {"sampler": 7})
        assert certified.counters == 5
    expected, found = (torch.load(f"{tmp_path / name}.end") for name in ("undisturbed", "resumed"))
    assert found.pop("losses") == expected.pop("losses")[7:]
    assert_same(found, expected)


def encoded(origin: Origin) -> str:
    return msgspec.json.encode(origin).decode()
