"""The plan of a rebuild: whatever is lost, up to m a stripe, comes back from those that are asked; the load is even."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.codec import generator
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.placement import Group
from ftrain_snapshot.rebuild_plan import STRIPES_MAX, Piece, Shape, Sight, Stuck, impossible, pieces


class Stripes:
    """One lane's stripes, each chunk one byte: what the members hold, made with the generator."""

    def __init__(self, nodes: int, parity: int, chunks: list[int], seed: int = 0) -> None:
        self.group = Group(tuple(range(10, 10 + nodes)), parity)
        self.generator = generator.name_for(parity)
        lengths = dict(zip(self.group.members, (c * CHUNK_BYTES for c in chunks), strict=True))
        self.shape = Shape(self.group, lengths)
        random, self.values = Random(seed), {}
        for rotation in range(nodes):
            data = self.group.data_members(rotation)
            for stripe in range(max(self.shape.stripes(p, rotation) for p in data)):
                row = [random.randrange(256) if self.shape.length(p, rotation, stripe) else 0 for p in data]
                for p, value in zip(data, row, strict=True):
                    self.values[p, rotation, stripe] = value
                for p, line in zip(
                    self.group.parity_members(rotation),
                    generator.rows(self.generator, self.group.data, parity),
                    strict=True,
                ):
                    self.values[p, rotation, stripe] = _sum(zip(line, row, strict=True))

    def everything(self, position: int) -> list[Damage]:
        return [Damage(0, r, 0, STRIPES_MAX) for r in range(len(self.group.members))]

    def sight(self, bad=(), able=None) -> Sight:
        able = set(self.group.members) if able is None else able
        return Sight(self.generator, {0: self.shape}, dict(bad), able)

    def check(self, position: int, piece: Piece) -> None:
        for stripe in range(piece.first, piece.stop):
            parts = ((s.coefficient, self.values[s.position, piece.rotation, stripe]) for s in piece.sources)
            assert _sum(parts) == self.values[position, piece.rotation, stripe]


def _sum(parts) -> int:
    total = 0
    for coefficient, value in parts:
        total ^= generator.multiply(coefficient, value)
    return total


groups = st.sampled_from([(2, 1), (3, 1), (4, 1), (4, 2), (5, 2), (6, 2), (7, 3), (8, 4)])


@settings(max_examples=30, deadline=None)
@given(groups, st.data())
def test_any_m_lost_members_come_back_from_the_others(size, data):
    nodes, parity = size
    chunks = data.draw(st.lists(st.integers(1, 9), min_size=nodes, max_size=nodes))
    stripes = Stripes(nodes, parity, chunks)
    lost = data.draw(st.sets(st.sampled_from(stripes.group.members), min_size=1, max_size=parity))
    bad = {p: stripes.everything(p) for p in lost}
    silent = data.draw(st.booleans())
    sight = stripes.sight({} if silent else bad, set(stripes.group.members) - lost)
    for position in lost:
        covered = set()
        wanted = [Damage(0, r, 0, STRIPES_MAX) for r in stripes.group.data_rotations(position)]
        for piece in pieces(sight, position, wanted, {}, 2):
            assert isinstance(piece, Piece)
            assert not {s.position for s in piece.sources} & lost
            assert len(piece.sources) <= stripes.group.data
            assert 0 < piece.stop - piece.first <= 2
            stripes.check(position, piece)
            covered |= {(piece.rotation, s) for s in range(piece.first, piece.stop)}
        assert len(covered) == chunks[stripes.group.members.index(position)]


