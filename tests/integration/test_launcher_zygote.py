"""A zygote and its children: none of them is left over, whoever dies, and nobody who talks to it disturbs another."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from pathlib import Path
from typing import Literal

import pytest
from zygotes import Exits, eventually, hosting, is_there, run, script, spawn, zygote_config

from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_line import ZygoteLine, exec_zygote

FAMILY = """
import os, sys, time
def child(kind):
    if os.fork() == 0:
        if kind == "session": os.setsid()
        if kind == "detached": os.setsid(); os.fork() and os._exit(0)
        with open(f"{kind}.pid.tmp", "w") as file: file.write(str(os.getpid()))
        os.rename(f"{kind}.pid.tmp", f"{kind}.pid")
        time.sleep(60)
        os._exit(0)
for kind in ("group", "session", "detached"): child(kind)
time.sleep(60)
"""


async def family(folder: Path) -> list[int]:
    """The pids of the children of a worker that runs FAMILY."""
    files = [folder / f"{kind}.pid" for kind in ("group", "session", "detached")]
    await eventually(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def test_a_dead_workers_children_die_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            pid = await host.spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
            children = await family(tmp_path)
            assert all(is_there(child) for child in children)
            os.kill(pid, signal.SIGKILL)
            assert (await exits.of("f")).signal == signal.SIGKILL
            await eventually(lambda: not any(is_there(child) for child in children))

    run(test())


SHARING = """
import pathlib, sys, time
from multiprocessing.shared_memory import SharedMemory
from ftrain.caretakers import let_tracker_outlive_its_group
if "program" not in sys.argv:
    let_tracker_outlive_its_group()  # as each worker of a job does
shared = SharedMemory(create=True, size=4096)
path = pathlib.Path("shared")
path.with_suffix(".tmp").write_text(shared.name)
path.with_suffix(".tmp").rename(path)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("it crashes", "script"),
        ("it is stopped", "script"),
        ("its zygote ends", "script"),
        ("it crashes", "exec"),
        ("it is stopped", "exec"),
    ],
)
def test_shared_memory_of_a_killed_worker_is_given_back(
    tmp_path: Path, way: str, kind: Literal["script", "exec"]
) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            program = (sys.executable, script(tmp_path, SHARING), "program")
            argv = program if kind == "exec" else program[1:2]
            pid = await host.spawn(spawn(tmp_path, "s", *argv, kind=kind))
            await eventually((tmp_path / "shared").exists)
            shared = Path("/dev/shm") / (tmp_path / "shared").read_text()
            assert shared.exists()
            if way == "it crashes":
                os.kill(pid, signal.SIGKILL)
                await exits.of("s")
            elif way == "it is stopped":
                await host.kill("s")
            else:
                await host.shutdown(0.0)
            await eventually(lambda: not shared.exists())

    run(test())


