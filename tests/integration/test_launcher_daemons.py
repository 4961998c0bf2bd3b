"""A snapshot daemon that stands still is replaced: what it kept lies in memory, and its node is kept."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import pytest
from freezer import frozen
from stages import stop
from unit.coordinator_job import config

from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node.daemons import DaemonKeeper
from ftrain_launcher.processes.linux import has_ended


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ftrain-test-", dir="/dev/shm"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def keeper(folder: Path, logs: Path, on_death: Callable[[], None] = lambda: None) -> DaemonKeeper:
    """An agent's, of node-0."""
    work = msgspec.structs.replace(config().work, log_folder=str(logs))
    job = msgspec.structs.replace(config(), work=work)
    secret = logs / "secret"
    secret.write_text("00" * 32)
    record = JobRecord(name="job", created=0.0, launcher_pid=os.getpid(), arena_folder=str(folder), config=job)
    return DaemonKeeper(record, "node-0", folder / "node-0", secret, on_death)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """By a signal."""
    stop(pid)
    yield


@pytest.mark.parametrize("stuck", [stopped, frozen])
def test_who_asks_a_daemon_that_is_stuck_is_answered_by_another_one(
    folder: Path, tmp_path: Path, stuck: Callable[[int], AbstractContextManager[None]]
) -> None:
    async def ask() -> None:
        starting: list[asyncio.Task[None]] = []
        node = keeper(folder, tmp_path, lambda: starting.append(asyncio.create_task(node.start())))
        await node.start()
        pid, port = node.pid, node.port
        assert pid is not None
        with stuck(pid):
            found = await node.call(lambda client: client.inventory(urgent=True))
        assert found.holdings == ()
        assert (node.pid != pid, node.port) == (True, port)
        await node.stop(10.0)

    asyncio.run(ask())


def test_a_new_agent_does_not_adopt_a_stopped_daemon_and_ends_it(folder: Path, tmp_path: Path) -> None:
    async def adopt() -> None:
        before, after = keeper(folder, tmp_path), keeper(folder, tmp_path)
        await before.start()
        pid, port = before.pid, before.port
        assert pid is not None
        stop(pid)
        assert not await after.adopt(pid, port)
        assert has_ended(pid)
        await before.stop(10.0)
        await after.stop(10.0)

    asyncio.run(adopt())
