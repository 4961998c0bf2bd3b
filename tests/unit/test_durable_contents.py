"""Who writes which tensor under which key, and where its bytes are: decided from the manifests alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.capture import FORMAT, Manifest
from ftrain.durable.contents import RankContents, RegionReader, keeper_of, shared_stretches, tensor_keys
from ftrain.durable.source import READ_BYTES
from ftrain.encoding import DICT, Packer
from ftrain.errors import StateMismatch
from ftrain.layout import Kind, Layout, lay_out
from ftrain_snapshot.errors import SnapshotIncomplete

NOT_DESCRIBED = msgspec.Raw(msgspec.msgpack.encode("made by a test"))
SHARED, OWN, FROZEN = Kind(True, True), Kind(False, True), Kind(True, False)


def layout_of(sizes: list[int], kinds: list[Kind], world_size: int) -> Layout:
    tensors = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    return lay_out(tensors, [f"objects.model.state.t{i}" for i in range(len(sizes))], kinds, world_size)


class Rank:
    """A rank whose model has these tensors, by key; those in ``tail`` belong to nobody."""

    def __init__(self, rank: int, world_size: int, state: dict[str, Any], kinds: dict[str, Kind]) -> None:
        planned: list[torch.Tensor] = []
        tail: list[torch.Tensor] = []
        names: tuple[list[str], list[str]] = ([], [])

        def index_of(tensor: torch.Tensor, path: Any) -> int:
            for found, sign in ((planned, 1), (tail, -1)):
                for index, known in enumerate(found):
                    if known is tensor:
                        return index if sign > 0 else -1 - index
            is_planned = path().removeprefix("objects.model.state.") in kinds
            found = planned if is_planned else tail
            found.append(tensor)
            names[not is_planned].append(path())
            return len(found) - 1 if is_planned else -len(found)

        tree = Packer(index_of).pack({"objects": {"model": {"state": state}}, "step": 5})
        self.layout = lay_out(
            planned, names[0], [kinds[n.removeprefix("objects.model.state.")] for n in names[0]], world_size
        )
        behind = lay_out(tail, names[1], [OWN] * len(tail), 1)
        self.data = bytearray(self.layout.region_bytes(rank) + behind.region_bytes(0))
        for layout, base, owner, tensors in (
            (self.layout, 0, rank, planned), (behind, self.layout.region_bytes(rank), 0, tail)
        ):  # fmt: skip
            for piece in layout.region_pieces(owner):
                flat = tensors[piece.index].contiguous().view(-1).view(torch.uint8).numpy()[piece.start : piece.end]
                at = base + piece.region_offset
                self.data[at : at + len(flat)] = flat.tobytes()
        layouts = [msgspec.Raw(msgspec.msgpack.encode(each)) for each in (self.layout, behind)]
        self.manifest = msgspec.msgpack.encode(Manifest(FORMAT, rank, 5, *layouts, NOT_DESCRIBED, tree))
        self.contents = RankContents(rank, world_size, self.manifest)


class Job:
    """A source over ranks, one lane per node; notes what is read."""

    def __init__(self, *ranks: Rank) -> None:
        self.ranks = ranks
        self.reads: list[tuple[int, int, int]] = []

    def manifest(self, position: int, lane: int) -> bytes:
        return self.ranks[position].manifest

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes:
        self.reads.append((position, start, stop))
        return bytes(self.ranks[position].data[start:stop])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=8), st.integers(1, 6), st.data())
def test_a_shared_tensor_lies_in_consecutive_pieces(sizes: list[int], world_size: int, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from([SHARED, FROZEN]), min_size=len(sizes), max_size=len(sizes)))
    layout = layout_of(sizes, kinds, world_size)
    held = {
        (rank, piece.index, piece.start, piece.end)
        for rank in range(world_size)
        for piece in layout.region_pieces(rank)
    }
    found = {
        (stretch.rank, index, stretch.start, stretch.end)
        for index in range(len(sizes))
        for stretch in shared_stretches(layout, index)
        if sizes[index]
    }
    assert found == held


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 3))
def test_a_shared_tensor_is_written_by_the_node_that_holds_most_of_it(
    sizes: list[int], positions: int, lanes: int
) -> None:
    layout = layout_of(sizes, [SHARED] * len(sizes), positions * lanes)
    for index in range(len(sizes)):
        held = [0] * positions
        for rank in range(positions * lanes):
            held[rank // lanes] += sum(p.end - p.start for p in layout.region_pieces(rank) if p.index == index)
        keeper = keeper_of(layout, index, lanes)
        assert held[keeper] == max(held)
        assert keeper == held.index(max(held))


def test_keys_are_plain_where_dcp_has_them_and_ftrains_own_elsewhere() -> None:
    weight, bias, mean = torch.ones(4), torch.ones(2), torch.ones(3)
    kinds = {"weight": SHARED, "bias": FROZEN, "mean": OWN}
    state = {"weight": weight, "tied": weight, "bias": bias, "mean": mean, "pair": (torch.ones(1), 1)}
    first, second = (Rank(rank, 2, state, kinds).contents for rank in range(2))
    assert tensor_keys(first, first) == [
        "model.weight", "model.bias", "model.mean", "ftrain.rank0.objects.model.state.pair[0]"
    ]  # fmt: skip
    assert tensor_keys(second, first) == [
        "model.weight", "model.bias", "ftrain.rank1.objects.model.state.mean",
        "ftrain.rank1.objects.model.state.pair[0]",
    ]  # fmt: skip
    assert first.plain["model.tied"].index == first.plain["model.weight"].index == 0
    assert list(first.plain) == ["model.weight", "model.tied", "model.bias", "model.mean", "model.pair"]


def test_names_that_read_alike_get_keys_of_their_own() -> None:
    state = {"pair": ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},)}
    first = Rank(0, 1, state, {}).contents
    keys = tensor_keys(first, first)
    assert len(set(keys)) == 2
    assert {key.removesuffix("#2") for key in keys} == {"ftrain.rank0.objects.model.state.pair[0].a.b"}


def test_plain_keys_that_read_alike_are_one_and_odd_ones_none() -> None:
    first = Rank(0, 1, {1: "int", "1": "str", "\ud800": "no text"}, {}).contents
    assert [(key, leaf.value) for key, leaf in first.plain.items()] == [("model.1", "int")]


def test_tensors_are_put_together_from_all_who_hold_them() -> None:
    torch.manual_seed(0)
    shared = {f"w{i}": torch.randn(50 * i + 1) for i in range(6)}
    ranks = []
    for rank in range(3):
        own = {"b": torch.full((10 + 40 * rank,), float(rank)), "tail": (torch.arange(7) + rank,)}
        kinds = {name: SHARED if i % 2 else FROZEN for i, name in enumerate(shared)} | {"b": OWN}
        ranks.append(Rank(rank, 3, own | shared, kinds))
    reader = RegionReader(Job(*ranks), 1, 3)
    for rank, each in enumerate(ranks):
        for key, leaf in each.contents.plain.items():
            if leaf.index is not None and key != "model.b":
                assert torch.equal(reader.tensor(rank, leaf.index), shared[key.removeprefix("model.")])
        leaf = each.contents.plain["model.b"]
        assert leaf.index is not None
        assert torch.equal(reader.tensor(rank, leaf.index), torch.full((10 + 40 * rank,), float(rank)))
        (tail,) = each.contents.with_tensors(each.contents.plain["model.tail"].value, reader)
        assert torch.equal(tail, torch.arange(7) + rank)


def test_small_tensors_share_a_read_and_large_ones_are_read_in_bounded_pieces() -> None:
    state = {f"t{i}": torch.tensor(i) for i in range(50)} | {"large": torch.zeros(2 * READ_BYTES, dtype=torch.uint8)}
    rank = Rank(0, 1, state, dict.fromkeys(state, OWN))
    job = Job(rank)
    reader = RegionReader(job, 1, 1)
    for index in range(len(rank.contents.specs)):
        reader.tensor(0, index)
    assert len(job.reads) == 3
    assert all(stop - start <= READ_BYTES for _, start, stop in job.reads)


def test_a_source_that_sends_too_little_is_refused() -> None:
    rank = Rank(0, 1, {"a": torch.ones(100)}, {"a": OWN})
    rank.data = rank.data[:300]
    with pytest.raises(SnapshotIncomplete, match="300 bytes at 0, where 448 were due"):
        RegionReader(Job(rank), 1, 1).tensor(0, 0)


@pytest.mark.parametrize(
    ("rank", "world_size", "said"),
    [(1, 2, "of rank 0 of 2"), (0, 3, "expected was rank 0 of 3")],
)
def test_a_manifest_of_another_rank_or_job_is_refused(rank: int, world_size: int, said: str) -> None:
    manifest = Rank(0, 2, {"a": torch.ones(1)}, {"a": OWN}).manifest
    with pytest.raises(StateMismatch, match=said):
        RankContents(rank, world_size, manifest)


@pytest.mark.parametrize("manifest", [b"", b"\xc1", msgspec.msgpack.encode([1, 2]), bytes([DICT])])
def test_a_manifest_that_is_none_is_refused(manifest: bytes) -> None:
    with pytest.raises(StateMismatch, match="manifest of rank 0 cannot be read"):
        RankContents(0, 1, manifest)