def test_a_killed_zygote_takes_its_workers_along(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            assert host.ready is not None
            pid = await host.spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
            group, *_ = await family(tmp_path)
            rest = [int((tmp_path / f"{kind}.pid").read_text()) for kind in ("session", "detached")]
            os.kill(host.ready.pid, signal.SIGKILL)
            exit = await exits.of("f")
            assert (exit.signal, exit.with_zygote) == (signal.SIGKILL, True)
            assert not is_there(pid)
            await eventually(lambda: not is_there(group))
            assert host.running == {}
            for left in rest:  # they left the group, and nobody is there who could know them: not promised
                os.kill(left, signal.SIGKILL)
            await host.spawn(spawn(tmp_path, "again", script(tmp_path, "pass")))
            assert (await exits.of("again")).code == 0

    run(test())


def test_workers_outlive_their_agent_for_the_grace_time_and_no_longer(tmp_path: Path) -> None:
    async def test() -> None:
        config = zygote_config(tmp_path, owner_grace_seconds=0.5)
        line = await exec_zygote(config)
        host = WorkerHost(config, exits := Exits())
        await host.start()
        await line.close()
        pid = await host.spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
        children = await family(tmp_path)
        assert host.ready is not None
        zygote = host.ready.pid
        await host.close()
        assert is_there(pid)
        await eventually(lambda: not any(is_there(left) for left in (pid, *children, zygote)))
        assert not config.socket_path.exists()
        assert exits.all == []
        os.waitpid(zygote, 0)

    run(test())


@pytest.mark.parametrize("asked", ["to kill", "to fork"])
def test_a_zygote_that_was_stopped_is_replaced(tmp_path: Path, asked: str) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            assert host.ready is not None
            zygote = host.ready.pid
            await host.spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
            os.kill(zygote, signal.SIGSTOP)
            if asked == "to kill":
                await host.kill("f")
            else:
                with pytest.raises(ZygoteFailed, match="was stopped"):
                    await host.spawn(spawn(tmp_path, "late", script(tmp_path, "pass")))
            assert (await exits.of("f")).with_zygote
            await host.spawn(spawn(tmp_path, "again", script(tmp_path, "pass")))
            assert (await exits.of("again")).code == 0
            assert host.ready is not None
            assert host.ready.pid != zygote

    run(test())


def test_a_zygote_that_was_stopped_does_not_keep_its_node_from_ending(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            assert host.ready is not None
            await host.spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
            os.kill(host.ready.pid, signal.SIGSTOP)
            await host.shutdown(0.0)
            assert (await exits.of("f")).with_zygote

    run(test())


def test_a_zygote_that_nobody_ever_connects_to_ends(tmp_path: Path) -> None:
    async def test() -> None:
        config = zygote_config(tmp_path, owner_grace_seconds=0.2)
        line = await exec_zygote(config)
        pid = line.ready.pid
        await line.close()
        await eventually(lambda: not is_there(pid))
        os.waitpid(pid, 0)

    run(test())


def test_a_client_that_talks_nonsense_or_stops_in_a_frame_disturbs_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            rng = random.Random(1)
            half = socket.socket(socket.AF_UNIX)
            half.connect(str(host.config.socket_path))
            half.send(b"\xff\x00")
            for _ in range(20):
                with socket.socket(socket.AF_UNIX) as other:
                    other.connect(str(host.config.socket_path))
                    other.send(rng.randbytes(50))
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "import time; time.sleep(0.05)")))
            host.send_signal(["a", "nobody"], 999)
            assert (await exits.of("a")).code == 0
            half.close()

    run(test())


def test_a_forked_zygote_does_not_depend_on_its_root(tmp_path: Path) -> None:
    async def test() -> None:
        root = await exec_zygote(zygote_config(tmp_path, "root"))
        config = zygote_config(tmp_path, "node", root_socket=tmp_path / "root.sock", owner_grace_seconds=9.0)
        async with hosting(config) as (host, exits):
            assert host.ready is not None
            assert Path(f"/proc/{host.ready.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(root.ready.pid)
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "import time; time.sleep(60)")))
            await root.close()
            os.kill(root.ready.pid, signal.SIGKILL)
            os.waitpid(root.ready.pid, 0)
            pid = await host.spawn(spawn(tmp_path, "b", script(tmp_path, "print('b')", "b.py")))
            assert (await exits.of("b")).pid == pid
            assert (await host.list()).running == (("a", host.running["a"]),)
        assert "event=zygote_ready" in (tmp_path / "node.log").read_text()

    run(test())


def test_a_killed_forked_zygote_leaves_nothing_to_its_root(tmp_path: Path) -> None:
    async def test() -> None:
        root = await exec_zygote(zygote_config(tmp_path, "root"))
        hosts = [
            WorkerHost(zygote_config(tmp_path, name, root_socket=tmp_path / "root.sock"), Exits()) for name in "ab"
        ]
        for host in hosts:
            await host.start()
        pid = await hosts[0].spawn(spawn(tmp_path, "f", script(tmp_path, FAMILY)))
        children = await family(tmp_path)
        zygote, other = (host.ready.pid for host in hosts if host.ready)
        await hosts[0].close()  # nobody but the root is left to care
        os.kill(zygote, signal.SIGKILL)
        await eventually(lambda: not any(is_there(left) for left in (zygote, pid, *children)))
        assert is_there(other)
        assert is_there(root.ready.pid)
        await hosts[1].shutdown()
        assert not is_there(other)
        root_host = WorkerHost(zygote_config(tmp_path, "root"), Exits())
        await root_host.start()
        await root.close()
        await root_host.shutdown()
        assert not is_there(root.ready.pid)

    run(test())


def test_a_socket_may_lie_deep(tmp_path: Path) -> None:
    async def test() -> None:
        deep = tmp_path / ("d" * 90) / ("e" * 90)
        deep.mkdir(parents=True)
        async with hosting(zygote_config(deep)) as (host, _):
            line = await ZygoteLine.connect(host.config.socket_path, 5.0)
            await line.close()
        assert sorted(path.suffix for path in deep.iterdir() if path.is_file()) == [".log", ".py"]

    run(test())
