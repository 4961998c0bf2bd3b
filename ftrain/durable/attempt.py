"""One attempt at one node's part of a checkpoint, and at position 0 at the whole of it.

    claim ──> one data file: per rank its manifest, its objects, its tensors one at a time ──> part record
    position 0: all part records ──> index, at the end of its own file ──> ``.metadata`` ──> retention

A record or a file that is there proves nothing; only ``.metadata`` does, and it is written when all the rest is on
storage in full length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

import msgspec
import torch

from ftrain.durable import metadata
from ftrain.durable.contents import Path, RankContents, RegionReader, Shard, keeper_of, tensor_keys
from ftrain.durable.parts import (
    FORMAT,
    INDEX_KEY,
    Alias,
    Blocks,
    Index,
    Item,
    Part,
    RankRecord,
    manifest_key,
    merged,
)
from ftrain.durable.source import Source
from ftrain.errors import FtrainError, StateMismatch
from ftrain.shards import is_first_holder
from ftrain_snapshot.manifest import checksum
from ftrain_snapshot.storage import METADATA, Claim, Storage, StorageError, Stream, data_name, part_name, part_of
from ftrain_snapshot.words import SnapshotId

GRACE_SECONDS = 30.0
"""After its timeout a writer has so long to clean up; then it is ended by force."""
CLEANING = "applying retention"
"""What position 0 is doing once its checkpoint exists."""
POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.05, 5.0
"""How often position 0 looks for the others' parts: less and less often."""


class OthersMissing(FtrainError):
    """Parts of other positions were not there in time, or will never be."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one writer is asked to do."""

    url: str
    """Anything fsspec knows; checkpoints are folders in it."""
    snapshot: SnapshotId
    position: int
    positions: int
    """Nodes of the job."""
    lanes: int
    """Ranks per node; rank = position * lanes + lane."""
    name: str = ""
    """The job's, unlike that of any other job that could write to this URL."""
    keep: int = 2
    """Complete checkpoints that retention leaves."""
    timeout_seconds: float = 3600.0
    """After so long the writer gives up; GRACE_SECONDS later it has ended, whatever it was doing."""

    def __post_init__(self) -> None:
        if not 0 <= self.position < self.positions or self.lanes < 1:
            raise ValueError(f"position {self.position} of {self.positions} with {self.lanes} lanes")
        if self.keep < 1 or self.timeout_seconds <= 0:
            raise ValueError("keep and timeout_seconds must be positive")

    @property
    def step(self) -> int:
        """The step that the checkpoint is named after."""
        return self.snapshot.version

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.positions * self.lanes

    @property
    def attempt(self) -> str:
        """The same in all writers of this snapshot, and in no others."""
        return f"{self.name}:{self.snapshot.version}:{self.snapshot.generation}:{self.snapshot.slot}"


