"""Who may talk to a job's controller: both sides show that they know the job's secret, which itself is never sent.

    controller   Challenge(nonce)                          first on every WebSocket
    caller       Proof(nonce, HMAC(key, "caller", both))
    controller   Grant(HMAC(key, "controller", both))      or it hangs up

The key is made from the job's secret (`jobs.py`). Where hosts come without a common secret (no ``--secret-file``), the
challenge of the launchers' line carries the job's secret, as open as torchrun's rendezvous. This keeps strangers out;
it hides nothing from those who can read the network.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import msgspec
from aiohttp import web

from ftrain_launcher.errors import SecretRefused
from ftrain_launcher.protocol import MESSAGE_BYTES_MAX

_ANSWER_SECONDS = 5.0
_GOODBYE_SECONDS = 2.0
_NONCE_BYTES = 32
T = TypeVar("T")


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """The controller's question."""

    nonce: bytes
    salt: str
    """Makes this job's secret another one than the next job's from the same ``--secret-file``."""
    secret: str | None = None
    """The job's secret, where anybody may join."""


class Proof(msgspec.Struct, frozen=True, tag="proof"):
    """The caller's answer, and its own question."""

    nonce: bytes
    mac: bytes


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """The controller's answer."""

    mac: bytes


_encode = msgspec.msgpack.Encoder().encode
_challenge = msgspec.msgpack.Decoder(Challenge).decode
_proof = msgspec.msgpack.Decoder(Proof).decode
_grant = msgspec.msgpack.Decoder(Grant).decode


def mac(key: bytes, role: str, challenge: bytes, answer: bytes) -> bytes:
    """What ``role`` shows: bound to both nonces, so that neither side can be made to say it beforehand."""
    words = (role, challenge.hex(), answer.hex())
    return hmac.new(key, " ".join(words).encode(), "sha256").digest()


@web.middleware
async def gone_is_no_error(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Who asked has hung up before the answer, perhaps because this process was late: it comes again."""
    try:
        return await handler(request)
    except ConnectionResetError:
        return web.Response()


async def accept(
    request: web.Request, key: bytes, salt: str, *, secret: str | None = None, silence_seconds: float | None = None
) -> tuple[web.WebSocketResponse, bool]:
    """The controller's end of a line, and whether the caller was admitted; if not, nothing is to be said on it.

    ``silence_seconds``: from the caller's last sign to the line's end; None: somebody else watches.
    """
    heartbeat = None if silence_seconds is None else silence_seconds / 1.5
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX, timeout=_GOODBYE_SECONDS, heartbeat=heartbeat)
    await socket.prepare(request)
    return socket, await admit(socket, key, salt, secret)


async def admit(socket: web.WebSocketResponse, key: bytes, salt: str, secret: str | None) -> bool:
    """The controller's side; False: hang up."""
    asked = Challenge(secrets.token_bytes(_NONCE_BYTES), salt, secret)
    await socket.send_bytes(_encode(asked))
    try:
        answer = await socket.receive(timeout=_ANSWER_SECONDS)
        proof = _proof(answer.data) if answer.type is aiohttp.WSMsgType.BINARY else None
    except (TimeoutError, msgspec.DecodeError):
        return False
    if proof is None or not hmac.compare_digest(proof.mac, mac(key, "caller", asked.nonce, proof.nonce)):
        return False
    await socket.send_bytes(_encode(Grant(mac(key, "controller", asked.nonce, proof.nonce))))
    return True


async def hear_challenge(socket: aiohttp.ClientWebSocketResponse) -> Challenge:
    """The caller's side, first half. Raises aiohttp.ClientError if something else is said."""
    return await _hear(socket, _challenge)


async def prove(socket: aiohttp.ClientWebSocketResponse, challenge: Challenge, key: bytes) -> None:
    """The caller's side, second half.

    Raises:
        SecretRefused: the two do not know the same secret.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    await socket.send_bytes(_encode(Proof(nonce, mac(key, "caller", challenge.nonce, nonce))))
    try:
        granted = await _hear(socket, _grant)
    except aiohttp.ClientError as error:
        raise SecretRefused("the controller does not know this secret") from error
    if not hmac.compare_digest(granted.mac, mac(key, "controller", challenge.nonce, nonce)):
        raise SecretRefused("what answers as the controller does not know the job's secret")


async def _hear(socket: aiohttp.ClientWebSocketResponse, decode: Callable[[bytes], T]) -> T:
    message = await socket.receive(timeout=_ANSWER_SECONDS)
    if message.type is not aiohttp.WSMsgType.BINARY:
        raise aiohttp.ClientConnectionError("the line was closed")
    try:
        return decode(message.data)
    except msgspec.DecodeError as error:
        raise aiohttp.ClientConnectionError(f"not a word of ftrain's: {error}") from error
