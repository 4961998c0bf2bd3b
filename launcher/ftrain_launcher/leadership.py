"""Which candidate runs a job's controller: what a host wrote down of it, and what the others say.

``leadership.json`` in the job's folder outlives the process: a controller that is started again leads on, one that gave
way stands by (docs/controller.md). Candidates ask each other twice a second, ``GET /api/leader``.
"""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec

from ftrain_launcher.jobs import Endpoint, JobFolder, write_atomically
from ftrain_launcher.names import Names

_LOOK_SECONDS_MAX = 1.0
LOOK_EVERY_SECONDS = 0.5


class Leadership(msgspec.Struct, frozen=True):
    """What this host's candidate is."""

    term: int = 0
    """The newest that it knows of."""
    leads: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate says of itself."""

    candidate: int
    term: int
    leads: bool
    journal_term: int
    """Of the controller that wrote its journal last."""
    journal_bytes: int

    @property
    def knows(self) -> tuple[int, int]:
        """Which of two journals knows more."""
        return self.journal_term, self.journal_bytes


def read(folder: JobFolder) -> Leadership:
    """What was written down; nothing: a candidate that stands by."""
    try:
        return msgspec.json.decode((folder.path / "leadership.json").read_bytes(), type=Leadership)
    except FileNotFoundError:
        return Leadership()


def write(folder: JobFolder, leadership: Leadership) -> None:
    """Write it down."""
    write_atomically(folder.path / "leadership.json", msgspec.json.encode(leadership))


def endpoints(candidates: tuple[str, ...]) -> list[Endpoint]:
    """Where the candidates listen, in order."""
    split = [word.rpartition(":") for word in candidates]
    return [Endpoint(host, int(port), None) for host, _, port in split]


async def look(candidates: tuple[str, ...], own: int, token: str) -> list[Seen]:
    """The other candidates that answer within a second."""
    others = [e for i, e in enumerate(endpoints(candidates)) if i != own]
    timeout = aiohttp.ClientTimeout(total=_LOOK_SECONDS_MAX)
    headers, connector = {"Authorization": f"Bearer {token}"}, aiohttp.TCPConnector(resolver=Names())
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        found = await asyncio.gather(*(_ask(session, endpoint) for endpoint in others))
    return [seen for seen in found if seen is not None]


async def _ask(session: aiohttp.ClientSession, endpoint: Endpoint) -> Seen | None:
    try:
        async with session.get(f"http://{endpoint.host}:{endpoint.port}/api/leader") as response:
            return msgspec.json.decode(await response.read(), type=Seen) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
        return None
