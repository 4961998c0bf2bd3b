"""Ranges of stored tensors, proved, without the rest of them.

A tensor lies in its item as torch.save puts it there: as one entry of a zip archive, which is not compressed, in its
order in memory. Of what is long the index has a checksum of each block, so what is read are blocks: the archive's last
one, for its directory, the first one, and those with bytes that are wanted. Some are kept.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import OrderedDict

from ftrain.durable.reader import Checkpoint
from ftrain.errors import StateInconsistent
from ftrain_snapshot.storage import BLOCK_BYTES

_ENTRY = "/data/0"
"""Of the only tensor of an archive."""
_HEAD = struct.Struct("<4s22xHH")
"""What an entry begins with: a sign, and how long its name is, and what else comes before its bytes."""
_SIGN = b"PK\3\4"


class Slices:
    """Of one checkpoint. Every method raises StateInconsistent, StorageError. One thread at a time."""

    def __init__(self, checkpoint: Checkpoint, kept_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._kept_bytes = kept_bytes
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._starts: dict[str, int] = {}

    def has(self, place: str, strides: tuple[int, ...]) -> bool:
        """Whether ranges of this item can be read, as they lie in a tensor with such strides."""
        found = self._checkpoint.index.blocks.get(place)
        return found is not None and found.strides == strides

    def read(self, place: str, size: int, start: int, into: memoryview) -> None:
        """Bytes of a tensor of ``size`` bytes from ``start`` on."""
        if place not in self._starts:
            self._starts[place] = self._find(place, size)
        at, done = self._starts[place] + start, 0
        while done < len(into):
            number, offset = divmod(at + done, BLOCK_BYTES)
            piece = memoryview(self.block(place, number))[offset : offset + len(into) - done]
            into[done : done + len(piece)] = piece
            done += len(piece)

    def block(self, place: str, number: int) -> bytes:
        """A block of an item."""
        found = self._blocks.pop((place, number), None)
        if found is None:
            while len(self._blocks) * BLOCK_BYTES >= self._kept_bytes:
                self._blocks.popitem(last=False)
            found = self._checkpoint.block(place, number)
        self._blocks[place, number] = found
        return found

    def length(self, place: str) -> int:
        """Of an item."""
        return self._checkpoint.length(place)

    def _find(self, place: str, size: int) -> int:
        """Where in its item a tensor's bytes begin."""
        file = _Item(self, place)
        try:
            with zipfile.ZipFile(file) as archive:
                [entry] = [each for each in archive.infolist() if each.filename.endswith(_ENTRY)]
            file.seek(entry.header_offset)
            sign, name, more = _HEAD.unpack(file.read(_HEAD.size))
        except (zipfile.BadZipFile, ValueError, struct.error) as error:
            raise StateInconsistent(f"{self._checkpoint.path}: {place} cannot be read: {error}") from error
        start = entry.header_offset + _HEAD.size + name + more
        is_plain = sign == _SIGN and entry.compress_type == zipfile.ZIP_STORED
        if not is_plain or entry.file_size != size or start + size > self.length(place):
            raise StateInconsistent(f"{self._checkpoint.path}: {place} is no tensor of {size} bytes")
        return int(start)


class _Item(io.RawIOBase):
    """An item as a file to read in."""

    def __init__(self, slices: Slices, place: str) -> None:
        self._slices, self._place, self._at = slices, place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._slices.length(self._place)}[whence]
        at = base + offset
        if at < 0:
            raise ValueError("before the beginning")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._slices.length(self._place) - self._at)
        stop = self._at + (left if size is None or size < 0 else min(size, left))
        pieces = []
        while self._at < stop:
            number, offset = divmod(self._at, BLOCK_BYTES)
            pieces.append(self._slices.block(self._place, number)[offset : offset + stop - self._at])
            self._at += len(pieces[-1])
        return b"".join(pieces)
