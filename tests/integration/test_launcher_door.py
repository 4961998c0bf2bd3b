"""The port of a controller: whoever asks for nothing is sent away, and whoever waits for an answer or a word is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from ftrain_launcher.control.door import open_door

SILENCE_SECONDS_MAX = 0.2
ANSWER_SECONDS_MAX = 30.0


class Served:
    """A door with one route that answers, and one that holds a line, each when it is told to."""

    def __init__(self) -> None:
        self.answer, self.speak = asyncio.Event(), asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0

    async def late(self, request: web.Request) -> web.Response:
        self.asked.set()
        await self.answer.wait()
        return web.Response(text="late")

    async def line(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self.speak.wait()
        await socket.send_str("word")
        return socket


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    made = Served()
    runner = open_door(
        [web.get("/late", made.late), web.get("/line", made.line)],
        shutdown_timeout_seconds=0.0,
        silence_seconds_max=SILENCE_SECONDS_MAX,
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()


async def sent_away(port: int, said: bytes) -> None:
    """Connect, say this, and wait for the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("said", [b"", b"GET /la", b"GET /late HTTP/1.1\r\nHost: here\r\n"])
def test_who_asks_for_nothing_is_sent_away(said: bytes) -> None:
    async def test() -> None:
        async with served() as made:
            await asyncio.gather(*(sent_away(made.port, said) for _ in range(50)))
            assert not made.asked.is_set()

    asyncio.run(test())


def test_who_waits_for_an_answer_or_a_word_is_not() -> None:
    async def test() -> None:
        async with served() as made, aiohttp.ClientSession(f"http://127.0.0.1:{made.port}") as session:
            answer = asyncio.create_task(session.get("/late"))
            async with session.ws_connect("/line") as line:
                await made.asked.wait()
                await sent_away(made.port, b"")  # so long has it been silent on both
                made.answer.set()
                assert await (await answer).text() == "late"
                made.speak.set()
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    assert await line.receive_str() == "word"

    asyncio.run(test())
