"""A zygote and its children: what they are like, and that none of them is left over, whoever dies."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
import socket
import textwrap
from pathlib import Path

import pytest
from zygotes import Exits, eventually, hosting, is_there, run, script, spawn, state, zygote_config

from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes.spawning import Shutdown
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.processes.zygote_line import ZygoteLine, exec_zygote

STARTS = pytest.mark.parametrize("start", ["fork", "exec"])

FRESH = """
import json, os, random, signal, sys
print(json.dumps(dict(
    name=__name__, file=__file__, argv=sys.argv, path=sys.path[0], cwd=os.getcwd(), env=os.environ["EXTRA"],
    session=os.getsid(0) == os.getpid(), stdin=os.readlink("/proc/self/fd/0"), random=random.random(),
    fds=sorted(int(fd) for fd in os.listdir("/proc/self/fd")),
    mask=[int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    handlers=[signal.getsignal(s) is handler for s, handler in (
        (signal.SIGTERM, signal.SIG_DFL), (signal.SIGCHLD, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)
    )],
)))
"""


@STARTS
def test_a_worker_is_like_a_fresh_interpreter(tmp_path: Path, start: str) -> None:
    async def test() -> None:
        (tmp_path / "code").mkdir()
        path = script(tmp_path / "code", FRESH)
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            for id in ("a", "b"):
                await host.spawn(spawn(tmp_path, id, "code/script.py", "--x", env={"EXTRA": "e"}, start=start))
                assert (await exits.of(id)).code == 0, (tmp_path / f"{id}.log").read_text()
        a, b = (json.loads((tmp_path / f"{id}.log").read_text()) for id in ("a", "b"))
        assert a["random"] != b["random"]
        assert [a[key] for key in ("name", "file", "cwd", "env")] == ["__main__", path, str(tmp_path), "e"]
        assert (Path(a["argv"][0]).name, a["argv"][1:]) == ("script.py", ["--x"])
        assert a["path"] == str(tmp_path / "code")
        assert a["session"]
        assert a["stdin"] == os.devnull
        assert a["mask"] == []
        assert a["handlers"] == [True, True, True]
        assert a["fds"] == [0, 1, 2, 3]  # 3: the folder that is being listed; nothing of the zygote

    run(test())


@STARTS
def test_a_module_runs_as_with_m(tmp_path: Path, start: str) -> None:
    async def test() -> None:
        (tmp_path / "package").mkdir()
        script(tmp_path / "package", "import sys; print(__name__, __spec__.name, sys.argv[1:])", "part.py")
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "m", "package.part", "1", kind="module", start=start))
            assert (await exits.of("m")).code == 0
        assert (tmp_path / "m.log").read_text() == "__main__ package.part ['1']\n"

    run(test())


ENDS = {
    "end": ("print('hi', end='')", 0, None, "hi"),
    "number": ("import sys; sys.exit(3)", 3, None, ""),
    "text": ("import sys; sys.exit('why')", 1, None, "why\n"),
    "signal": ("import os; os.kill(os.getpid(), 11)", None, 11, ""),
    "terminate": ("import os, time; os.kill(os.getpid(), 15); time.sleep(9)", None, 15, ""),
    "thread": ("import threading; threading.Timer(0.1, print, 't').start()", 0, None, "t\n"),
    "atexit": ("import atexit; atexit.register(print, 'bye'); raise SystemExit(4)", 4, None, "bye\n"),
    "c_output": ("import ctypes; ctypes.CDLL(None).printf(b'from C')", 0, None, "from C"),
    "interrupt": (
        "import atexit, os, sys, time; sys.excepthook = lambda *_: None; atexit.register(print, 'bye')\n"
        "os.kill(os.getpid(), 2); time.sleep(9)", None, 2, "bye\n"),
    "killed": ("import os; print('last words'); os.kill(os.getpid(), 9)", None, 9, "last words\n"),
}  # fmt: skip


@STARTS
def test_a_worker_ends_as_its_program_does(tmp_path: Path, start: str) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            for id, (source, *_) in ENDS.items():
                path = script(tmp_path, source, f"{id}.py")
                await host.spawn(spawn(tmp_path, id, path, start=start))
            ends = {id: await exits.of(id) for id in ENDS}
        got = {id: (ends[id].code, ends[id].signal, (tmp_path / f"{id}.log").read_text()) for id in ENDS}
        assert got == {id: tuple(expected) for id, (_, *expected) in ENDS.items()}

    run(test())


@STARTS
def test_files_that_a_program_leaves_open_are_written_out(tmp_path: Path, start: str) -> None:
    """Given open files, buffered, compressed and as text upon that, when the program ends, then all is in them."""
    source = """
        import gzip, io
        text, binary, packed = open("text", "w"), open("binary", "wb"), gzip.open("packed", "wt")
        closed, detached = open("closed", "w"), open("detached", "w")
        def write():
            for file in (text, packed):
                file.write("words")
            binary.write(b"bytes")
            closed.close()
            detached.detach()
        write()
        """

    async def test() -> None:
        path = script(tmp_path, textwrap.dedent(source), "leaves.py")
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "leaves", path, start=start))
            assert (await exits.of("leaves")).code == 0
        assert (tmp_path / "leaves.log").read_text() == ""
        assert (tmp_path / "text").read_text() == "words"
        assert (tmp_path / "binary").read_bytes() == b"bytes"
        assert gzip.decompress((tmp_path / "packed").read_bytes()) == b"words"

    run(test())


@STARTS
def test_a_worker_is_bound_to_its_processors(tmp_path: Path, start: str) -> None:
    one = max(os.sched_getaffinity(0))

    async def test() -> None:
        path = script(tmp_path, "import os; print(os.sched_getaffinity(0))", "bound.py")
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "bound", path, start=start, processors=(one,)))
            assert (await exits.of("bound")).code == 0
        assert (tmp_path / "bound.log").read_text() == f"{{{one}}}\n"

    run(test())


def test_a_traceback_shows_the_program_alone(tmp_path: Path) -> None:
    async def test() -> None:
        path = script(tmp_path, "def f():\n    1 / 0\n\nf()\n")
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            for start in ("fork", "exec"):
                await host.spawn(spawn(tmp_path, start, path, start=start))
                assert (await exits.of(start)).code == 1
        assert (tmp_path / "fork.log").read_text() == (tmp_path / "exec.log").read_text()

    run(test())


MULTIPROCESSING = """
import multiprocessing, os
def work(queue): queue.put(os.getpid())
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=work, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == child.pid
        child.join()
        assert child.exitcode == 0, method
"""


def test_multiprocessing_works_in_a_forked_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            await host.spawn(spawn(tmp_path, "m", script(tmp_path, MULTIPROCESSING)))
            assert (await exits.of("m", 30)).code == 0, (tmp_path / "m.log").read_text()

    run(test())


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
import pathlib, time
from multiprocessing.shared_memory import SharedMemory
from ftrain.caretakers import let_tracker_outlive_its_group
let_tracker_outlive_its_group()  # as each worker of a job does
shared = SharedMemory(create=True, size=4096)
path = pathlib.Path("shared")
path.with_suffix(".tmp").write_text(shared.name)
path.with_suffix(".tmp").rename(path)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["it crashes", "it is stopped", "its zygote ends"])
def test_shared_memory_of_a_killed_worker_is_given_back(tmp_path: Path, way: str) -> None:
    async def test() -> None:
        async with hosting(zygote_config(tmp_path)) as (host, exits):
            pid = await host.spawn(spawn(tmp_path, "s", script(tmp_path, SHARING)))
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
