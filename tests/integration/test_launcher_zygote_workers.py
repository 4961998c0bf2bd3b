"""What a worker that a zygote starts is like: as a fresh interpreter, from its first line to its end."""

from __future__ import annotations

import gzip
import json
import os
import textwrap
from pathlib import Path

import pytest
from zygotes import hosting, run, script, spawn, zygote_config

STARTS = pytest.mark.parametrize("start", ["fork", "exec"])

FRESH = """
import json, os, random, signal, sys
print(json.dumps(dict(
    name=__name__, package=__package__, main=sys.modules["__main__"].json is json,
    file=__file__, argv=sys.argv, path=sys.path[0], cwd=os.getcwd(), env=os.environ["EXTRA"],
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
        assert a["package"] is None
        assert a["main"]
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
