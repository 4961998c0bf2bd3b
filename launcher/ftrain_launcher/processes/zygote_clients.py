"""The zygote's socket: who is connected, what they asked, what they still have to be told.

Nothing here blocks: a client that stops in the middle of a frame, or that no longer reads, costs a bounded
buffer and is dropped when that is full. One thread, ``poll`` without a descriptor of its own (an epoll
would be shared with every forked child).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ftrain_launcher.processes import spawning
from ftrain_snapshot import frames
from ftrain_snapshot.errors import ProtocolError

_CLIENTS_MAX = 64
_OUTGOING_BYTES_MAX = 1 << 20


@dataclass(eq=False)
class Client:
    """One connection."""

    socket: socket.socket
    incoming: frames.FrameBuffer = field(default_factory=frames.FrameBuffer)
    outgoing: bytearray = field(default_factory=bytearray)


class Clients:
    """The listening socket, its connections, and the wake-up line for signals. Owned by one zygote."""

    def __init__(self, path: Path, hello: spawning.Ready) -> None:
        self._path = path
        self._hello = hello
        self._connected: dict[int, Client] = {}
        self.requests: deque[tuple[Client, spawning.Request]] = deque()
        """What was asked and not yet handled, in order."""
        self.none_since: float | None = time.monotonic()
        """Since when (monotonic) nobody is connected; None while somebody is."""
        self._wake, self._wake_sender = socket.socketpair()
        self._listener = self._listen()
        self._inode = path.stat().st_ino
        for own in (self._wake, self._wake_sender, self._listener):
            own.setblocking(False)
        signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)

    def _listen(self) -> socket.socket:
        """Bind beside the final name and rename: a stale file there goes, a live zygote's name is taken over."""
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        listener = frames.bind_unix(beside, backlog=_CLIENTS_MAX)
        beside.rename(self._path)
        return listener

    def wait(self, timeout_seconds: float | None) -> None:
        """Wait for a signal or a client (None: without end) and move bytes; fills ``requests``."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._listener, select.POLLIN)
        for fd, client in self._connected.items():
            poller.register(fd, select.POLLIN | (select.POLLOUT if client.outgoing else 0))
        # Rounded up, or a deadline less than a millisecond away would be spun for.
        for fd, events in poller.poll(None if timeout_seconds is None else timeout_seconds * 1000 + 1):
            if fd == self._wake.fileno():
                self._wake.recv(4096)
            elif fd == self._listener.fileno():
                self._accept()
            elif (client_or_none := self._connected.get(fd)) is not None:
                if events & select.POLLOUT:
                    self._flush(client_or_none)
                if events & ~select.POLLOUT:
                    self._receive(client_or_none)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client was quicker to leave, or descriptors ran out: it will try again
            return
        if len(self._connected) >= _CLIENTS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        client = self._connected[connection.fileno()] = Client(connection)
        self.none_since = None
        self.send(client, self._hello)

    def _receive(self, client: Client) -> None:
        try:
            data = client.socket.recv(1 << 16)
            bodies = client.incoming.feed(data)
            self.requests.extend((client, spawning.decode_request(body)) for body in bodies)
        except BlockingIOError:
            return
        except (OSError, ProtocolError, msgspec.DecodeError):
            data = b""
        if not data:
            self._drop(client)

    def send(self, client: Client, event: spawning.Event) -> None:
        """Send now what the socket takes and the rest later. A client that left hears nothing."""
        client.outgoing += spawning.encode(event)
        self._flush(client)

    def _flush(self, client: Client) -> None:
        try:
            del client.outgoing[: client.socket.send(client.outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
        if len(client.outgoing) > _OUTGOING_BYTES_MAX:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        self._connected.pop(client.socket.fileno(), None)
        client.socket.close()
        client.outgoing.clear()
        if not self._connected and self.none_since is None:
            self.none_since = time.monotonic()

    def close_in_child(self) -> None:
        """Give up, in a forked child, what belongs to the parent."""
        signal.set_wakeup_fd(-1)
        for own in (self._wake, self._wake_sender, self._listener):
            own.close()
        for client in self._connected.values():
            client.socket.close()

    def close(self) -> None:
        """End the service; the socket file is removed unless a successor has put its own there.

        A folder that is empty then was the job's or the node's, and whoever made it is gone: it goes as well.
        """
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()
        for client in list(self._connected.values()):
            self._drop(client)
        self.close_in_child()
