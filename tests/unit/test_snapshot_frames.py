"""Frames: whole bodies whatever the pieces they come in; lengths out of bounds are refused."""

import asyncio
import os
import shutil
import socket
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import (
    FRAME_BYTES_MAX,
    FrameBuffer,
    FrameReader,
    bind_unix,
    connect_unix,
    encode_frame,
    is_same_user,
    recv_frame,
    send_frame,
)


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 60))
def test_bodies_survive_any_cutting(bodies, piece):
    stream, buffer, found = b"".join(map(encode_frame, bodies)), FrameBuffer(), []
    for at in range(0, len(stream), piece):
        found += buffer.feed(stream[at : at + piece])
    assert found == bodies


def test_blocking_ends_exchange_frames_and_see_the_close():
    left, right = socket.socketpair()
    with left, right:
        send_frame(left, b"one")
        send_frame(left, b"")
        assert recv_frame(right) == b"one"
        assert recv_frame(right) == b""
        left.close()
        with pytest.raises(EOFError):
            recv_frame(right)


def test_an_impossible_length_is_refused_by_every_reader():
    bad = (FRAME_BYTES_MAX + 1).to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        list(FrameBuffer().feed(bad))
    with pytest.raises(ProtocolError):
        encode_frame(bytes(FRAME_BYTES_MAX + 1))
    left, right = socket.socketpair()
    with left, right:
        left.sendall(bad)
        with pytest.raises(ProtocolError):
            recv_frame(right)

    async def read() -> bytes:
        stream = asyncio.StreamReader()
        stream.feed_data(encode_frame(b"fine") + bad)
        reader = FrameReader(stream)
        assert await reader.read() == b"fine"
        return await reader.read()

    with pytest.raises(ProtocolError):
        asyncio.run(read())


def test_a_unix_socket_is_for_its_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "daemon.sock"
    with bind_unix(path) as listener, connect_unix(path, 2.0):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server, _ = listener.accept()
        with server:
            assert is_same_user(server)
            credentials = struct.pack("iII", os.getpid(), os.getuid() + 1, os.getgid())
            monkeypatch.setattr("ftrain_snapshot.frames.socket.socket.getsockopt", lambda *_: credentials)
            assert not is_same_user(server)


@pytest.mark.parametrize("depth", [0, 12])
def test_a_socket_may_lie_deeper_than_an_address_is_long(tmp_path: Path, depth: int):
    folder = tmp_path.joinpath(*["a-rather-long-name"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "daemon.sock"
    with bind_unix(path) as listener, connect_unix(path, 2.0) as client:
        server, _ = listener.accept()
        with server:
            send_frame(client, b"hello")
            assert recv_frame(server) == b"hello"
    with pytest.raises(OSError):
        connect_unix(path, 1.0)
    with bind_unix(path):
        pass
    shutil.rmtree(folder)
