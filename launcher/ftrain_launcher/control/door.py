"""Where a controller, or one that stands by, is asked: HTTP and WebSockets on a port that strangers reach as well."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from ftrain_launcher import handshake
from ftrain_launcher.protocol import MESSAGE_BYTES_MAX

SILENCE_SECONDS_MAX = 10.0
"""Who has connected and asks for nothing is sent away after this; a line of an agent or a launcher is none of these."""


def open_door(
    routes: Iterable[web.AbstractRouteDef],
    *,
    shutdown_timeout_seconds: float,
    silence_seconds_max: float = SILENCE_SECONDS_MAX,
) -> web.AppRunner:
    """A server for these routes, not yet set up."""
    application = web.Application(client_max_size=MESSAGE_BYTES_MAX, middlewares=[handshake.gone_is_no_error])
    application.add_routes(routes)
    return web.AppRunner(
        application,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=shutdown_timeout_seconds,
        keepalive_timeout=silence_seconds_max,
    )
