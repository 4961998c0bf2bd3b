"""The launcher: one job on this machine from its start to its last process.

It starts the controller and starts it again if it dies, provides nodes through the engine, hands Ctrl-C on as a
wish to end, and at the end kills whatever is left. It decides nothing about training.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp
import msgspec

from ftrain_launcher import processes
from ftrain_launcher.engines.local import LocalEngine
from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.jobs import JobFolder, Result
from ftrain_launcher.messages import (
    MESSAGE_BYTES_MAX,
    EngineHello,
    JobEnded,
    NodeGone,
    ReapNode,
    StartNode,
    StopJob,
    ToEngine,
)
from ftrain_launcher.spawning import Shutdown
from ftrain_launcher.terminal import announce
from ftrain_launcher.zygote_line import ZygoteConfig, exec_zygote

_CONTROLLER_RESTARTS_MAX = 20
_RECONNECT_SECONDS = 0.05
_HOUSEKEEPING_SECONDS = 0.5
_ENDING_SECONDS_MAX = 30.0
_CONTROLLER_END_SECONDS = 3.0
"""How long the controller may take to end after it has told of the job's end."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToEngine).decode


class Launcher:
    """Runs one job; `run` returns how it ended."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder = folder
        self.record = folder.record()
        self.engine = LocalEngine(folder, self._tell)
        self._outbox: asyncio.Queue[msgspec.Struct] = asyncio.Queue()
        self._ended: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._interrupts = 0
        self._controller: asyncio.subprocess.Process | None = None
        self._own_pids: set[int] = set()
        """Children that somebody here waits for."""

    async def run(self) -> Result:
        """Run the job; nothing of it is left when this returns."""
        processes.adopt_orphans()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupt, number)
        work = (self._keep_root_zygote(), self._keep_controller(), self._serve_engine(), self._keep_house())
        tasks = [asyncio.create_task(w) for w in work]
        try:
            return await self._ended
        finally:
            if self._controller is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._controller.wait(), _CONTROLLER_END_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.engine.close()

    def _tell(self, message: NodeGone | StopJob) -> None:
        self._outbox.put_nowait(message)

    def _interrupt(self, number: int) -> None:
        self._interrupts += 1
        name = signal.Signals(number).name
        if self._interrupts > 1:
            self._end(Result(128 + number, f"{name} again: everything was killed"))
            return
        announce(f"{name}: ending the job (once more to kill it)")
        self._tell(StopJob(f"stopped by {name}", 128 + number))
        result = Result(128 + number, f"stopped by {name}")
        asyncio.get_running_loop().call_later(_ENDING_SECONDS_MAX, self._end, result)

    def _end(self, result: Result) -> None:
        if not self._ended.done():
            self._ended.set_result(result)

    # ---- the controller

    async def _keep_controller(self) -> None:
        for _ in range(_CONTROLLER_RESTARTS_MAX):
            controller = self._controller = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "ftrain_launcher.controller",
                "--job-folder",
                str(self.folder.path),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            self._own_pids.add(controller.pid)
            code = await controller.wait()
            self._own_pids.discard(controller.pid)
            result = self.folder.result()
            if result is not None:
                self._end(result)
                return
            announce(f"the controller ended with {code}: it is started again; training goes on")
        self._end(Result(1, f"the controller died {_CONTROLLER_RESTARTS_MAX} times"))

    async def _serve_engine(self) -> None:
        """Do what the controller asks for; reconnect for as long as the job runs."""
        async with aiohttp.ClientSession() as session:
            while True:
                endpoint = self.folder.endpoint()
                if endpoint is not None:
                    url = f"http://{endpoint.host}:{endpoint.port}/engine"
                    headers = {"Authorization": f"Bearer {self.folder.token()}"}
                    with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                        async with session.ws_connect(url, headers=headers, max_msg_size=MESSAGE_BYTES_MAX) as socket:
                            await self._talk(socket)
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_bytes(_encode(EngineHello(self.engine.nodes)))
        writer = asyncio.create_task(self._write(socket))
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self._obey(_decode(message.data))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await self._outbox.get()
            try:
                await socket.send_bytes(_encode(message))
            except (ConnectionError, aiohttp.ClientError):
                self._outbox.put_nowait(message)
                return

    def _obey(self, message: ToEngine) -> None:
        match message:
            case StartNode(node):
                self.engine.start(node)
            case ReapNode(node):
                self.engine.reap(node)
            case JobEnded(exit_code, text):
                self._end(Result(exit_code, text))

    # ---- processes

    async def _keep_root_zygote(self) -> None:
        """One process with torch imported, that the zygotes of all emulated nodes are forked from."""
        if not self.record.root_zygote:
            return
        config = ZygoteConfig(
            socket_path=Path(self.record.root_zygote),
            log_path=Path(self.record.config.work.log_folder) / "zygote-root.log",
            owner_grace_seconds=self.record.controller_grace_seconds,
        )
        try:
            line = await exec_zygote(config)
        except ZygoteFailed as error:
            self._end(Result(1, str(error)))
            return
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            line.send(Shutdown(0.0))
            await line.close()

    async def _keep_house(self) -> None:
        """Bury processes whose parent died before them, as their subreaper; know what belongs to which node."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            self.engine.remember()
            for pid in _zombie_children():
                if pid not in self._own_pids and pid not in self.engine.pids:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)


def _zombie_children() -> list[int]:
    """Children of this process that have ended and that nobody has waited for."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for word in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{word}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    found.append(int(word))
    return found


def run(folder: JobFolder) -> Result:
    """Run the job of this folder to its end."""

    async def main() -> Result:
        return await Launcher(folder).run()

    result = asyncio.run(main())
    if folder.result() is None:
        folder.write_result(result)
    return result


def new_job_name(stem: str) -> str:
    """A name for a job whose user gave none."""
    word = "".join(c if c.isalnum() else "-" for c in stem).strip("-")[:24] or "job"
    return f"{word}-{int(time.time()) % 100000:05d}-{os.getpid() % 10000:04d}"
