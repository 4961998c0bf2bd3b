"""Small messages on unix sockets: a length (u32, little endian), then a msgpack body of at most 16 MiB.

The same frames serve agent, workers, zygote and daemon. Three readers for three kinds of caller: blocking
(``recv_frame``), asyncio (``FrameReader``), and bytes as they come (``FrameBuffer``). A node's folder may lie
deeper than the 107 bytes that an address of a unix socket can hold: ``bind_unix`` and ``connect_unix`` then
reach it through a handle of the folder.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from ftrain_snapshot.errors import ProtocolError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
FRAME_BYTES_MAX = 16 << 20
"""Longest body of a frame."""
_VIEWS_MAX = 64
"""Buffers that one call fills."""
_UNIX_PATH_BYTES_MAX = 107
_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


def encode_frame(body: bytes) -> bytes:
    """Length and body, ready to be written. Raises ProtocolError if the body is too long."""
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame of {len(body)} bytes is longer than {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview) -> T:
    """The message in ``data``. Raises ProtocolError if it is none, whatever the bytes.

    Beside its own errors, msgspec lets two of Python's through: of text that is not UTF-8, and of deep nesting.
    """
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"what came is no message: {error}") from None


def _body_length(prefix: bytes | bytearray) -> int:
    length: int = _LENGTH.unpack(prefix)[0]
    if length > FRAME_BYTES_MAX:
        raise ProtocolError(f"a frame announces {length} bytes, more than {FRAME_BYTES_MAX}")
    return length


def send_frame(sock: socket.socket, body: bytes) -> None:
    """Write one frame on a blocking socket; its own timeout bounds the wait."""
    sock.sendall(encode_frame(body))


def recv_frame(sock: socket.socket) -> bytes:
    """Read one frame from a blocking socket.

    Raises EOFError if the other end closed, ProtocolError if the length is out of bounds, TimeoutError as the
    socket's timeout says.
    """
    return _recv_exactly(sock, _body_length(_recv_exactly(sock, _LENGTH.size)))


def _recv_exactly(sock: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    view, filled = memoryview(buffer), 0
    while filled < count:
        received = sock.recv_into(view[filled:])
        if not received:
            raise EOFError("the other end closed the connection")
        filled += received
    return bytes(buffer)


def recv_into(sock: socket.socket, views: Sequence[memoryview]) -> None:
    """Fill ``views``, one after the other, with what follows a frame. Raises as `recv_frame` does."""
    left = deque(view for view in views if view)
    while left:
        received = sock.recvmsg_into([left[i] for i in range(min(_VIEWS_MAX, len(left)))])[0]
        if not received:
            raise EOFError("the other end closed the connection")
        while left and received >= len(left[0]):
            received -= len(left.popleft())
        if received:
            left[0] = left[0][received:]


class FrameReader:
    """Frames from an asyncio stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def read(self) -> bytes:
        """The next body. Raises EOFError when the other end closed, ProtocolError on a length out of bounds."""
        prefix = await self._reader.readexactly(_LENGTH.size)  # IncompleteReadError is an EOFError
        return await self._reader.readexactly(_body_length(prefix))


class FrameBuffer:
    """Bytes in, as they come; whole bodies out."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """All bodies that ``data`` completes. Raises ProtocolError on a length out of bounds."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            end = _LENGTH.size + _body_length(self._bytes[: _LENGTH.size])
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            yield body


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= _UNIX_PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def bind_unix(path: str | Path, *, backlog: int = 128) -> socket.socket:
    """A listening unix socket at ``path``, for its owner only; a stale socket there is replaced."""
    path = Path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        with _short_path(path) as short:
            sock.bind(short)
        path.chmod(0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def is_same_user(sock: socket.socket) -> bool:
    """Whether the other end of a unix socket runs as this user, or as root; the kernel says who connected."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return uid in (0, os.geteuid())


def connect_unix(path: str | Path, timeout_seconds: float | None = 10.0) -> socket.socket:
    """A blocking connection to the unix socket at ``path``, whose operations time out after ``timeout_seconds``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_seconds)
        with _short_path(Path(path)) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock
