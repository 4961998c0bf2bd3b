"""A line to the controller: a WebSocket that knows when the network has gone silent, opened in bounded time.

TCP says nothing of a cut network. So the caller asks now and then (WebSocket pings) and hangs up when no answer comes,
and tries again on a new connection, which is there as soon as the network is: the old one would wait for its own,
ever slower, retransmission.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp

from ftrain_launcher.handshake import Challenge, hear_challenge, prove
from ftrain_launcher.jobs import Endpoint
from ftrain_launcher.names import Names
from ftrain_launcher.protocol import MESSAGE_BYTES_MAX

OPENING_SECONDS_MAX = 2.0
LINE_ERRORS = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""No line, or none any more: try again."""

Socket = aiohttp.ClientWebSocketResponse


@contextlib.asynccontextmanager
async def open_line(
    endpoint: Endpoint, path: str, key_of: Callable[[Challenge], bytes], silence_seconds: float
) -> AsyncIterator[Socket]:
    """A line on which both sides have shown that they know the job's secret.

    Args:
        key_of: what to show, given what the controller says of itself.
        silence_seconds: from the network's last sign to the line's end.

    Raises:
        aiohttp.ClientError, ConnectionError, TimeoutError: nobody is there, or it was closed (LINE_ERRORS).
        SecretRefused: the secrets differ.
    """
    url = f"http://{endpoint.host}:{endpoint.port}{path}"
    # A ping after h without a word, and h/2 to answer it.
    connector = aiohttp.TCPConnector(resolver=Names())
    async with aiohttp.ClientSession(connector=connector) as session, contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(OPENING_SECONDS_MAX):
            socket = await stack.enter_async_context(
                session.ws_connect(
                    url,
                    max_msg_size=MESSAGE_BYTES_MAX,
                    heartbeat=silence_seconds / 1.5,
                    timeout=aiohttp.ClientWSTimeout(ws_close=OPENING_SECONDS_MAX),
                )
            )
            challenge = await hear_challenge(socket)
            await prove(socket, challenge, key_of(challenge))
        yield socket
