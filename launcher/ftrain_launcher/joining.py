"""How a host gets into a job whose controller runs on another: find it, show what was asked for here, learn the job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import aiohttp
import msgspec

from ftrain_launcher.engine_messages import JobEnded, Knock, Offer, ToEngine, Welcome
from ftrain_launcher.errors import JoinRefused, SecretRefused
from ftrain_launcher.handshake import Challenge
from ftrain_launcher.jobs import Endpoint, JobRecord, job_secret, line_key
from ftrain_launcher.line import LINE_ERRORS, Socket, open_line
from ftrain_launcher.terminal import announce

_RETRY_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_SILENCE_SECONDS = 10.0
_STANDS_BY = 503
"""What a candidate answers that is not the controller."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToEngine).decode


class Joined(msgspec.Struct, frozen=True):
    """What a host learns when it joins."""

    record: JobRecord
    """The job's, as on the controller's host."""
    secret: str
    address: str
    """This host's own, on the way to the controller: there the others reach it."""
    endpoint: Endpoint
    """Where the controller is."""


def ask_to_join(
    endpoints: Sequence[Endpoint], offer: Offer, shared_secret: bytes | None, timeout_seconds: float
) -> Joined:
    """Wait for the controller, at one of these places, and ask it.

    Raises:
        JoinRefused: the job does not want this host, or there is no controller within ``timeout_seconds``.
    """
    return asyncio.run(_ask(endpoints, offer, shared_secret, timeout_seconds))


async def _ask(
    endpoints: Sequence[Endpoint], offer: Offer, shared_secret: bytes | None, timeout_seconds: float
) -> Joined:
    secret = ""

    def key_of(challenge: Challenge) -> bytes:
        nonlocal secret
        secret = _secret(challenge, shared_secret)
        return line_key(secret)

    began, waits, turns = time.monotonic(), False, 0
    while True:
        endpoint = endpoints[turns % len(endpoints)]
        place, turns = f"{endpoint.host}:{endpoint.port}", turns + 1
        try:
            async with open_line(endpoint, "/engine", key_of, _SILENCE_SECONDS) as socket:
                record = await _knock(socket, offer)
                return Joined(record, secret, _own_address(socket), endpoint)
        except SecretRefused as error:
            raise JoinRefused(f"{place}: {error}; --secret-file must be the same on all hosts") from error
        except (aiohttp.WSServerHandshakeError, aiohttp.InvalidURL) as error:
            if len(endpoints) == 1 or getattr(error, "status", 0) != _STANDS_BY:
                raise JoinRefused(f"{place}: what answers there is no controller of ftrain's") from error
            reason = "it stands by"
        except LINE_ERRORS as error:
            reason = str(error) or "no answer"
        if time.monotonic() - began > timeout_seconds:
            place = ", ".join(f"{e.host}:{e.port}" for e in endpoints)
            raise JoinRefused(
                f"no controller at {place} within {timeout_seconds:g} s (--join-timeout-seconds): {reason}"
            )
        if not waits:
            waits = True
            announce(f"waiting for the controller at {place}, for up to {timeout_seconds:g} s")
        await asyncio.sleep(_RETRY_SECONDS)  # nobody tells when a port is open


def _secret(challenge: Challenge, shared: bytes | None) -> str:
    """The job's secret. Raises SecretRefused if only one side has been given one."""
    if challenge.secret is not None:
        if shared is not None:
            raise SecretRefused("the job was started without --secret-file")
        return challenge.secret
    if shared is None:
        raise SecretRefused("the job was started with a --secret-file")
    return job_secret(shared, challenge.salt)


async def _knock(socket: Socket, offer: Offer) -> JobRecord:
    await socket.send_bytes(_encode(Knock(offer)))
    answer = await socket.receive(timeout=_ANSWER_SECONDS)
    if answer.type is not aiohttp.WSMsgType.BINARY:
        raise aiohttp.ClientConnectionError("the line was closed")
    match _decode(answer.data):
        case Welcome(record):
            return msgspec.json.decode(record, type=JobRecord)
        case JobEnded(_, message):
            raise JoinRefused(message)
        case other:
            raise aiohttp.ClientConnectionError(f"an answer to something else: {other}")


def _own_address(socket: Socket) -> str:
    address: str = socket.get_extra_info("sockname")[0]
    return address
