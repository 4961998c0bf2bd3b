"""Who knows the secret is let in, who does not is not, and nobody has said it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from ftrain_launcher import handshake
from ftrain_launcher.errors import SecretRefused
from ftrain_launcher.handshake import Challenge
from ftrain_launcher.jobs import job_secret, line_key

KEY, OTHER = b"key", b"another key"


class End:
    """One end of a WebSocket; all that went over it is kept."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.peer: End

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)
        self.peer.inbox.put_nowait(data)

    async def receive(self, timeout: float) -> Any:
        data = await asyncio.wait_for(self.inbox.get(), timeout)
        kind = aiohttp.WSMsgType.CLOSED if data is None else aiohttp.WSMsgType.BINARY
        return SimpleNamespace(type=kind, data=data)


def pair() -> tuple[Any, Any]:
    one, other = End(), End()
    one.peer, other.peer = other, one
    return one, other


async def controller(end: Any, key: bytes = KEY, secret: str | None = None) -> bool:
    """As the controller does it: hang up on strangers."""
    admitted = await handshake.admit(end, key, "salt", secret)
    end.peer.inbox.put_nowait(None)
    return admitted


async def caller(end: Any, key: bytes = KEY) -> Challenge:
    challenge = await handshake.hear_challenge(end)
    await handshake.prove(end, challenge, key)
    return challenge


def both(one: Awaitable[Any], other: Awaitable[Any]) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(one, other, return_exceptions=True)

    return asyncio.run(run())


def test_the_same_key_lets_in_and_is_never_sent() -> None:
    controllers, callers = pair()
    admitted, challenge = both(controller(controllers), caller(callers))
    assert admitted is True
    assert (challenge.salt, challenge.secret) == ("salt", None)
    assert all(KEY not in data for data in controllers.sent + callers.sent)


def test_another_key_is_turned_away() -> None:
    controllers, callers = pair()
    admitted, error = both(controller(controllers), caller(callers, OTHER))
    assert admitted is False
    assert isinstance(error, SecretRefused)
    assert len(controllers.sent) == 1


def test_a_false_controller_is_found_out() -> None:
    """It grants whatever it is shown, but cannot show anything itself."""
    controllers, callers = pair()

    async def false_controller() -> None:
        await controllers.send_bytes(handshake._encode(Challenge(b"n", "salt")))
        await controllers.receive(1.0)
        await controllers.send_bytes(handshake._encode(handshake.Grant(b"\0" * 32)))

    _, error = both(false_controller(), caller(callers))
    assert isinstance(error, SecretRefused)


def test_what_was_shown_once_is_of_no_use_again() -> None:
    controllers, callers = pair()
    both(controller(controllers), caller(callers))
    (proof,) = callers.sent
    controllers, callers = pair()

    async def replay() -> None:
        await callers.receive(1.0)
        await callers.send_bytes(proof)

    admitted, _ = both(controller(controllers), replay())
    assert admitted is False


@pytest.mark.parametrize("words", [b"", b"\xc1", b"GET / HTTP/1.1", b"\x80" * 1000])
def test_nonsense_is_turned_away(words: bytes) -> None:
    controllers, callers = pair()
    admitted, _ = both(controller(controllers), callers.send_bytes(words))
    assert admitted is False
    controllers, callers = pair()
    _, error = both(controllers.send_bytes(words), caller(callers))
    assert isinstance(error, aiohttp.ClientError)


def test_each_job_has_a_secret_of_its_own() -> None:
    assert job_secret(b"shared", "one") != job_secret(b"shared", "two")
    assert line_key("secret") != line_key("other")
