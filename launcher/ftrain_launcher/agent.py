"""The agent: one process a node, between the controller and the node's workers and daemon.

It keeps one WebSocket to the controller, does what comes over it in order, and says how things are. While the
controller is away the workers go on; if it stays away for longer than its grace time, the job is gone, and the
agent ends its node. Runs as ``python -m ftrain_launcher.agent --job-folder DIR --node NAME``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from pathlib import Path

import aiohttp
import msgspec

from ftrain_launcher.jobs import JobFolder
from ftrain_launcher.messages import MESSAGE_BYTES_MAX, Form, FromAgent, Inject, Shutdown, Stop, ToAgent
from ftrain_launcher.node import NodeRunner

HEARTBEAT_SECONDS = 0.5
_INVENTORY_EVERY = 2
"""Heartbeats between two that carry the inventory."""
_RECONNECT_SECONDS = 0.05
_OUTBOX_MESSAGES_MAX = 1000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToAgent).decode


class Agent:
    """Connects one `NodeRunner` to the controller."""

    def __init__(self, folder: JobFolder, node: str) -> None:
        self._folder = folder
        self._ended = asyncio.Event()
        self._runner = NodeRunner(folder, node, self._tell, self._ended.set)
        self._outbox: asyncio.Queue[FromAgent] | None = None
        self._wishes: asyncio.Queue[ToAgent] = asyncio.Queue(maxsize=100)
        self._grace_seconds = 0.0

    async def run(self) -> None:
        """Serve until told to end, or until the controller has been away for too long."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        await self._runner.start()
        tasks = [asyncio.create_task(t) for t in (self._keep_connected(), self._fulfil(), self._beat())]
        ended = asyncio.create_task(self._ended.wait())
        try:
            done, _ = await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()
        finally:
            await self._runner.close(self._grace_seconds)
            for task in [ended, *tasks]:
                task.cancel()
            await asyncio.gather(ended, *tasks, return_exceptions=True)

    def _tell(self, message: FromAgent) -> None:
        """Queue a message; while nobody is connected, what matters is repeated at the next join."""
        if self._outbox is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._outbox.put_nowait(message)

    async def _beat(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            count += 1
            if self._outbox is not None:
                self._tell(await self._runner.heartbeat(with_inventory=count % _INVENTORY_EVERY == 0))

    async def _fulfil(self) -> None:
        """Do what the controller wants, one thing after the other."""
        while True:
            match await self._wishes.get():
                case Stop() as message:
                    await self._runner.stop(message)
                case Form() as message:
                    await self._runner.form(message)
                case Shutdown(_, grace_seconds):
                    self._grace_seconds = grace_seconds
                    self._ended.set()
                case Inject():
                    pass

    # ---- the line

    async def _keep_connected(self) -> None:
        """Reconnect for as long as the grace time allows; return when it is over."""
        seen = time.monotonic()
        headers = {"Authorization": f"Bearer {self._folder.token()}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while time.monotonic() - seen < self._runner.job.controller_grace_seconds:
                endpoint = self._folder.endpoint()
                if endpoint is not None:
                    url = f"http://{endpoint.host}:{endpoint.port}/agent"
                    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                        async with session.ws_connect(url, max_msg_size=MESSAGE_BYTES_MAX) as socket:
                            await self._talk(socket)
                            seen = time.monotonic()
                await asyncio.sleep(_RECONNECT_SECONDS)
        logging.getLogger(__name__).warning("event=controller_gone node=%s", self._runner.node)

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        outbox: asyncio.Queue[FromAgent] = asyncio.Queue(maxsize=_OUTBOX_MESSAGES_MAX)
        for message in [self._runner.join(), *self._runner.said()]:
            outbox.put_nowait(message)
        self._outbox = outbox
        writer = asyncio.create_task(self._write(socket, outbox))
        try:
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.BINARY:
                    continue
                wish = _decode(frame.data)
                if isinstance(wish, Inject):
                    self._runner.inject(wish)
                else:
                    await self._wishes.put(wish)
        finally:
            self._outbox = None
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse, outbox: asyncio.Queue[FromAgent]) -> None:
        while True:
            await socket.send_bytes(_encode(await outbox.get()))


def main() -> int:
    """Run one node's agent."""
    parser = argparse.ArgumentParser(description="ftrain's agent; started by an engine")
    parser.add_argument("--job-folder", type=Path, required=True)
    parser.add_argument("--node", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="ftrain %(levelname)s %(message)s")
    asyncio.run(_run(JobFolder(arguments.job_folder), arguments.node))
    return 0


async def _run(folder: JobFolder, node: str) -> None:
    await Agent(folder, node).run()


if __name__ == "__main__":
    sys.exit(main())
