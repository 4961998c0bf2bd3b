"""Resume from a durable checkpoint: each rank reads its own tree and tensors, checked, and no process group is needed.

What comes back is what `restore.read_state` has for a tree, of the snapshot in memory. Nothing of the checkpoint is
trusted: ``.metadata`` goes through a restricted unpickler, our own records are msgpack, tensors are loaded with
``weights_only``, and every item's checksum is compared before it is looked at.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
import xxhash

from ftrain.durable import metadata
from ftrain.durable.contents import specs_of
from ftrain.durable.parts import FORMAT, INDEX_KEY, Index, RankRecord, manifest_key, place_of
from ftrain.errors import StateInconsistent, StateMismatch
from ftrain.layout import TensorSpec
from ftrain.reading import read_manifest, read_refusal, read_tree
from ftrain.shards import Box
from ftrain_snapshot.storage import BLOCK_BYTES, METADATA, Storage, folder_name, step_of

T = TypeVar("T")


class Stored(NamedTuple):
    """What one rank captured; `restore.Restored` is the same from memory."""

    tree: dict[str, Any]
    """With tensors of its own."""
    refusal: str | None
    """Why no other world can take the state over; None: it was described."""


def read_state(checkpoint: Checkpoint, rank: int, world_size: int) -> Stored:
    """What ``rank`` captured.

    Raises StateMismatch if the checkpoint is of another world size, StateInconsistent if it is damaged; StorageError.
    """
    index = checkpoint.index
    if index.world_size != world_size:
        raise StateMismatch(
            f"{checkpoint.path} was written by {index.world_size} ranks, this job has {world_size}: "
            "resuming needs as many"
        )
    record = checkpoint.record(rank)
    content, layout, tail = read_manifest(record.manifest, rank, world_size)
    specs = specs_of(layout, tail)
    checkpoint.check_fits(record, rank, len(specs))
    tensors = [
        checkpoint.part(key, spec, record.boxes[index]) if index in record.boxes else checkpoint.tensor(key, spec)
        for index, (key, spec) in enumerate(zip(record.keys, specs, strict=True))
    ]
    return Stored(read_tree(content.tree, tensors), read_refusal(content))


class Checkpoint:
    """One complete checkpoint, item by item. Raises StateInconsistent, StorageError."""

    def __init__(self, path: str) -> None:
        """``path`` is `DurableId.path`. Raises StateMismatch, too, if no checkpoint can be of that name."""
        url, _, name = path.rstrip("/").rpartition("/")
        step = step_of(name)
        if step is None:
            raise StateMismatch(f"{path} is no checkpoint of ftrain: its name would be like {folder_name(100)}")
        self._storage, self._step, self.path = Storage(url), step, path
        self._records: dict[int, RankRecord] = {}
        self._stored = metadata.decode(self._storage.read(step, METADATA))
        content = self._load(INDEX_KEY, self._content(INDEX_KEY), bytes)
        if len(content) < 8 or xxhash.xxh3_64_intdigest(content[:-8]) != int.from_bytes(content[-8:], "little"):
            raise StateInconsistent(f"{self.path}: {INDEX_KEY} is damaged")
        self.index = _decoded(content[:-8], Index, self.path)
        """What the writers said of it."""
        if self.index.format != FORMAT or self.index.version != step:
            raise StateInconsistent(
                f"{self.path} is of step {self.index.version}, format {self.index.format}; "
                f"expected was step {step}, format {FORMAT}"
            )

    def record(self, rank: int) -> RankRecord:
        """What a rank's resume begins with; read once, though several ask for it."""
        if rank not in self._records:
            key = manifest_key(rank)
            self._records[rank] = _decoded(self._load(key, self._checked(key), bytes), RankRecord, self.path)
        return self._records[rank]

    def check_fits(self, record: RankRecord, rank: int, tensors: int) -> None:
        """It must say of each of the manifest's tensors where it is stored."""
        if len(record.keys) != tensors:
            raise StateInconsistent(f"{self.path}: {manifest_key(rank)} does not fit its manifest")

    def tensor(self, key: str, spec: TensorSpec) -> torch.Tensor:
        """One tensor, of the dtype, shape, memory order and device type that it was captured with."""
        loaded = self._load(key, self._checked(key), torch.Tensor)
        target = spec.empty()
        if loaded.shape != target.shape or loaded.dtype != target.dtype:
            raise StateInconsistent(
                f"{self.path}: {key} is {loaded.dtype} {tuple(loaded.shape)}, "
                f"the manifest says {target.dtype} {tuple(target.shape)}"
            )
        if loaded.stride() != target.stride():
            loaded = target.copy_(loaded)
        return loaded.to(spec.device)

    def part(self, key: str, spec: TensorSpec, boxes: Sequence[Box]) -> torch.Tensor:
        """The same of a part of a sharded tensor, of which these boxes are stored."""
        target = spec.empty()
        for box in boxes:
            loaded, place = self._load(key, self._checked(place_of(key, box.offsets)), torch.Tensor), target[box.slices]
            if loaded.shape != place.shape or loaded.dtype != place.dtype:
                raise StateInconsistent(
                    f"{self.path}: {key} at {list(box.offsets)} is {loaded.dtype} {tuple(loaded.shape)}, "
                    f"the manifest says {place.dtype} {tuple(place.shape)}"
                )
            place.copy_(loaded)
        if sum(prod(box.sizes) for box in boxes) != target.numel():
            raise StateInconsistent(f"{self.path}: {key} is not stored in full")
        return target.to(spec.device)

    def _checked(self, key: str) -> bytes:
        content = self._content(key)
        if xxhash.xxh3_64_intdigest(content) != self.index.sums.get(key):
            raise StateInconsistent(f"{self.path}: {key} is damaged: its checksum is not the one that was written")
        return content

    def length(self, place: str) -> int:
        """Of an item, in bytes."""
        return int(self._info(place).length)

    def block(self, place: str, number: int) -> bytes:
        """One block of an item that has checksums of them, proved."""
        content = self._content(place, number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
        if (xxhash.xxh3_64_intdigest(content),) != self.index.blocks[place].sums[number : number + 1]:
            raise StateInconsistent(f"{self.path}: {place} is damaged: a checksum is not the one that was written")
        return content

    def _content(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """An item's bytes, or some of them."""
        info = self._info(key)
        stop = info.length if stop is None else min(stop, info.length)
        content = self._storage.read(self._step, info.relative_path, info.offset + start, info.offset + stop)
        if len(content) != stop - start:
            raise StateInconsistent(f"{self.path}: {key} is damaged: {info.relative_path} ends early")
        return content

    def _info(self, key: str) -> Any:
        info = self._stored.get(key)
        if info is None:
            raise StateInconsistent(f"{self.path}: {key} is missing; only checkpoints that ftrain wrote can be resumed")
        if "/" in info.relative_path:
            raise StateInconsistent(f"{self.path}: {key} lies outside of the checkpoint")
        return info

    def _load(self, key: str, content: bytes, kind: type[T]) -> T:
        try:
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is none
            raise StateInconsistent(
                f"{self.path}: {key} cannot be read: {' '.join(str(error).split())[:200]}"
            ) from error
        if not isinstance(value, kind):
            raise StateInconsistent(f"{self.path}: {key} is no {kind.__name__}")
        return value


def _decoded(content: bytes, kind: type[T], path: str) -> T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise StateInconsistent(f"{path}: a {kind.__name__} cannot be read: {error}") from error
