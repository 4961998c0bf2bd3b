"""What goes over a connection between two daemons (transport.py): a prefix, head (msgpack), body.

Head and body are padded to 64 bytes, so that bodies lie aligned in the receive buffer. The prefix has the lengths of
both, what the frame is for, and checksums of these and of the head; of the body there is one in the head, made where
the bytes were made. Lengths are bounded, and checked before anything is done by them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import decode
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.placement import ALIGNMENT_BYTES, round_up
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.wire import PeerMessage

HEAD_BYTES_MAX = 4 << 20
"""Longest message: a description of some 500 GB of state."""
_LENGTHS = struct.Struct("<III")
_SUMS = struct.Struct("<IQ")
PREFIX_BYTES = _LENGTHS.size + _SUMS.size
_TRAFFICS = len(Traffic)
_PADDING = bytes(ALIGNMENT_BYTES)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)


class Prefix(NamedTuple):
    """What a frame announces."""

    head_bytes: int
    body_bytes: int
    traffic: int
    head_sum: int

    @property
    def body_start(self) -> int:
        """Where the body begins in the frame."""
        return round_up(PREFIX_BYTES + self.head_bytes, ALIGNMENT_BYTES)

    @property
    def frame_bytes(self) -> int:
        """Of all of it, padding included."""
        return self.body_start + round_up(self.body_bytes, ALIGNMENT_BYTES)


def read_prefix(view: memoryview) -> Prefix:
    """Of the frame that begins here. Raises ProtocolError if there is none."""
    head, body, traffic = _LENGTHS.unpack_from(view)
    lengths_sum, head_sum = _SUMS.unpack_from(view, _LENGTHS.size)
    if head > HEAD_BYTES_MAX or body > CHUNK_BYTES or traffic >= _TRAFFICS:
        raise ProtocolError(f"a frame announces {head} and {body} bytes of kind {traffic}")
    if lengths_sum != _lengths_sum(view[: _LENGTHS.size]):
        raise ProtocolError("the lengths of a frame are not those that were sent")
    return Prefix(head, body, traffic, head_sum)


def read_message(prefix: Prefix, view: memoryview) -> PeerMessage:
    """The message of a frame that is there. Raises ProtocolError if it is not as it was sent, or is none."""
    head = view[PREFIX_BYTES : PREFIX_BYTES + prefix.head_bytes]
    if checksum(head) != prefix.head_sum:
        raise ProtocolError("a message is not the one that was sent")
    return decode(_DECODER, head)


def encode_message(message: PeerMessage, body_bytes: int, traffic: Traffic) -> memoryview:
    """A frame up to its body, padded. Raises ProtocolError if the message is too long."""
    head = _ENCODER.encode(message)
    if len(head) > HEAD_BYTES_MAX:
        raise ProtocolError(f"a message of {len(head)} bytes is longer than {HEAD_BYTES_MAX}")
    frame = encode_prefix(head, body_bytes, traffic) + head
    return memoryview(frame + padding(len(frame)))


def encode_prefix(head: bytes, body_bytes: int, traffic: Traffic) -> bytes:
    """What precedes a head."""
    lengths = _LENGTHS.pack(len(head), body_bytes, traffic)
    return lengths + _SUMS.pack(_lengths_sum(lengths), checksum(head))


def padding(length: int) -> memoryview:
    """What follows so many bytes."""
    return memoryview(_PADDING)[: -length % ALIGNMENT_BYTES]


def _lengths_sum(lengths: bytes | memoryview) -> int:
    """Checked before anything else: a wrong length would have us wait for bytes that never come."""
    return checksum(lengths) & 0xFFFFFFFF
