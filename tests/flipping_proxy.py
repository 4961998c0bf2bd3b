"""A TCP proxy that flips bits: what a broken card or switch does to bytes whose own checksum it makes anew."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random


class FlippingProxy:
    """Passes connections on to ``target``; every ``interval_bytes`` or so, once ``flips`` is set, a bit is flipped.

    The first ``spared_bytes`` of each direction pass unharmed (the handshake, which only delays a test).
    """

    def __init__(
        self, target: tuple[str, int], *, interval_bytes: int, spared_bytes: int = 4096, seed: int = 0
    ) -> None:
        self.flips = True
        self.flipped = 0
        self._target, self._interval, self._spared = target, interval_bytes, spared_bytes
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        """Cut everything, and wait for the threads."""
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)
            assert not thread.is_alive()
        for sock in sockets:
            sock.close()

    def _start(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target, 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    self._sockets |= {near, far}
                self._start(self._pass_on, near, far)
                self._start(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, destination: socket.socket) -> None:
        due = self._spared + self._random.randrange(self._interval)
        buffer = bytearray(1 << 16)
        with suppress(OSError):
            while count := source.recv_into(buffer):
                while due < count:
                    if self.flips:
                        buffer[due] ^= 1 << self._random.randrange(8)
                        self.flipped += 1
                    due += 1 + self._random.randrange(2 * self._interval)
                due -= count
                destination.sendall(memoryview(buffer)[:count])
        for sock in (source, destination):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def flipping(target: tuple[str, int], **options: int) -> Iterator[FlippingProxy]:
    """A proxy for the time of a test."""
    proxy = FlippingProxy(target, **options)
    try:
        yield proxy
    finally:
        proxy.close()
