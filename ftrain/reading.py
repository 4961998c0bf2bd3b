"""A manifest read again: believed only as far as it holds together.

Its checksum says that these are the bytes that a worker wrote. Whether that worker was right is another question, of
its version or its faults: a tensor that is said to lie a byte beside its place would be filled from, or written over,
what is not its own. So everything by which memory is addressed is looked at before any is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import msgspec
import torch

from ftrain.capture import FORMAT, Manifest
from ftrain.encoding import DICT, ORDERED, unpack
from ftrain.errors import StateInconsistent, StateMismatch, StateUndescribed
from ftrain.layout import REGION_ORDER, Layout, TensorSpec, fills
from ftrain.logical.state import RankState
from ftrain.plan import Plan
from ftrain.reshard.describer import Logical
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import decode

_MANIFEST: msgspec.msgpack.Decoder[Manifest] = msgspec.msgpack.Decoder(Manifest)
_LAYOUT: msgspec.msgpack.Decoder[Layout] = msgspec.msgpack.Decoder(Layout)
_LOGICAL: msgspec.msgpack.Decoder[Logical] = msgspec.msgpack.Decoder(Logical)
_REASON: msgspec.msgpack.Decoder[str] = msgspec.msgpack.Decoder(str)
"""Of a `Logical` that is none."""
_BYTES_MAX = 1 << 56


class _Outline(msgspec.Struct, frozen=True, array_like=True):
    """A `Manifest` of which only the logical state is wanted, and some of the tree."""

    format: int
    rank: int
    version: int
    layout: msgspec.Raw
    tail: msgspec.Raw
    logical: msgspec.Raw
    tree: msgspec.Raw


class _Size(msgspec.Struct):
    """Of a `Layout`."""

    world_size: int


_OUTLINE: msgspec.msgpack.Decoder[_Outline] = msgspec.msgpack.Decoder(_Outline)
_SIZE: msgspec.msgpack.Decoder[_Size] = msgspec.msgpack.Decoder(_Size)
_ITEMS: msgspec.msgpack.Decoder[list[msgspec.Raw]] = msgspec.msgpack.Decoder(list[msgspec.Raw])
_ANY = msgspec.msgpack.Decoder()
_NO_TREE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, SyntaxError)
"""What torch, numpy and Python say to values that are none; deep nesting is a RuntimeError, too."""


def read_manifest(
    manifest: bytes, rank: int, world_size: int, data_bytes: int | None = None
) -> tuple[Manifest, Layout, Layout]:
    """(content, layout, layout of the tail); ``data_bytes``: of the region that it describes, where it lies in one.

    Raises StateInconsistent if it is of another format, rank or world size, or contradicts itself.
    """
    try:
        content = decode(_MANIFEST, manifest)
        layout, tail = decode(_LAYOUT, content.layout), decode(_LAYOUT, content.tail)
    except ProtocolError as error:
        raise StateInconsistent(f"the manifest of rank {rank} cannot be read: {error}") from error
    _check_whose(content, layout.world_size, rank, world_size)
    for one in (layout, tail):
        _check_places(one)
    if tail.world_size != 1:
        raise StateInconsistent(f"the snapshot's manifest has a tail of {tail.world_size} ranks")
    if data_bytes is not None and layout.region_bytes(rank) + tail.region_bytes(0) > data_bytes:
        raise StateInconsistent(f"the snapshot's manifest speaks of more than the {data_bytes} bytes in this region")
    return content, layout, tail


def read_outline(manifest: bytes, rank: int, world_size: int) -> tuple[RankState, bytes]:
    """(what the rank's tensors are, the tree as it is encoded): without a look at layout and values.

    Raises StateInconsistent as `read_manifest` and `read_logical`.
    """
    try:
        content = decode(_OUTLINE, manifest)
        size = decode(_SIZE, content.layout)
    except ProtocolError as error:
        raise StateInconsistent(f"the manifest of rank {rank} cannot be read: {error}") from error
    _check_whose(content, size.world_size, rank, world_size)
    return read_logical(content), bytes(content.tree)


def _check_whose(content: Manifest | _Outline, ranks: int, rank: int, world_size: int) -> None:
    if (content.format, content.rank, ranks) != (FORMAT, rank, world_size):
        raise StateInconsistent(
            f"the snapshot is of rank {content.rank} of {ranks} (format {content.format}), "
            f"expected was rank {rank} of {world_size} (format {FORMAT})"
        )


def read_logical(content: Manifest | _Outline) -> RankState:
    """What the rank's tensors are, whatever the world. Whether that holds together is for coverage.py to say.

    Raises StateInconsistent if it was not described, with the reason.
    """
    try:
        logical = decode(_LOGICAL, content.logical)
    except ProtocolError as error:
        raise StateInconsistent(f"what rank {content.rank} says of its tensors cannot be read: {error}") from error
    if isinstance(logical, str):
        raise StateUndescribed(f"rank {content.rank} could not describe its state for another world: {logical}")
    if logical.rank != content.rank:
        raise StateInconsistent(f"the manifest of rank {content.rank} describes rank {logical.rank}")
    return logical


def read_refusal(content: Manifest | _Outline | Plan) -> str | None:
    """Why the rank's state was not, or will not be, described; None: it is.

    A description is not read: that takes milliseconds where there are thousands of tensors, in each recovery.
    """
    try:
        return decode(_REASON, content.logical)
    except ProtocolError:
        return None


def read_tree(packed: Any, tensors: Sequence[Any]) -> dict[str, Any]:
    """The tree with ``tensors`` in their places. Raises StateInconsistent if it is none."""
    try:
        tree = unpack(packed, tensors)
    except _NO_TREE as error:
        raise StateInconsistent(f"the snapshot's values cannot be read: {error!r}") from error
    if not isinstance(tree, dict):
        raise StateInconsistent(f"the snapshot's values are no dict, but {type(tree).__name__}")
    return tree


def items_of(encoded: bytes) -> dict[str, bytes]:
    """A packed dict with names for keys; its values stay encoded. Raises StateInconsistent if it is none."""
    try:
        tag, *flat = decode(_ITEMS, encoded)
        if (kind := decode(_ANY, tag)) == ORDERED:
            del flat[:1]  # what hangs on it
        names = [read_value(key, ()) for key in flat[::2]]
        if kind not in (DICT, ORDERED) or not all(isinstance(name, str) for name in names):
            raise ValueError("no dict with names")
        return dict(zip(names, map(bytes, flat[1::2]), strict=True))
    except (ProtocolError, ValueError) as error:
        raise StateInconsistent(f"the snapshot's values cannot be read: {error}") from error


def read_value(encoded: bytes, tensors: Sequence[Any]) -> Any:
    """A value of a tree, which is encoded, with ``tensors`` in their places. Raises StateInconsistent if it is none."""
    try:
        return unpack(decode(_ANY, encoded), tensors)
    except (ProtocolError, *_NO_TREE) as error:
        raise StateInconsistent(f"the snapshot's values cannot be read: {error!r}") from error


def part_of(tree: Any, name: str) -> dict[str, Any]:
    """The dict that ``tree``, a dict, has under that name. Raises StateMismatch if it has none."""
    part = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(part, dict):
        raise StateMismatch(f"the snapshot's values lack {name!r}, or it is of another kind")
    return part


def _check_places(layout: Layout) -> None:
    """Each tensor is one, and lies behind the one before it in its space."""
    for spec in layout.specs:
        if not _is_tensor(spec):
            raise StateInconsistent(f"the snapshot's manifest describes no tensor: {spec}")
    for kind in REGION_ORDER:
        lain = [spec for spec in layout.specs if spec.kind == kind and spec.size_bytes]
        if any(before.offset + before.size_bytes > spec.offset for before, spec in pairwise(lain)):
            raise StateInconsistent("the snapshot's manifest lays tensors over each other")


def _is_tensor(spec: TensorSpec) -> bool:
    dtype = getattr(torch, spec.dtype, None)
    numbers = (spec.offset, spec.size_bytes, *spec.shape, *spec.strides)
    if not isinstance(dtype, torch.dtype) or not all(0 <= number <= _BYTES_MAX for number in numbers):
        return False
    if spec.size_bytes != prod(spec.shape) * dtype.itemsize or not _is_device(spec.device):
        return False
    if not spec.size_bytes:
        return len(spec.shape) == len(spec.strides) and prod(max(1, n) for n in spec.shape) <= _BYTES_MAX
    return fills(spec.shape, spec.strides)


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
