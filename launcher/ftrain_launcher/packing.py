"""`Form` on its way to very many nodes: what all of them are told is encoded and compressed once.

Each node is told where all of its peers are, so that the bytes of a formation grow with the square of their number.
What differs from node to node are three numbers; the rest is made once for a generation, and in compressed form a peer
costs few bytes, since hosts and ports are much alike.
"""

from __future__ import annotations

import zlib

import msgspec

from ftrain_launcher.protocol import MESSAGE_BYTES_MAX
from ftrain_launcher.to_agent import Form, ToAgent
from ftrain_snapshot.membership import Origin

_LEVEL = 1
_encode = msgspec.msgpack.Encoder().encode
_form = msgspec.msgpack.Decoder(Form).decode


class PackedForm(msgspec.Struct, frozen=True, tag="packed_form"):
    """A `Form` on the line; `decode` gives it back."""

    position: int
    origin_position: int
    older_position: int
    common: bytes
    """All else."""


_decode = msgspec.msgpack.Decoder(ToAgent | PackedForm).decode


class Packer:
    """Of one controller: it keeps the common part of the newest generation."""

    def __init__(self) -> None:
        self._packed: Form | None = None
        self._common = b""

    def pack(self, form: Form) -> PackedForm:
        """What to send instead."""
        newest = self._packed
        if newest is None or newest.generation != form.generation or newest.peers is not form.peers:
            self._packed = form
            rest = _at(form, 0, -1, -1)
            self._common = zlib.compress(_encode(rest), _LEVEL)
        return PackedForm(form.position, _position(form.origin), _position(form.older), self._common)


def decode(data: bytes) -> ToAgent:
    """What the controller said. Raises msgspec.DecodeError."""
    message = _decode(data)
    return _unpack(message) if isinstance(message, PackedForm) else message


def _unpack(packed: PackedForm) -> Form:
    try:
        inflating = zlib.decompressobj()
        common = _form(inflating.decompress(packed.common, MESSAGE_BYTES_MAX))
    except zlib.error as error:
        raise msgspec.DecodeError(f"not compressed as it should be: {error}") from error
    return _at(common, packed.position, packed.origin_position, packed.older_position)


def _position(origin: Origin | None) -> int:
    return -1 if origin is None else origin.position


def _at(form: Form, position: int, origin_position: int, older_position: int) -> Form:
    """The same as the node at these positions is told it."""
    replace = msgspec.structs.replace
    return replace(
        form,
        position=position,
        origin=None if form.origin is None else replace(form.origin, position=origin_position),
        older=None if form.older is None else replace(form.older, position=older_position),
    )