@settings(max_examples=12, deadline=None)
@given(groups, st.data())
def test_damage_in_different_stripes_of_many_members_is_all_rebuilt(size, data):
    nodes, parity = size
    stripes = Stripes(nodes, parity, [12] * nodes)
    bad: dict[int, set[Damage]] = {p: set() for p in stripes.group.members}
    for rotation in range(nodes):
        for stripe in range(12 // stripes.group.data):
            for p in data.draw(st.sets(st.sampled_from(stripes.group.members), max_size=parity)):
                bad[p].add(Damage(0, rotation, stripe, stripe + 1))
    sight = stripes.sight({p: tuple(d) for p, d in bad.items()})
    for position, damages in bad.items():
        for damage in damages:
            if damage.rotation in stripes.group.data_rotations(position):
                (piece,) = pieces(sight, position, [damage], {}, 8)
                assert isinstance(piece, Piece)
                assert not any(damage in bad[s.position] for s in piece.sources)
                stripes.check(position, piece)


@settings(max_examples=40, deadline=None)
@given(groups, st.data())
def test_one_more_than_m_is_impossible_and_says_who_is_missing(size, data):
    nodes, parity = size
    stripes = Stripes(nodes, parity, [nodes] * nodes)
    rotation = data.draw(st.integers(0, nodes - 1))
    position = data.draw(st.sampled_from(stripes.group.data_members(rotation)))
    others = [p for p in stripes.group.members if p != position]
    lost = data.draw(st.sets(st.sampled_from(others), min_size=parity, max_size=parity))
    damage = Damage(0, rotation, 0, 1)
    sight = stripes.sight({p: [damage] for p in lost})
    reason = impossible(sight, position, [damage])
    assert f"positions {', '.join(map(str, sorted({position, *lost})))} are missing" in reason
    away = stripes.sight({p: [damage] for p in list(lost)[1:]}, set(others) - lost)
    assert impossible(away, position, [damage]) == ""  # the last of them may still have it
    (stuck,) = pieces(away, position, [damage], {}, 8)
    assert isinstance(stuck, Stuck)
    assert set(stuck.waits_for) == lost - set(list(lost)[1:])


@pytest.mark.parametrize(("nodes", "parity"), [(4, 2), (5, 2), (6, 2), (8, 4)])
def test_the_load_is_even(nodes, parity):
    stripes = Stripes(nodes, parity, [240] * nodes)
    load: dict[int, int] = {}
    wanted = [Damage(0, r, 0, STRIPES_MAX) for r in stripes.group.data_rotations(10)]
    for piece in pieces(stripes.sight(able=set(stripes.group.members) - {10}), 10, wanted, load, 4):
        assert isinstance(piece, Piece)
    assert set(load) == set(stripes.group.members) - {10}
    assert max(load.values()) - min(load.values()) <= 8
    assert sum(load.values()) == 240 * stripes.group.data


def test_parity_is_made_of_data_alone_and_waits_for_it():
    stripes = Stripes(5, 2, [6] * 5)
    holder = 10
    (rotation, _) = stripes.group.parity_rotations(holder)
    damage = Damage(0, rotation, 0, STRIPES_MAX)
    (piece,) = pieces(stripes.sight(), holder, [damage], {}, 8)
    assert isinstance(piece, Piece)
    assert {s.position for s in piece.sources} == set(stripes.group.data_members(rotation))
    stripes.check(holder, piece)
    source = stripes.group.data_members(rotation)[0]
    sight = stripes.sight({source: [Damage(0, rotation, 1, 2)]})
    before, stuck = pieces(sight, holder, [damage], {}, 8)
    assert isinstance(before, Piece)
    assert isinstance(stuck, Stuck)
    assert (before.first, before.stop) == (0, 1)
    assert stuck.waits_for == (source,)
    assert impossible(sight, holder, [damage]) == ""


def test_a_plain_read_asks_the_owner_where_it_is_sound():
    stripes = Stripes(4, 1, [9] * 4)
    rotation = stripes.group.data_rotations(11)[0]
    wanted = [Damage(0, rotation, 0, 3)]
    sight = stripes.sight({11: [Damage(0, rotation, 1, 2)]})
    first, middle, last = pieces(sight, 11, wanted, {}, 8, whole=False)
    assert [len(p.sources) for p in (first, middle, last)] == [1, 3, 1]
    stripes.check(11, middle)


def test_shape_of_unequal_units():
    shape = Shape(Group((0, 1, 2), 1), {0: 2 * CHUNK_BYTES + 5, 1: 64, 2: CHUNK_BYTES})
    assert [shape.stripes(0, r) for r in (1, 2)] == [2, 1]
    assert shape.length(0, 1, 1) == 5
    assert shape.parity_bytes(1) == CHUNK_BYTES + 5  # of positions 2 and 0
    assert shape.parity_bytes(0) == CHUNK_BYTES
    assert [shape.stripes(p, 2) for p in (0, 1, 2)] == [1, 0, 1]
