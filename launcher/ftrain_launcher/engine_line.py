"""A launcher's line to the controller: what the controller wants of this machine, and what becomes of its nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import aiohttp
import msgspec

from ftrain_launcher import leadership, names
from ftrain_launcher.engine_messages import EngineHello, FromEngine, ToEngine
from ftrain_launcher.errors import SecretRefused
from ftrain_launcher.jobs import Endpoint, JobFolder
from ftrain_launcher.line import LINE_ERRORS, Socket, open_line

_RECONNECT_SECONDS = 0.05

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToEngine).decode


class EngineLine:
    """Stays connected; nothing that was put in is lost while the line is down."""

    def __init__(self, folder: JobFolder, hello: Callable[[], EngineHello], obey: Callable[[ToEngine], None]) -> None:
        self._folder, self._hello, self._obey = folder, hello, obey
        record = folder.record()
        self._silence_seconds = record.config.heartbeat_timeout_seconds
        self._candidates = leadership.endpoints(record.config.candidates)
        self._own = None if record.candidate is None else self._candidates[record.candidate]
        self._unsent: deque[FromEngine] = deque()
        self._more = asyncio.Event()

    def put(self, message: FromEngine) -> None:
        """Say this to the controller; a hello is for the line that is open only, since each begins with one."""
        self._unsent.append(message)
        self._more.set()

    async def serve(self, silent_seconds_max: float = float("inf"), refused_seconds_max: float = float("inf")) -> str:
        """Reconnect until the controller has been out of reach for too long; returns in which way.

        It may be back when a cut network heals; where its host answers that nobody listens, there is less to wait for.
        """
        names.prepare(candidate.host for candidate in self._candidates)
        seen = time.monotonic()
        key = self._folder.line_key()
        turns = 0
        while True:
            waited_max, how = silent_seconds_max, "does not answer"
            endpoint = self._turn(turns)
            turns += 1
            if endpoint is not None:
                try:
                    async with open_line(endpoint, "/engine", lambda _: key, self._silence_seconds) as socket:
                        self._found(endpoint)
                        try:
                            await self._talk(socket)
                        finally:
                            seen, turns = time.monotonic(), 0
                except SecretRefused:
                    waited_max, how = refused_seconds_max, "is another job's"
                except aiohttp.ClientConnectorError:
                    waited_max, how = refused_seconds_max, "is gone"
                except LINE_ERRORS:
                    pass
            if time.monotonic() - seen > waited_max:
                return f"the controller {how} (for {time.monotonic() - seen:.0f} s)"
            await asyncio.sleep(_RECONNECT_SECONDS)  # nobody tells when a port is open again

    def _turn(self, turns: int) -> Endpoint | None:
        """Where to look: where the controller was last; of several candidates, at each in turn."""
        known = self._folder.endpoint()
        if not self._candidates or known is None:
            return known
        order = [known, *(c for c in self._candidates if (c.host, c.port) != (known.host, known.port))]
        return order[turns % len(order)]

    def _found(self, endpoint: Endpoint) -> None:
        """Of several candidates, this one leads: let everybody on this host find it."""
        known = self._folder.endpoint()
        if endpoint is self._own:  # Its controller says so itself, and with its pid.
            return
        if known is None or (known.host, known.port) != (endpoint.host, endpoint.port):
            self._folder.write_endpoint(endpoint)

    async def _talk(self, socket: Socket) -> None:
        for old in [m for m in self._unsent if isinstance(m, EngineHello)]:
            self._unsent.remove(old)
        self._unsent.appendleft(self._hello())
        writer = asyncio.create_task(self._write(socket))
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self._obey(_decode(message.data))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: Socket) -> None:
        with contextlib.suppress(*LINE_ERRORS):
            while True:
                while self._unsent:
                    await socket.send_bytes(_encode(self._unsent[0]))
                    self._unsent.popleft()
                self._more.clear()
                await self._more.wait()