class Attempt:
    """One attempt at one node's part. ``write`` raises StorageError, SnapshotError, FtrainError, TimeoutError."""

    def __init__(self, job: Job, source: Source, *, clock: Callable[[], float] = time.time) -> None:
        self.doing = "reading the snapshot"
        """For the one line that is said if time runs out."""
        self.remark = ""
        """What went wrong once the checkpoint existed."""
        self._job, self._source = job, source
        self._clock = clock
        self._storage = Storage(job.url)
        self._started = clock()
        self._part: Part | None = None

    def write(self) -> None:
        """All of it; when it returns, this part is written, and at position 0 the checkpoint exists."""
        job = self._job
        expires = self._started + job.timeout_seconds + GRACE_SECONDS
        claim = Claim(job.attempt, job.position, self._started, expires, job.world_size)
        number = self._storage.claim(job.step, claim)
        self._part = Part(job.attempt, job.position, self._started, expires, number, ranks=job.world_size)
        file = data_name(job.position, number)
        reader = RegionReader(self._source, job.lanes, job.world_size)
        reader.contents(0)
        with self._storage.stream(job.step, file) as stream:
            items = _Items(stream, file)
            self._put_all(items, reader)
            if job.position == 0:
                parts = self._wait_for_others()
                self._put_index(items, parts)
        self._record(items, stream.length)
        if job.position == 0:
            self._commit([*parts, self._part])

    def give_up(self, reason: str) -> None:
        """Say that this part will not come, and take back what was written of it; as far as that is possible."""
        if self._part is not None:
            failed = msgspec.structs.replace(self._part, expires=0.0, failure=reason, items=(), aliases=(), file="")
            said = self._say(failed)
            with suppress(StorageError):
                self._storage.remove(self._job.step, [data_name(self._job.position, self._part.number)])
            if not said:  # a full disk has room now; else the claim ends by itself
                self._say(failed)

    def _say(self, failed: Part) -> bool:
        """Whether others can read it now."""
        with suppress(StorageError):
            self._put_record(failed)
            return True
        return False

    # This node's part.

    def _put_all(self, items: _Items, reader: RegionReader) -> None:
        job = self._job
        first = reader.contents(0)  # all ranks name what they share as rank 0 does
        ranks = range(job.position * job.lanes, (job.position + 1) * job.lanes)
        for contents in map(reader.contents, ranks):
            if contents.layout.digest != first.layout.digest:
                raise StateMismatch(f"ranks 0 and {contents.rank} do not share the same tensors")
            keys = tensor_keys(contents, first)
            boxes = {index: shard.boxes for index, shard in contents.shards.items()}
            record = RankRecord(contents.manifest, tuple(keys), boxes)
            path: Path = ("ftrain", f"rank{contents.rank}", "manifest")
            items.put(manifest_key(contents.rank), path, msgspec.msgpack.encode(record))
            self._put_objects(items, first, contents, keys, reader)
            for index, spec in enumerate(contents.specs):
                if spec.kind.replicated and (
                    contents.rank != ranks[0] or keeper_of(contents.layout, index, job.lanes) != job.position
                ):
                    continue
                leaf = first.plain.get(keys[index])
                path = leaf.path if leaf is not None else tuple(keys[index].split(".", 2))
                shard = contents.shards.get(index)
                if shard is None:
                    items.put(keys[index], path, reader.tensor(contents.rank, index))
                elif shard.boxes and is_first_holder(shard.spec, contents.rank):
                    items.put_boxes(keys[index], path, reader.tensor(contents.rank, index), shard)

    def _put_objects(
        self, items: _Items, first: RankContents, contents: RankContents, keys: list[str], reader: RegionReader
    ) -> None:
        """Plain keys of values that are no tensors, and of tensors that are stored under another key."""
        for key, leaf in contents.plain.items():
            if contents.rank != 0 and key in first.plain:
                continue  # DCP keeps one, too; the rank's own is in its manifest
            if leaf.index is None:
                items.put(key, leaf.path, contents.with_tensors(leaf.value, reader))
            elif keys[leaf.index] != key:
                items.aliases.append(Alias(key, leaf.path, keys[leaf.index]))

    def _record(self, items: _Items, file_bytes: int) -> None:
        assert self._part is not None
        self._part = msgspec.structs.replace(
            self._part,
            expires=0.0 if self._job.position else self._part.expires,  # position 0 has still to commit
            items=tuple(items.items),
            aliases=tuple(items.aliases),
            file=items.file,
            file_bytes=file_bytes,
        )
        self._put_record(self._part)

    def _put_record(self, part: Part) -> None:
        self._storage.write(self._job.step, part_name(part.position, part.number), msgspec.json.encode(part))

    # Position 0.

    def _wait_for_others(self) -> list[Part]:
        """The parts of all other positions. Raises OthersMissing."""
        job = self._job
        found: dict[int, Part] = {}
        pause = POLL_SECONDS_MIN
        while len(found) < job.positions - 1:
            self.doing = f"waiting for positions {', '.join(map(str, self._missing(found)))}"
            names = self._storage.names(job.step)
            for name in sorted(names, key=lambda name: part_of(name) or (-1, -1), reverse=True):  # the last try counts
                place = part_of(name)
                if place is not None and place[0] in self._missing(found):
                    part = self._read_part(name)
                    if part is not None and part.file:
                        found[part.position] = part
            if len(found) < job.positions - 1:
                if self._clock() > self._started + job.timeout_seconds:
                    raise OthersMissing(f"no part of positions {', '.join(map(str, self._missing(found)))} in time")
                time.sleep(pause)  # storage tells nobody of what others have written
                pause = min(POLL_SECONDS_MAX, 1.3 * pause)
        self.doing = "writing the metadata"
        return list(found.values())

    def _missing(self, found: dict[int, Part]) -> list[int]:
        return [position for position in range(1, self._job.positions) if position not in found]

    def _read_part(self, name: str) -> Part | None:
        """Another position's record, if it is of this attempt. Raises OthersMissing if it says that it failed."""
        try:
            part = msgspec.json.decode(self._storage.read(self._job.step, name), type=Part)
        except msgspec.DecodeError:
            return None  # being claimed
        if part.writer != self._job.attempt:
            return None
        if part.failure:
            raise OthersMissing(f"position {part.position}: {part.failure}")
        return part

    def _put_index(self, items: _Items, parts: Sequence[Part]) -> None:
        every = [*items.items, *(item for part in parts for item in part.items)]
        sums = {item.place: item.sum for item in every}
        blocks = {item.place: item.blocks for item in every if item.blocks is not None}
        index = Index(FORMAT, self._job.step, self._job.world_size, sums, blocks)
        items.put(INDEX_KEY, ("ftrain", "index"), _with_sum(msgspec.msgpack.encode(index)))

    def _commit(self, parts: list[Part]) -> None:
        job = self._job
        for part in parts:
            size = self._storage.size(job.step, part.file)
            if size != part.file_bytes:
                raise StorageError(f"--durable {job.url}: {part.file} has {size} bytes, {part.file_bytes} were written")
        content = metadata.encode(merged(parts), self._storage.path(job.step), job.attempt)
        own, self._part = self._part, None  # whatever happens from here on, nothing of it may be taken back
        assert own is not None
        self._storage.write(job.step, METADATA, content)
        self.doing = CLEANING
        try:
            # What is left of the attempt is one small record, which marks the folder as ours.
            self._put_record(msgspec.structs.replace(own, expires=0.0, items=(), aliases=()))
            self._storage.remove(job.step, [part_name(part.position, part.number) for part in parts if part.position])
            self._storage.retire(job.keep, self._clock())
        except StorageError as error:
            self.remark = f"the checkpoint is written, but cleaning up failed: {error}"


