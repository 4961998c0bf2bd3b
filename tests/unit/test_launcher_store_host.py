"""The stores of one node: each generation has a fresh one, and the next one's waits already."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ftrain_launcher.errors import SpawnFailed
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node import store_host
from ftrain_launcher.node.store_host import StoreHost
from ftrain_launcher.processes.spawning import Exited, Spawn
from ftrain_launcher.processes.workers import WorkerHost


class Processes:
    """Instead of a zygote's: they run as soon as they are asked for, unless they are ``refused``."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.killed: list[str] = []
        self.refused = False
        self.asked: set[str] = set()
        self.forks = asyncio.Event()
        self.forks.set()
        self._pids = 100

    async def spawn(self, spawn: Spawn) -> int:
        if self.refused or spawn.id in self.asked:
            raise SpawnFailed(spawn.id, "refused")
        self.asked.add(spawn.id)
        await self.forks.wait()
        self._pids += 1
        self.running[spawn.id] = self._pids
        return self._pids

    def send_signal(self, ids: Iterable[str], number: int) -> None:
        assert number == signal.SIGKILL
        self.killed += ids

    def end(self, store: StoreHost, id: str) -> None:
        store.exited(Exited(id, self.running.pop(id), None, signal.SIGKILL))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_host, "RETIRED_SECONDS", 0.0)


def host(store_port: int = 0) -> tuple[StoreHost, Processes]:
    work = SimpleNamespace(log_folder="/tmp", store_port=store_port, start="fork")
    job = cast(JobRecord, SimpleNamespace(config=SimpleNamespace(work=work)))
    processes = Processes()
    return StoreHost(job, "node-0", Path("/nowhere"), cast(WorkerHost, processes)), processes


async def begin(store: StoreHost, processes: Processes, generation: int, port: int) -> int | None:
    """Ask for a generation's port; a store that is started for it says this one."""
    asked = asyncio.ensure_future(store.port(generation))
    while store.id not in processes.running:
        await asyncio.sleep(0)
    store.hear_port(processes.running[store.id], port)
    return await asked


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_the_next_generation_gets_the_store_that_waits() -> None:
    async def test() -> None:
        store, processes = host()
        assert await begin(store, processes, 1, 5001) == 5001
        first = store.id
        await store.prepare(1)
        ahead = store.ahead
        store.hear_port(processes.running[ahead], 5002)
        assert store.spared(hosts=True) == {ahead}
        assert store.spared(hosts=False) == set()
        store.retire()
        assert processes.killed == []  # its end must not cost those who form the next one their time
        assert store.spared(hosts=True) == {first, ahead}
        assert store.spared(hosts=False) == {first}
        assert await store.port(2) == 5002
        assert (store.id, store.ahead) == (ahead, "")
        while not processes.killed:
            await asyncio.sleep(0)
        assert processes.killed == [first]
        processes.end(store, first)
        assert store.spared(hosts=True) == set()
        assert list(processes.running) == [ahead]

    run(test())


def test_the_port_may_be_told_before_the_process_is() -> None:
    async def test() -> None:
        store, _ = host()
        store.hear_port(101, 5001)
        assert await store.port(1) == 5001

    run(test())


def test_a_fault_that_comes_while_the_next_one_is_forked_waits_for_it() -> None:
    async def test() -> None:
        store, processes = host()
        await begin(store, processes, 1, 5001)
        processes.forks.clear()
        preparing = asyncio.ensure_future(store.prepare(1))
        await asyncio.sleep(0)
        store.retire()
        asked = asyncio.ensure_future(store.port(2))
        await asyncio.sleep(0)
        processes.forks.set()
        await preparing
        store.hear_port(102, 5002)
        assert await asked == 5002
        assert (store.id, store.ahead) == ("g1-store-ahead0", "")

    run(test())


def test_one_that_died_while_it_waited_is_not_taken() -> None:
    async def test() -> None:
        store, processes = host()
        await begin(store, processes, 1, 5001)
        await store.prepare(1)
        processes.end(store, store.ahead)
        assert store.ahead == ""
        store.retire()
        assert await begin(store, processes, 2, 5002) == 5002

    run(test())


def test_where_all_need_the_same_port_the_next_one_waits_for_it_itself_and_none_is_started_ahead() -> None:
    async def test() -> None:
        store, processes = host(store_port=29500)
        await begin(store, processes, 1, 29500)
        await store.prepare(1)
        assert store.ahead == ""
        first = store.id
        store.retire()
        assert processes.killed == [first]
        assert store.spared(hosts=True) == {first}
        assert await begin(store, processes, 2, 29500) == 29500
        assert store.id != first

    run(test())


def test_one_that_cannot_be_started_is_told_by_no_port() -> None:
    async def test() -> None:
        store, processes = host()
        processes.refused = True
        assert await store.port(1) is None
        await store.prepare(1)
        assert store.ahead == ""

    run(test())


def test_an_agent_that_takes_over_ends_what_was_retired_or_ready() -> None:
    async def test() -> None:
        store, processes = host()
        for id in ("g1-store", "g1-store-ahead0", "g2-store-ahead0", "g2-rank0", "g2-standby0"):
            processes.running[id] = 1
        store.id = "g1-store-ahead0"
        store.clear_away()
        assert processes.killed == ["g1-store", "g2-store-ahead0"]

    run(test())
