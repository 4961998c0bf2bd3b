"""What a zygote imports for its workers, and when."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from zygotes import Exits, eventually, hosting, run, script, spawn, state, zygote_config

from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes.spawning import Shutdown
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_line import exec_zygote


def test_a_zygote_with_threads_starts_workers_by_exec(tmp_path: Path) -> None:
    async def test() -> None:
        script(tmp_path, "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
               "threaded.py")  # fmt: skip
        async with hosting(zygote_config(tmp_path, preload="threaded")) as (host, exits):
            assert host.ready is not None
            assert host.ready.threads == 2
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "import sys; print('threaded' in sys.modules)")))
            assert (await exits.of("a")).code == 0
        assert (tmp_path / "a.log").read_text() == "False\n"
        assert "event=fork_unsafe" in (tmp_path / "zygote.log").read_text()

    run(test())


def test_a_failed_import_is_told_with_its_reason(tmp_path: Path) -> None:
    async def test() -> None:
        config = zygote_config(tmp_path, preload="no_such_module")
        with pytest.raises(ZygoteFailed, match="No module named 'no_such_module'"):
            await WorkerHost(config, Exits()).start()

    run(test())


async def has(host: WorkerHost, exits: Exits, folder: Path, id: str, module: str) -> bool:
    """A worker that is forked now has that module."""
    path = script(folder, f"import sys; sys.exit(not hasattr(sys.modules.get('{module}'), 'whole'))", f"{id}.py")
    await host.spawn(spawn(folder, id, path))
    return (await exits.of(id)).code == 0


def test_what_comes_later_is_imported_while_nothing_is_wanted(tmp_path: Path) -> None:
    async def test() -> None:
        script(tmp_path, "LATER = ('no_such_module', 'raises', 'first', 'second')", "staged.py")
        script(tmp_path, "raise RuntimeError('not here')", "raises.py")
        for name in ("first", "second"):
            script(tmp_path, "whole = True", f"{name}.py")
        root = await exec_zygote(zygote_config(tmp_path, "root", preload="staged"))
        try:
            async with hosting(zygote_config(tmp_path, root_socket=tmp_path / "root.sock")) as (host, exits):
                log = tmp_path / "zygote.log"
                await eventually(lambda: "event=later_import_done" in log.read_text())
                assert await has(host, exits, tmp_path, "a", "first")
                assert await has(host, exits, tmp_path, "b", "second")
                told = "".join(path.read_text() for path in (log, tmp_path / "root.log"))
                assert "module=no_such_module" in told
                assert "module=raises" in told
        finally:
            root.send(Shutdown(0.0))
            await root.close()
            os.waitpid(root.ready.pid, 0)

    run(test())


@pytest.mark.parametrize("dies", [True, False])
def test_a_death_is_told_and_no_fork_made_in_the_middle_of_an_import(tmp_path: Path, dies: bool) -> None:
    async def test() -> None:
        pipes = [tmp_path / name for name in ("before", "after")]
        for pipe in pipes:
            os.mkfifo(pipe)
        script(tmp_path, "LATER = ('slow',)", "staged.py")
        script(tmp_path, "", "nested.py")
        opened = [f"open({str(pipe)!r}).read()" for pipe in pipes]  # each waits for the test
        script(tmp_path, f"{opened[0]}\nimport nested\n{opened[1]}\nwhole = True", "slow.py")
        async with hosting(zygote_config(tmp_path, preload="staged")) as (host, exits):
            await host.spawn(spawn(tmp_path, "a", script(tmp_path, "import time; time.sleep(600)")))
            with await asyncio.to_thread(open, pipes[0], "w"):  # the import has begun
                later = asyncio.create_task(has(host, exits, tmp_path, "b", "slow"))
                await asyncio.sleep(0)  # it has asked
                if dies:
                    killed = host.running["a"]
                    os.kill(killed, signal.SIGKILL)
                    await eventually(lambda: state(killed) == "Z")  # or the one nested import might come too early
            if dies:
                assert (await exits.of("a")).signal == signal.SIGKILL
                assert not later.done()
            with await asyncio.to_thread(open, pipes[1], "w"):
                assert "b" not in host.running
            assert await later

    run(test())
