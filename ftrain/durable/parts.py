"""What each writer says it has written, and how the parts of all positions make one checkpoint.

A part record is JSON, never a pickle: it crosses from one node to another through the storage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ftrain.shards import Box

FORMAT = 2
"""Version of what lies under ``ftrain.`` in a checkpoint."""
INDEX_KEY = "ftrain.index"
"""The object that proves the rest: checksums of all items."""


def manifest_key(rank: int) -> str:
    """The object with what ``state_dict`` leaves out: a `RankRecord`."""
    return f"ftrain.rank{rank}.manifest"


def place_of(key: str, offsets: Sequence[int] = ()) -> str:
    """Tells the boxes of a tensor apart; that of a whole value, and of the box where a tensor begins, is its key."""
    return f"{key}\0{','.join(map(str, offsets))}" if any(offsets) else key


class Blocks(msgspec.Struct, frozen=True, array_like=True):
    """What it takes to read parts of a stored tensor."""

    strides: tuple[int, ...]
    """Its order in memory, which is the file's."""
    sums: tuple[int, ...]
    """xxh3 of each BLOCK_BYTES of the item."""


class Item(msgspec.Struct, frozen=True):
    """One value in a data file, or a box of a tensor."""

    key: str
    path: tuple[str | int, ...]
    """Where it belongs in the nested state dict."""
    file: str
    offset: int
    length: int
    sum: int
    """xxh3 of its bytes in the file."""
    dtype: str | None = None
    """None: an object, pickled by torch.save as DCP does."""
    shape: tuple[int, ...] = ()
    offsets: tuple[int, ...] | None = None
    """Of a box: where in the whole it begins."""
    whole: tuple[int, ...] | None = None
    """Of a box: the shape of the whole."""
    blocks: Blocks | None = None
    """Of a tensor that is long."""

    @property
    def place(self) -> str:
        """No other item of a checkpoint has it."""
        return place_of(self.key, self.offsets or ())


class Alias(msgspec.Struct, frozen=True):
    """Another plain key of a tensor that is stored once: tied weights."""

    key: str
    path: tuple[str | int, ...]
    target: str


class Part(msgspec.Struct, frozen=True):
    """A writer's record once it is done: `ftrain_snapshot.storage.Claim`, and what it wrote."""

    writer: str
    position: int
    started: float
    expires: float
    number: int
    failure: str = ""
    """Why this position's part will never be there."""
    items: tuple[Item, ...] = ()
    aliases: tuple[Alias, ...] = ()
    file: str = ""
    """Its data file; empty while that is being written."""
    file_bytes: int = 0
    ranks: int = 0
    """Of the job."""


class RankRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a rank's resume begins with."""

    manifest: bytes
    keys: tuple[str, ...]
    """Under which key each of the manifest's tensors is stored."""
    boxes: dict[int, tuple[Box, ...]] = {}
    """Of those that are parts of sharded tensors, by index: the boxes under that key that they consist of."""


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Written last, by position 0."""

    format: int
    version: int
    world_size: int
    sums: dict[str, int]
    """Checksums of all items, by their places."""
    blocks: dict[str, Blocks] = {}
    """Of long ones also these; checkpoints of older versions have none."""


def merged(parts: Sequence[Part]) -> dict[str, Item]:
    """All items by place, aliases as items of their own. Where several ranks have one, the lowest one's counts."""
    items: dict[str, Item] = {}
    by_key: dict[str, list[Item]] = {}
    for part in sorted(parts, key=lambda part: part.position):
        for item in part.items:
            if items.setdefault(item.place, item) is item:
                by_key.setdefault(item.key, []).append(item)
    for alias in _aliases(parts):
        if alias.key not in by_key and alias.target in by_key:
            found = [msgspec.structs.replace(item, key=alias.key, path=alias.path) for item in by_key[alias.target]]
            by_key[alias.key] = found
            items.update((item.place, item) for item in found)
    return items


def _aliases(parts: Sequence[Part]) -> Iterable[Alias]:
    for part in sorted(parts, key=lambda part: part.position):
        yield from part.aliases
