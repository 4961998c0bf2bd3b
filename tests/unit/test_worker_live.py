"""What a survivor holds of its state, and what is made of it: taken where it is proved, read where it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
from integration.worker_lane import Rank
from torch import Tensor, nn

from ftrain import exchange as exchanging
from ftrain.exchange import Slice, exchange, rounds_of
from ftrain.layout import Kind, Layout, flat_bytes, lay_out
from ftrain.live import Held, hold
from ftrain.restore import Restored, read_state
from ftrain.state import load_state
from ftrain_snapshot.words import SnapshotId

WIDTH = 600
"""A weight of more than one chunk."""
AT_STEP_5 = SnapshotId(5, 1, 2)


class Training:
    """A model with a buffer that each forward changes, and its optimizer."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.objects = {"model": self.model, "optimizer": self.optimizer}

    def forward(self) -> None:
        self.model(torch.randn(2, WIDTH)).square().mean().backward()

    def step(self) -> None:
        self.forward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[tuple[Training, Rank, SnapshotId, list[Tensor]]]:
    """A rank that has captured a step; its training, the snapshot, and what that holds."""
    torch.manual_seed(0)
    training = Training()
    with Rank(tmp_path, training.objects) as rank:
        training.step()
        snapshot = rank.commit(0)
        rank.finish()
        yield training, rank, snapshot, [tensor.detach().clone() for tensor in state_of(training)]


def state_of(training: Training) -> list[Tensor]:
    states = (training.optimizer.state[parameter] for parameter in training.model.parameters())
    return [*training.model.state_dict().values(), *(value for state in states for value in state.values())]


def buffer_bytes(training: Training) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in training.model.buffers())


def take(rank: Rank, snapshot: SnapshotId, held: Held | None) -> tuple[Training, Restored]:
    assert rank.lane is not None
    fresh = Training()
    found = read_state(rank.region(snapshot), rank.lane.homes, snapshot, 0, 1, fresh.objects, held)
    for name, tracked in fresh.objects.items():
        load_state(name, tracked, found.tree["objects"][name])
    return fresh, found


def assert_equal(training: Training, values: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(state_of(training), values, strict=True))


def held_by(rank: Rank) -> Held:
    held = rank.capturer.hold()
    assert held is not None
    return held


def test_after_a_forward_and_backward_only_the_buffers_are_read(rank) -> None:
    training, rank, snapshot, values = rank
    training.forward()
    fresh, found = take(rank, snapshot, held_by(rank))
    assert_equal(fresh, values)
    assert found.read_bytes == buffer_bytes(training)
    assert found.kept_bytes == sum(v.numel() * v.element_size() for v in values) - found.read_bytes


def test_an_optimizer_goes_on_in_the_memory_that_it_had(rank) -> None:
    training, rank, snapshot, _ = rank
    weight = training.model[0].weight
    before = training.optimizer.state[weight]["exp_avg"].data_ptr()
    fresh, _ = take(rank, snapshot, held_by(rank))
    assert fresh.optimizer.state[fresh.model[0].weight]["exp_avg"].data_ptr() == before
    assert fresh.model[0].weight.data_ptr() != weight.data_ptr()


def test_what_is_not_trained_is_read_and_its_memory_is_free_before(tmp_path: Path) -> None:
    training = Training()
    training.model[0].weight.requires_grad_(False)
    with Rank(tmp_path, training.objects) as rank:
        training.step()
        snapshot = rank.commit(0)
        rank.finish()
        held = held_by(rank)
        weight = training.model[0].weight
        assert weight.data_ptr() not in [tensor.data_ptr() for tensor in held.tensors.values()]
        fresh, found = take(rank, snapshot, held)
    assert_equal(fresh, state_of(training))
    assert found.read_bytes == buffer_bytes(training) + weight.numel() * weight.element_size()


def test_nothing_is_held_once_an_optimizer_has_stepped(rank) -> None:
    training, rank, _, _ = rank
    training.step()
    assert rank.capturer.hold() is None


def test_what_is_written_by_way_of_data_is_not_proved_and_is_read(rank) -> None:
    """No mark tells of it."""
    training, rank, snapshot, values = rank
    training.model[0].weight.data[WIDTH - 1, 0] += 1
    fresh, found = take(rank, snapshot, held_by(rank))
    assert_equal(fresh, values)
    assert 0 < found.read_bytes < found.kept_bytes