class _Items:
    """One data file: items one behind another."""

    def __init__(self, stream: Stream, file: str) -> None:
        self.file = file
        self.items: list[Item] = []
        self.aliases: list[Alias] = []
        self._stream = stream

    def put(self, key: str, path: Path, value: Any) -> None:
        """Serialise as DCP does."""
        try:
            torch.save(value, cast(IO[bytes], self._stream))
        except RuntimeError as error:  # torch ends its archive all the same, and complains of that instead
            raise (self._stream.failure or error) from None
        marked = self._stream.mark()
        item = Item(key, path, self.file, marked.offset, marked.length, marked.sum)
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            blocks = Blocks(tuple(value.stride()), marked.blocks) if marked.blocks else None
            item = msgspec.structs.replace(item, dtype=dtype, shape=tuple(value.shape), blocks=blocks)
        self.items.append(item)

    def put_boxes(self, key: str, path: Path, local: torch.Tensor, shard: Shard) -> None:
        """A part of a sharded tensor, box by box, as DCP does."""
        for box in shard.boxes:
            piece = local[box.slices]
            # A copy: torch.save writes all of the memory that a view is of.
            self.put(
                key, path, local if piece.shape == local.shape else piece.clone(memory_format=torch.contiguous_format)
            )
            self.items[-1] = msgspec.structs.replace(self.items[-1], offsets=box.offsets, whole=shard.spec.shape)


def _with_sum(content: bytes) -> bytes:
    return content + checksum(content).to_bytes(8, "little")
