"""Host names are found out beside everything else, and remembered."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from ftrain_launcher import names
from ftrain_launcher.names import Names

NEVER_SECONDS = 0.01


class Server:
    """Knows one name, as long as it is there; else a lookup waits until it is back."""

    def __init__(self) -> None:
        self.address = "10.77.0.1"
        self.is_there = threading.Event()
        self.is_there.set()
        self.asked = 0

    def getaddrinfo(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked += 1
        self.is_there.wait()
        if host != "h1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, 0))]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    monkeypatch.setattr(names, "_known", {})
    monkeypatch.setattr(names, "_lookups", {})
    return server


async def address(host: str = "h1") -> str:
    (found,) = await Names(NEVER_SECONDS).resolve(host, 29400)
    assert found["port"] == 29400
    return found["host"]


def test_a_name_that_is_not_known_is_an_error(server: Server) -> None:
    with pytest.raises(OSError, match="not known"):
        asyncio.run(address("h9"))


def test_while_nobody_answers_a_name_is_what_it_was_and_is_asked_for_once(server: Server) -> None:
    async def test() -> None:
        assert await address() == "10.77.0.1"
        server.is_there.clear()
        assert [await address() for _ in range(3)] == ["10.77.0.1"] * 3
        assert server.asked == 2
        server.address = "10.77.0.2"
        lookup = names._lookups["h1"]
        server.is_there.set()
        await asyncio.wrap_future(lookup)
        server.is_there.clear()  # what came late counts as well
        assert await address() == "10.77.0.2"
        server.is_there.set()

    asyncio.run(test())


def test_a_name_that_was_prepared_is_known_when_nobody_can_be_asked(server: Server) -> None:
    async def test() -> None:
        names.prepare(["h1"])
        await asyncio.wrap_future(names._lookups["h1"])
        server.is_there.clear()
        assert await address() == "10.77.0.1"
        server.is_there.set()

    asyncio.run(test())


def test_who_gives_up_leaves_the_lookup_to_the_next(server: Server) -> None:
    async def test() -> None:
        server.is_there.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NEVER_SECONDS):
                await address()
        server.is_there.set()
        assert await address() == "10.77.0.1"
        assert server.asked <= 2

    asyncio.run(test())
