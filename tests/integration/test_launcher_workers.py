"""The agent's hold on its workers: exits are told once, stopping leaves nothing, a new agent re-adopts."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from zygotes import Exits, eventually, hosting, is_there, run, script, spawn, state, zygote_config

from ftrain_launcher.errors import SpawnFailed
from ftrain_launcher.processes.workers import WorkerHost

SLEEP = "import time; print('up'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"


async def is_up(folder: Path, *ids: str) -> None:
    logs = [folder / f"{id}.log" for id in ids]
    await eventually(lambda: all(log.exists() and "up" in log.read_text() for log in logs), 20)


def test_an_exit_is_told_once_and_its_id_can_be_used_again(tmp_path: Path) -> None:
    async def test() -> None:
        path = script(tmp_path, "pass")
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            pids = []
            for _ in range(5):
                pids.append(await host.spawn(spawn(tmp_path, "a", path)))
                while len(exits.all) < len(pids):
                    await asyncio.sleep(0.001)
                    await host.list()
            assert [exited.pid for exited in exits.all] == pids
            assert host.running == {}
            await eventually(lambda: True)
            assert (await host.list()).exited == ()

    run(test())


def test_what_cannot_be_started_is_said(tmp_path: Path) -> None:
    async def test() -> None:
        path = script(tmp_path, SLEEP)
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "a", path))
            for wrong in (
                spawn(tmp_path, "a", path),
                spawn(tmp_path, "b", path, cwd="/no/such/folder"),
                spawn(tmp_path, "b", path, stderr_path=f"{path}/below/a/file"),
                spawn(tmp_path, "b"),
            ):
                with pytest.raises(SpawnFailed):
                    await host.spawn(wrong)
            assert list(host.running) == ["a"]
            await host.spawn(spawn(tmp_path, "c", "/no/such/program", kind="exec"))
            assert (await exits.of("c")).code == 127
        assert (tmp_path / "c.log").read_text() == (
            "ftrain: cannot start /no/such/program: No such file or directory\n"
        )

    run(test())


def test_stopping_asks_waits_and_kills(tmp_path: Path) -> None:
    async def test() -> None:
        polite = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up'); time.sleep(60)"
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "polite", script(tmp_path, polite, "polite.py")))
            await host.spawn(spawn(tmp_path, "stubborn", script(tmp_path, STUBBORN, "stubborn.py")))
            stopped = await host.spawn(spawn(tmp_path, "stopped", script(tmp_path, SLEEP, "stopped.py")))
            await is_up(tmp_path, "polite", "stubborn", "stopped")
            os.kill(stopped, signal.SIGSTOP)
            await eventually(lambda: state(stopped) == "T")  # or a SIGTERM at the same time may come first
            pids = list(host.running.values())
            await host.stop_all(grace_seconds=0.2)
            assert host.running == {}
            assert not any(is_there(pid) for pid in pids)
            ends = {exited.id: (exited.code, exited.signal) for exited in exits.all}
            assert ends == {"polite": (7, None), "stubborn": (None, 9), "stopped": (None, 9)}
            await host.stop_all(grace_seconds=5)  # nothing to wait for

    run(test())


def test_a_hanging_zygote_is_killed_with_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("ftrain_launcher.processes.workers.KILL_TIMEOUT_SECONDS", 0.6)
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            pid = await host.spawn(spawn(tmp_path, "a", script(tmp_path, SLEEP)))
            assert host.ready is not None
            os.kill(host.ready.pid, signal.SIGSTOP)
            await host.kill_all_now()
            assert not is_there(pid)
            assert (await exits.of("a")).signal == signal.SIGKILL
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "pass")))  # by a new zygote
            await eventually(lambda: len(exits.all) == 2)

    run(test())


def test_a_restarted_agent_adopts_the_workers_and_hears_of_what_it_missed(tmp_path: Path) -> None:
    async def test() -> None:
        config = zygote_config(tmp_path)
        first = WorkerHost(config, earlier := Exits())
        await first.start()
        running = await first.spawn(spawn(tmp_path, "runs", script(tmp_path, SLEEP, "runs.py")))
        ending = await first.spawn(spawn(tmp_path, "ends", script(tmp_path, SLEEP, "ends.py")))
        await first.close()
        os.kill(ending, signal.SIGKILL)
        await eventually(lambda: not is_there(ending))
        async with hosting(config) as (second, exits):
            assert second.ready is not None
            assert second.running == {"runs": running}
            assert (await exits.of("ends")).signal == signal.SIGKILL
            await second.kill("runs")
            assert (await exits.of("runs")).pid == running
        assert earlier.all == []
        assert len(exits.all) == 2

    run(test())


def test_the_newest_agent_is_the_owner(tmp_path: Path) -> None:
    """An agent that hangs and is replaced must not keep the exits from its successor."""

    async def test() -> None:
        config = zygote_config(tmp_path)
        old = WorkerHost(config, stale := Exits())
        await old.start()
        async with hosting(config) as (new, exits):
            pid = await new.spawn(spawn(tmp_path, "a", script(tmp_path, SLEEP)))
            os.kill(pid, signal.SIGKILL)
            await exits.of("a")
            await old.close()
        assert stale.all == []

    run(test())


def test_without_its_root_a_node_starts_a_zygote_of_its_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path, root_socket=tmp_path / "nobody.sock")) as (host, exits):
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "pass")))
            assert (await exits.of("a")).code == 0

    run(test())


def test_without_preload_workers_start_by_exec(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path, preload="")) as (host, exits):
            assert host.ready is not None
            assert host.ready.preload == ""
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "print('a')"), start="exec"))
            await host.spawn(spawn(tmp_path, "b", "/bin/echo", "b", kind="exec"))
            assert [(await exits.of(id)).code for id in "ab"] == [0, 0]
        assert [(tmp_path / f"{id}.log").read_text() for id in "ab"] == ["a\n", "b\n"]

    run(test())


TORCH_WORKER = """
import os, time, numpy, torch
torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8, requires_grad=True)).sum().backward()
if os.environ["RANK"] == "0":
    data = torch.utils.data.TensorDataset(torch.arange(8))
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)  # forks; spawn: see test_launcher_zygote
    assert [batch[0].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
print("up", torch.initial_seed(), numpy.random.randint(1 << 30))
time.sleep(60)
"""


@pytest.mark.alone
def test_four_torch_workers_are_killed_seen_and_started_again(tmp_path: Path) -> None:
    if importlib.util.find_spec("ftrain.preload") is None:
        pytest.skip("ftrain.preload is not there yet")

    async def test() -> None:
        config = zygote_config(tmp_path, preload="ftrain.preload", start_timeout_seconds=60.0)
        path = script(tmp_path, TORCH_WORKER)
        async with hosting(config) as (host, exits):
            assert host.ready is not None
            assert host.ready.threads == 1
            for generation in (1, 2):
                ids = [f"g{generation}-r{rank}" for rank in range(4)]
                began = time.monotonic()
                for rank, id in enumerate(ids):
                    await host.spawn(spawn(tmp_path, id, path, env={"RANK": str(rank)}))
                spawned = time.monotonic()
                await is_up(tmp_path, *ids)
                seeds = {(tmp_path / f"{id}.log").read_text() for id in ids}
                assert len(seeds) == 4  # as in four processes started one by one
                victim = host.running[ids[3]]
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                await exits.of(ids[3])
                seen = time.monotonic()
                await host.kill_all_now()
                gone = time.monotonic()
                assert host.running == {}
                print(
                    f"imports {host.ready.preload_seconds:.2f} s, 4 spawned {(spawned - began) * 1e3:.0f} ms, "
                    f"exit seen {(seen - killed) * 1e3:.0f} ms, 3 killed {(gone - seen) * 1e3:.0f} ms"
                )

    run(test(), 120)