@pytest.mark.parametrize("what", [0, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_flipped_bit_is_read_again_wherever_it_is(rank, what: int) -> None:
    training, rank, snapshot, values = rank
    held = held_by(rank)
    index = sorted(held.tensors)[what % len(held.tensors)]
    flat = flat_bytes(held.tensors[index])
    assert flat is not None
    flat[len(flat) // 2] ^= 1
    fresh, found = take(rank, snapshot, held)
    assert_equal(fresh, values)
    assert buffer_bytes(training) < found.read_bytes < found.kept_bytes


def test_another_layout_is_not_looked_at(rank) -> None:
    _, rank, snapshot, values = rank
    held = held_by(rank)
    fresh, found = take(rank, snapshot, Held(held.snapshot, 0, 1, held.layout + b"\0", held.tensors))
    assert_equal(fresh, values)
    assert found.kept_bytes == 0


@pytest.mark.parametrize(
    ("restore", "rank", "world_size", "suits"),
    [
        (AT_STEP_5, 1, 4, True),
        (None, 1, 4, False),
        (SnapshotId(4, 1, 1), 1, 4, False),
        (SnapshotId(5, 2, 2), 1, 4, False),
        (AT_STEP_5, 2, 4, False),
        (AT_STEP_5, 1, 3, False),
    ],
)
def test_only_the_same_snapshot_rank_and_world_suit(
    restore: SnapshotId | None, rank: int, world_size: int, suits: bool
) -> None:
    assert Held(AT_STEP_5, 1, 4, b"", {}).suits(restore, rank, world_size) is suits


def holding(*tensors: Tensor) -> Held:
    layout = lay_out(tensors, ["x"] * len(tensors), [Kind()] * len(tensors), 1)
    return Held(AT_STEP_5, 0, 1, b"", hold(dict(enumerate(tensors)), layout.specs))


def test_tensors_that_nobody_else_refers_to_are_kept() -> None:
    whole = torch.zeros(8)
    parts = [nn.Parameter(torch.zeros(3)), torch.zeros(2), whole[:4], whole[4:]]
    parts[0].sum().backward()
    held = holding(*parts)
    del whole, parts
    held.drop_shared()
    assert sorted(held.tensors) == [0, 1, 2, 3]
    assert all(tensor.grad is None for tensor in held.tensors.values())


@pytest.mark.parametrize(
    "look", [Tensor.detach, Tensor.numpy, lambda t: t, lambda t: t[:1], lambda t: t.share_memory_().shape]
)
def test_tensors_that_somebody_else_may_write_to_are_let_go(look: Callable[[Tensor], object]) -> None:
    tensor, alone = torch.zeros(4), torch.ones(4)
    other = look(tensor)
    held = holding(tensor, alone)
    del tensor, alone
    held.drop_shared()
    assert sorted(held.tensors) == [1]
    del other


# ---- What is replicated.

RANKS = 4
KINDS = (Kind(True, True), Kind(True, False))


class Group:
    """Ranks that are threads, and the two operations that they need."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=10)
        self.place = threading.local()
        self.sent: dict[int, Tensor] = {}
        self.gathers: list[int] = []

    def get_rank(self) -> int:
        return int(self.place.rank)

    def get_world_size(self) -> int:
        return RANKS

    def get_backend(self) -> str:
        return "gloo"

    def gather(self, tensor: Tensor, found: list[Tensor] | None = None, dst: int = 0) -> None:
        self._turn(tensor)
        if found is not None:
            assert self.get_rank() == dst
            self.gathers.append(dst)
            for rank, into in enumerate(found):
                into.copy_(self.sent[rank])
        self.barrier.wait()

    def broadcast(self, tensor: Tensor, src: int) -> None:
        self._turn(tensor)
        if self.get_rank() != src:
            tensor.copy_(self.sent[src])
        self.barrier.wait()

    def _turn(self, tensor: Tensor) -> None:
        self.barrier.wait()
        self.sent[self.get_rank()] = tensor.clone()
        self.barrier.wait()


class Replicas:
    """Four ranks with the same tensors, of which each has captured a share; in others' memory anything may lie."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.tensors = [torch.randn(size) for size in (40_000, 17, 1, 30_001)]
        kinds = [Kind(replicated=True, volatile=index != 3) for index in range(4)]
        self.layout = lay_out(self.tensors, list("abcd"), kinds, RANKS)
        self.group = Group()
        monkeypatch.setattr(exchanging, "dist", self.group)
        monkeypatch.setattr(exchanging, "ROUND_BYTES", RANKS << 14)
        monkeypatch.setattr(exchanging, "SLICE_BYTES_MIN", 64)
        self.memory = [[tensor.clone() for tensor in self.tensors] for _ in range(RANKS)]

    def run(self, kept: list[set[int]]) -> list[int]:
        """How much each rank took."""
        regions = [self._region(rank) for rank in range(RANKS)]
        taken = [0] * RANKS

        def work(rank: int) -> None:
            self.group.place.rank = rank
            flats = [flat_bytes(tensor) for tensor in self.memory[rank]]
            share = lambda start, end: regions[rank][start:end]  # noqa: E731
            taken[rank] = exchange(self.layout, rank, share, flats, kept[rank])

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for memory in self.memory:
            assert all(torch.equal(a, b) for a, b in zip(memory, self.tensors, strict=True))
        return taken

    def lose(self, rank: int) -> None:
        """All but its own share, which is read from its region first."""
        region = self._region(rank)
        for index, tensor in enumerate(self.memory[rank]):
            tensor.fill_(-1)
            flat = flat_bytes(tensor)
            for piece in self.layout.region_pieces(rank):
                if piece.index == index:
                    length = piece.end - piece.start
                    flat[piece.start : piece.end] = region[piece.region_offset : piece.region_offset + length]

    def _region(self, rank: int) -> Tensor:
        region = torch.full((self.layout.region_bytes(rank),), 0x33, dtype=torch.uint8)
        for piece in self.layout.region_pieces(rank):
            part = flat_bytes(self.tensors[piece.index])[piece.start : piece.end]
            region[piece.region_offset : piece.region_offset + len(part)] = part
        return region

    def foreign_bytes(self, rank: int) -> int:
        return self.bytes_of(owner for owner in range(RANKS) if owner != rank)

    def bytes_of(self, owners: Iterable[int], kinds: tuple[Kind, ...] = KINDS) -> int:
        """Of tensors, what these have captured."""
        pieces = [
            piece
            for owner in owners
            for kind in kinds
            for piece in self.layout.pieces(kind, *self.layout.share(owner, kind))
        ]
        return sum(piece.end - piece.start for piece in pieces)


ALL, NONE = {0, 1, 2, 3}, set[int]()


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    return Replicas(monkeypatch)


def test_all_that_is_replicated_goes_round_where_nobody_kept_anything(replicas: Replicas) -> None:
    for rank in range(RANKS):
        replicas.lose(rank)
    assert replicas.run([NONE] * RANKS) == [replicas.foreign_bytes(rank) for rank in range(RANKS)]
    assert set(replicas.group.gathers) == {0}  # the question whether anybody has kept anything


def test_only_the_newcomer_takes_what_others_captured(replicas: Replicas) -> None:
    replicas.lose(2)
    assert replicas.run([ALL, ALL, NONE, ALL]) == [0, 0, replicas.foreign_bytes(2), 0]
    assert set(replicas.group.gathers) == {0, 2}


def test_who_kept_something_else_takes_the_rounds_in_which_it_is(replicas: Replicas) -> None:
    replicas.lose(2)
    replicas.memory[1][0][39_000] += 1  # captured by another rank
    zero, one, two, three = replicas.run([ALL, ALL, NONE, ALL])
    assert (zero, two, three) == (0, replicas.foreign_bytes(2), 0)
    assert 0 < one < two


def test_a_tensor_that_was_not_kept_is_taken(replicas: Replicas) -> None:
    replicas.memory[3][3].fill_(7)
    owned = flat_bytes(replicas.memory[3][3])
    for piece in replicas.layout.region_pieces(3):
        if piece.index == 3:
            owned[piece.start : piece.end] = flat_bytes(replicas.tensors[3])[piece.start : piece.end]
    taken = replicas.run([ALL, ALL, ALL, {0, 1, 2}])
    assert taken[:3] == [0, 0, 0]
    assert taken[3] == replicas.bytes_of(range(3), KINDS[1:])


@pytest.mark.parametrize("sizes", [(), (1,), (16,), (17, 100_000), (500_000, 1, 3)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_the_rounds_are_all_shares_each_byte_once(
    sizes: tuple[int, ...], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanging, "ROUND_BYTES", 1 << 17)
    monkeypatch.setattr(exchanging, "SLICE_BYTES_MIN", 1 << 10)
    tensors = [torch.empty(size) for size in sizes]
    kind = KINDS[0]
    layout: Layout = lay_out(tensors, [str(n) for n in range(len(sizes))], [kind] * len(sizes), world_size)
    found = rounds_of(layout, kind)
    for owner in range(world_size):
        start, end = layout.share(owner, kind)
        parts = [part for slices in found for part in slices if part.owner == owner]
        assert [part.start for part in parts] == [start, *(part.end for part in parts)][: len(parts)]
        assert (parts[-1].end if parts else start) == end
        assert all(isinstance(part, Slice) and part.end > part.start for part in parts)
    assert all(slices for slices in found)
