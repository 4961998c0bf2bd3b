"""A checkpoint read as the snapshot that it was written from: any range, and of long tensors no more than that."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import durable_job as job
import msgspec
import pytest
import torch

from ftrain.durable.attempt import Job, _Items
from ftrain.durable.contents import Shard
from ftrain.durable.reader import Checkpoint
from ftrain.durable.source import FoldersSource
from ftrain.durable.units import CheckpointSource, Stored, stored_of
from ftrain.durable.writer import run
from ftrain.errors import StateInconsistent
from ftrain.layout import Kind, TensorSpec
from ftrain.shards import Box, ShardSpec
from ftrain_snapshot.storage import BLOCK_BYTES, Storage
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(3, 1, 0)
LONG = (1003, 5001)


class Held:
    """A few tensors, one of them longer than a block, in its own order in memory."""

    def state_dict(self) -> dict[str, Any]:
        long = torch.arange(LONG[0] * LONG[1], dtype=torch.int32).view(LONG[::-1]).t()
        return {"small": torch.arange(7.0), "long": long, "last": torch.arange(9)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[FoldersSource, Path]:
    folder = tmp_path_factory.mktemp("durable")
    job.capture({"held": Held()}, 0, 1, SNAPSHOT, folder / "node0", shared=set())
    source = FoldersSource({0: folder / "node0"}, SNAPSHOT)
    where = Job(url=str(folder / "to"), snapshot=SNAPSHOT, position=0, positions=1, lanes=1)
    assert run(where, lambda: source) == 0
    return source, folder / "to" / "step-00000003"


def test_any_range_is_what_was_captured(written: tuple[FoldersSource, Path]) -> None:
    memory, path = written
    stored, random = CheckpointSource(Checkpoint(str(path))), Random(5)
    contents = stored._rank(0).contents
    assert stored.manifest(0, 0) == memory.manifest(0, 0)
    ends = [spec.offset + delta for spec in contents.specs for delta in (0, spec.size_bytes)]
    ends += [number * BLOCK_BYTES for number in range(1, contents.data_bytes // BLOCK_BYTES)]
    for _ in range(30):
        start = min(contents.data_bytes - 1, max(0, random.choice(ends) - random.choice([0, 1, 9000])))
        stop = min(contents.data_bytes, start + random.choice([1, 17, 70_000]))
        assert stored.read(0, 0, start, stop) == memory.read(0, 0, start, stop), (start, stop)


def test_of_a_long_tensor_only_blocks_with_wanted_bytes_are_read(
    written: tuple[FoldersSource, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(str(written[1]))
    stored = CheckpointSource(checkpoint)
    [spec] = [spec for spec in stored._rank(0).contents.specs if spec.size_bytes > BLOCK_BYTES]
    asked: list[int] = []
    read = Storage.read

    def noted(self: Storage, *arguments: Any) -> bytes:
        asked.append(len(found := read(self, *arguments)))
        return found

    monkeypatch.setattr(Storage, "read", noted)
    middle = spec.offset + 2 * BLOCK_BYTES + BLOCK_BYTES // 2
    stored.read(0, 0, middle, middle + 100)
    assert asked[1:] == [BLOCK_BYTES, BLOCK_BYTES]  # the directory's, the first, the one
    assert asked[0] <= BLOCK_BYTES
    stored.read(0, 0, middle + 100, middle + 900)
    assert len(asked) == 3


def test_a_flipped_byte_is_found_in_the_block_that_it_is_in(written: tuple[FoldersSource, Path]) -> None:
    _, path = written
    checkpoint = Checkpoint(str(path))
    stored = CheckpointSource(checkpoint)
    [spec] = [spec for spec in stored._rank(0).contents.specs if spec.size_bytes > BLOCK_BYTES]
    file = path / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    at = checkpoint._info("held.long").offset + BLOCK_BYTES + 1000
    content[at] ^= 1
    file.write_bytes(content)
    try:
        stored.read(0, 0, spec.offset, spec.offset + 10)
        with pytest.raises(StateInconsistent, match=r"held\.long is damaged"):
            stored.read(0, 0, spec.offset + BLOCK_BYTES, spec.offset + BLOCK_BYTES + 10)
    finally:
        content[at] ^= 1
        file.write_bytes(content)


def test_checkpoints_without_sums_of_blocks_are_read_whole(written: tuple[FoldersSource, Path]) -> None:
    memory, path = written
    checkpoint = Checkpoint(str(path))
    checkpoint.index = msgspec.structs.replace(checkpoint.index, blocks={})
    assert CheckpointSource(checkpoint).read(0, 0, 5000, 6000) == memory.read(0, 0, 5000, 6000)


def spec(shape: tuple[int, ...], strides: tuple[int, ...], elements: int) -> TensorSpec:
    return TensorSpec("t", "float32", shape, strides, "cpu", Kind(), 0, 4 * elements)


def test_boxes_that_are_runs_of_rows_are_read_in_parts_and_others_not() -> None:
    rows = Box((2, 0), (0, 0), (3, 5)), Box((9, 0), (3, 0), (1, 5))
    one, other = Stored(0, 60, "t\0" + "2,0", (5, 1)), Stored(60, 80, "t\0" + "9,0", (5, 1))
    assert stored_of(spec((4, 5), (5, 1), 20), "t", rows) == [one, other]
    assert stored_of(spec((4, 5), (1, 4), 20), "t", rows) is None
    assert stored_of(spec((4, 5), (5, 1), 20), "t", rows[:1]) is None
    columns = Box((0, 0), (0, 0), (4, 2)), Box((0, 7), (0, 2), (4, 3))
    assert stored_of(spec((4, 5), (5, 1), 20), "t", columns) is None
    whole = (Box((4, 0), (0, 0), (4, 5)),)
    assert stored_of(spec((4, 5), (1, 4), 20), "t", whole) == [Stored(0, 80, "t\0" + "4,0", (1, 4))]


def test_boxes_of_a_part_are_stored_without_the_rest_of_it(tmp_path: Path) -> None:
    local, whole = torch.zeros(1000, 8), cast("ShardSpec", SimpleNamespace(shape=(3000, 8)))
    boxes = tuple(Box((2 * start, 0), (start, 0), (200, 8)) for start in range(0, 1000, 200))
    (tmp_path / "step-00000001").mkdir()
    with Storage(str(tmp_path)).stream(1, "data") as stream:
        _Items(stream, "data").put_boxes("w", ("w",), local, Shard("w", whole, boxes))
        assert stream.length < 1.5 * local.nbytes
