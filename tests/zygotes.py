"""Zygotes for tests: with a small module in place of torch, short grace times, and a folder of their own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ftrain_launcher.processes.spawning import Exited, Spawn
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_start import ZygoteConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [str(ROOT), str(ROOT / "launcher"), str(ROOT / "snapshot")]
PRELOAD = "small_preload"


def zygote_config(folder: Path, name: str = "zygote", *, preload: str = PRELOAD, **changes: Any) -> ZygoteConfig:
    """A zygote in ``folder``, whose preload module lies there too."""
    if not (module := folder / f"{PRELOAD}.py").exists():
        module.write_text("import json, random, multiprocessing.process\n")
    path = os.pathsep.join([str(folder), *PACKAGES])
    return ZygoteConfig(
        socket_path=folder / f"{name}.sock",
        log_path=folder / f"{name}.log",
        preload=preload,
        environment={**os.environ, "PYTHONPATH": path},
        **{"owner_grace_seconds": 5.0, "start_timeout_seconds": 60.0, **changes},
    )


class Exits:
    """Collects what a host reports, and waits for it."""

    def __init__(self) -> None:
        self.all: list[Exited] = []
        self.times: dict[str, float] = {}
        self._news = asyncio.Event()

    def __call__(self, exited: Exited) -> None:
        self.all.append(exited)
        self.times[exited.id] = time.monotonic()
        self._news.set()

    async def of(self, id: str, timeout_seconds: float = 60.0) -> Exited:
        """The exit of ``id``."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                for exited in self.all:
                    if exited.id == id:
                        return exited
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def hosting(config: ZygoteConfig):
    """A started host and its exits; ended with everything it started."""
    exits = Exits()
    host = WorkerHost(config, exits)
    try:
        await host.start()
        yield host, exits
    finally:
        await host.shutdown(grace_seconds=0.0)


def script(folder: Path, source: str, name: str = "script.py") -> str:
    """A script file; returns its path."""
    (folder / name).write_text(source)
    return str(folder / name)


def spawn(folder: Path, id: str, *argv: str, **changes: Any) -> Spawn:
    """A worker whose output goes to ``<id>.log`` in ``folder``."""
    log = str(folder / f"{id}.log")
    return Spawn(**{"id": id, "argv": argv, "cwd": str(folder), "stdout_path": log, "stderr_path": log, **changes})


def state(pid: int) -> str:
    """The letter that ``ps`` shows: R, S, D, T (stopped), Z; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_there(pid: int) -> bool:
    """The process exists and is no zombie."""
    return state(pid) not in {"", "Z"}


async def eventually(condition: Callable[[], Any], timeout_seconds: float = 60.0) -> Any:
    """Wait until ``condition`` is true; returns what it gave."""
    deadline = time.monotonic() + timeout_seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"still not: {condition}"
        await asyncio.sleep(0.005)
    return result


def run(test: Awaitable[None], timeout_seconds: float = 180.0) -> None:
    """Run an asynchronous test."""

    async def bounded() -> None:
        async with asyncio.timeout(timeout_seconds):
            await test

    asyncio.run(bounded())
