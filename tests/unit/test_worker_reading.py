"""A manifest that is cut, flipped, or made of other things: a state or StateMismatch, and no byte out of place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ftrain.capture import Capturer
from ftrain.errors import StateInconsistent, StateMismatch
from ftrain.restore import Restored, read_state
from ftrain_snapshot.arena import SLOTS, extend, home_bytes, home_path, table_bytes, table_path
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.manifest import Header, unit_bytes
from ftrain_snapshot.words import SnapshotId

ID = SnapshotId(1, 1, 0)
many = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
junk = st.sampled_from(
    [None, True, -1, 0, 1, 7, 63, 64, 2**31, 2**62, 2**63, -(2**63), 1.5, float("nan"), "", "cpu", "load", "O",
     "objects", b"", b"\xff", [], [0], [3], {}, [[]], [2, "a"], [8, -1], [17, 99], [17, "x"], [14, "O", [2], b"x"]]
)  # fmt: skip


class Silence:
    def captured(self, lane: int, snapshot: SnapshotId) -> None: ...
    def sealed(self, lane: int, snapshot: SnapshotId) -> None: ...
    def skip(self, snapshot: SnapshotId) -> None: ...


class Told:
    """A region with another manifest than it has."""

    def __init__(self, region: Region, manifest: bytes, data_bytes: int) -> None:
        self.home, self.spans = region.home, region.spans
        self._header = Header(ID, 0, 1, data_bytes, len(manifest), 0, 0)
        self._manifest = manifest

    def read(self, snapshot: SnapshotId) -> tuple[Header, bytes]:
        return self._header, self._manifest


def objects() -> dict[str, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 2).to(torch.float64))
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


class Captured:
    """A state with a bit of everything, in a lane."""

    def __init__(self, folder: Path) -> None:
        tracked = objects()
        for parameter in tracked["model"].parameters():
            parameter.grad = torch.ones_like(parameter)
        tracked["optimizer"].step()
        capturer = Capturer(0, 1, set, 0, Silence())
        capturer.track(tracked)
        rest = {"step": 1, "values": {"a": (1, {2.5}, b"x"), "t": torch.arange(5).t()}, "none": torch.empty(0, 3)}
        content = capturer.collect(lambda _: rest)
        self.manifest = capturer.manifest(1, content)
        self.data_bytes = content.data_bytes
        size = home_bytes(unit_bytes(self.data_bytes, len(self.manifest)))
        for slot in range(SLOTS):
            extend(home_path(folder, slot, 0), size)
            extend(table_path(folder, slot, 0), table_bytes(size))
        self.lane = Lane(folder, 0)
        capturer.begin(ID, content, self.manifest, self.lane)
        capturer.finish()
        capturer.close()
        self.expected = tracked["model"].state_dict()

    def read(self, manifest: bytes) -> dict[str, Any]:
        return self.restore(manifest).tree

    def restore(self, manifest: bytes) -> Restored:
        region: Any = Told(self.lane.regions[0], manifest, self.data_bytes)
        fresh = objects()
        restored = read_state(region, self.lane.homes, ID, 0, 1, fresh)
        self.found = fresh["model"].state_dict()
        return restored


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    made = Captured(tmp_path_factory.mktemp("lane"))
    yield made
    made.lane.close()


def unpacked(manifest: bytes) -> list[Any]:
    """As plain values, the layouts within them, too."""
    plain = msgspec.msgpack.decode(manifest)
    assert isinstance(plain, list)
    return plain


def altered(value: Any, random: Random, replace: Callable[[Any], Any]) -> Any:
    """The same, with one thing within it replaced."""
    if isinstance(value, list) and value and random.random() < 0.9:
        at = random.randrange(len(value))
        return [*value[:at], altered(value[at], random, replace), *value[at + 1 :]]
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        return value | {key: altered(value[key], random, replace)}
    return replace(value)


def is_read_or_refused(captured: Captured, manifest: bytes) -> bool:
    try:
        captured.read(manifest)
    except StateMismatch:
        return False
    return True


def test_what_was_written_is_read(captured: Captured) -> None:
    state = captured.read(captured.manifest)
    assert state["values"]["a"] == (1, {2.5}, b"x")
    assert torch.equal(state["values"]["t"], torch.arange(5))
    for name, tensor in captured.expected.items():
        assert torch.equal(captured.found[name], tensor), name


def test_why_no_other_world_can_take_it_over_comes_with_it(captured: Captured) -> None:
    """Else it would be forgotten where the same world goes on."""
    assert captured.restore(captured.manifest).refusal is None
    plain = unpacked(captured.manifest)
    plain[5] = "unlike masters"
    assert captured.restore(msgspec.msgpack.encode(plain)).refusal == "unlike masters"


@many
@given(st.data())
def test_a_flipped_or_cut_manifest_is_a_state_or_a_mismatch(captured: Captured, data: st.DataObject) -> None:
    flipped = bytearray(captured.manifest)
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    is_read_or_refused(captured, bytes(flipped))
    assert not is_read_or_refused(captured, captured.manifest[: data.draw(st.integers(0, len(flipped) - 1))])


@settings(many, max_examples=40)
@given(st.integers(0, 10**6), junk, st.integers(1, 3))
def test_a_manifest_with_other_things_in_it_is_a_state_or_a_mismatch(
    captured: Captured, seed: int, other: Any, count: int
) -> None:
    random, plain = Random(seed), unpacked(captured.manifest)
    for _ in range(count):
        plain = altered(plain, random, lambda value: other)
    is_read_or_refused(captured, msgspec.msgpack.encode(plain))


@settings(many, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([-64, -1, 1, 4, 64, 4096, 2**20, 2**40]))
def test_numbers_that_are_a_little_wrong_are_a_state_or_a_mismatch(captured: Captured, seed: int, by: int) -> None:
    random, plain = Random(seed), unpacked(captured.manifest)
    part = random.choice([3, 4])
    plain[part] = altered(plain[part], random, lambda v: v + by if isinstance(v, int) else v)
    is_read_or_refused(captured, msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(("field", "by"), [(6, -64), (6, 2**20), (7, 4), (7, -4)], ids=str)
def test_a_tensor_in_anothers_place_is_refused(captured: Captured, field: int, by: int) -> None:
    plain = unpacked(captured.manifest)
    spec = plain[3]["specs"][1]
    spec[field] += by
    with pytest.raises(StateInconsistent):  # whatever the script is: an older one may do
        captured.read(msgspec.msgpack.encode(plain))
