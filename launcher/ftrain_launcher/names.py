"""Host names to addresses, also while the server that knows them is away: lost with a host, or behind a cut network.

A lookup takes half a minute then, in a thread that nothing interrupts. So there is one thread at most for each name,
and none of the event loop's, which have other work and are waited for when the process ends; and where no answer comes
soon, the name is what it was before.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future

from aiohttp.abc import AbstractResolver, ResolveResult

_SOON_SECONDS = 0.25

_known: dict[str, list[str]] = {}
"""What each name was when it was last found."""
_lookups: dict[str, Future[list[str]]] = {}
"""Those that are under way."""


class Names(AbstractResolver):
    """For aiohttp's connectors; what they find out they share."""

    def __init__(self, soon_seconds: float = _SOON_SECONDS) -> None:
        self._soon_seconds = soon_seconds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises OSError: the name is not known, and never was."""
        lookup = asyncio.wrap_future(_begin(host))
        lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([lookup], timeout=self._soon_seconds if host in _known else None)
        found = _known[host] if host in _known else await lookup
        return [_result(host, address, port) for address in found]

    async def close(self) -> None:
        """Nothing is kept open."""


def prepare(hosts: Iterable[str]) -> None:
    """These will be wanted when there may be nobody left to ask."""
    for host in hosts:
        _begin(host)


def _begin(host: str) -> Future[list[str]]:
    lookup = _lookups.get(host)
    if lookup is None or lookup.done():
        lookup = _lookups[host] = Future()
        lookup.set_running_or_notify_cancel()  # It cannot be cancelled from here on.
        threading.Thread(target=_look_up, args=(host, lookup), name=f"name-{host}", daemon=True).start()
    return lookup


def _look_up(host: str, lookup: Future[list[str]]) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except OSError as error:
        lookup.set_exception(error)
    else:
        _known[host] = list(dict.fromkeys(str(address[0]) for *_, address in found))
        lookup.set_result(_known[host])


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
