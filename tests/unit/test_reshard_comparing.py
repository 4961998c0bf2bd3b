"""Replicas that no layout speaks of are compared, byte by byte, before one is taken for all."""

from __future__ import annotations

import msgspec
import pytest

from ftrain.environment import read_environment
from ftrain.errors import EnvironmentInvalid
from ftrain.logical.axes import axis, whole
from ftrain.logical.coverage import check
from ftrain.logical.errors import StateUncovered
from ftrain.logical.reads import World
from ftrain.logical.state import Extent, LogicalTensor, RankState
from ftrain.reshard.comparing import compare_replicas
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.words import SnapshotId


class Memory:
    """Each rank's bytes, one rank to a node."""

    def __init__(self, *ranks: bytes) -> None:
        self._ranks = ranks

    def manifest(self, position: int, lane: int) -> bytes:
        raise NotImplementedError

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes:
        return self._ranks[position][start:stop]


def world(copies: int, ranks: int = 3) -> World:
    states = []
    for rank in range(ranks):
        extents = (Extent(0, 4, 2), Extent(4, 8, 10)) if rank == 0 else (Extent(0, 8, 0),)
        tensor = LogicalTensor("norm", "int8", 1, (8,), (axis(whole(8)),), (1,), copies, extents=extents)
        states.append(RankState(rank, (tensor,)))
    return World(tuple(states), {rank: rank for rank in range(ranks)})


def test_equal_ones_pass_however_they_are_kept() -> None:
    check(world(0).states, are_kept=True)
    source = Memory(b"..abcd....efgh", b"abcdefgh", b"abcdefgh")
    compare_replicas(world(0), source, 1, 0, 1)


def test_different_ones_are_named_by_the_rank_whose_share_it_is() -> None:
    source = Memory(b"..abcd....efgh", b"abcdefgh", b"abcdefgX")
    with pytest.raises(StateUncovered, match="norm: ranks 0, 1, 2 hold the same part of it with different values"):
        compare_replicas(world(0), source, 1, 0, 2)
    compare_replicas(world(0), source, 1, 1, 2)
    compare_replicas(world(3), source, 1, 0, 1)  # declared: the capture relied on it


def test_the_origin_comes_in_the_environment() -> None:
    origin = Origin(SnapshotId(7, 2, 1), 4, 1, (), "auto", (Peer(3, "node-3", "10.0.0.3", 4711),), 2)
    variables = {
        "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "x", "MASTER_PORT": "1", "FTRAIN_NODE_DIR": "/n",
        "FTRAIN_GENERATION": "3", "FTRAIN_ORIGIN": msgspec.json.encode(origin).decode(),
    }  # fmt: skip
    job = read_environment(variables).job
    assert job is not None
    assert job.origin == origin
    assert job.start == 7
    with pytest.raises(EnvironmentInvalid, match=r"FTRAIN_ORIGIN='\{\}' is not the origin of a state"):
        read_environment(variables | {"FTRAIN_ORIGIN": "{}"})
