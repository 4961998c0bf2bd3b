"""The nursery: a process of the launcher's that forks this machine's agents, daemons and controller.

Each of them would take a third of a second of processor time to import what it needs; a fork of a process that has
done so takes a hundredth. The launcher makes it before it has an event loop or a thread. It listens on a socket in the
job's shared memory, never loads torch, and forks twice, so that what it starts, in a session of its own, becomes the
child of the launcher, the subreaper of all. It ends with the launcher, whose blocked signals it keeps, and nothing
depends on its life: where there is none, `start` starts a new interpreter instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from ftrain_launcher.processes import child, linux
from ftrain_snapshot import frames
from ftrain_snapshot.errors import ProtocolError

_SOCKET = "nursery.sock"
_IMPORTS = (
    "ftrain_launcher.control.controller",
    "ftrain_launcher.node.agent",
    "ftrain_snapshot.daemon",
    "ftrain_snapshot.service",
    "numpy",
)
_ANSWER_SECONDS_MAX = 60.0
"""For the imports, on a machine that has a lot else to do."""
_DESCRIPTORS_MAX = 8
_HIGH = 64
"""Where descriptors are kept while the first ones are given away."""
_ASKING_SECONDS_MAX = 10.0
"""For a client to say what it wants, once it has connected."""


class _Start(msgspec.Struct, frozen=True):
    """What is to be started; its descriptors come before it. Answered by a pid."""

    module: str
    """With a function ``main`` that returns the exit code."""
    arguments: tuple[str, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_start = msgspec.msgpack.Decoder(_Start)
_decode_pid = msgspec.msgpack.Decoder(int)


def start(folder: Path, module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start ``python -m module``, which has a ``main()``, in a session of its own; returns its pid.

    From the nursery of this job's folder in shared memory it becomes the launcher's child, else this process's.
    ``descriptors``: what becomes its standard output, its standard error, and descriptors 3, 4 ...
    """
    with contextlib.suppress(OSError, EOFError, ProtocolError):
        with frames.connect_unix(folder / _SOCKET, _ANSWER_SECONDS_MAX) as line:
            socket.send_fds(line, [b"!"], descriptors)
            frames.send_frame(line, _encode(_Start(module, tuple(arguments))))
            return frames.decode(_decode_pid, frames.recv_frame(line))
    return _spawn([sys.executable, "-P", "-m", module, *arguments], descriptors)


def _spawn(command: list[str], descriptors: Sequence[int]) -> int:
    high = _high(descriptors)
    try:
        places = [(os.POSIX_SPAWN_DUP2, source, place) for place, source in enumerate(high, 1)]
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        return os.posix_spawn(command[0], command, os.environ, file_actions=[nothing, *places], setsid=True)
    finally:
        for descriptor in high:
            os.close(descriptor)


def _high(descriptors: Sequence[int]) -> list[int]:
    """Copies that none of the first numbers is taken by, so that none is written over before it is copied itself."""
    return [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in descriptors]


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """A nursery for this job, from a process that has one thread and no event loop; it ends with the body."""
    path = folder / _SOCKET
    listener = frames.bind_unix(path)
    life, its_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        life.close()
        _be_nursery(path, listener, its_end)
    listener.close()
    its_end.close()
    try:
        yield
    finally:
        life.close()
        with contextlib.suppress(ChildProcessError):  # it was killed, and buried
            os.waitpid(pid, 0)


def _be_nursery(path: Path, listener: socket.socket, life: socket.socket) -> NoReturn:
    """``life`` is closed at its other end when the launcher ends."""
    code = 1
    try:
        os.setsid()
        linux.set_name("nursery")
        child.reset_signals()
        _import()
        begun = _serve(listener, life)
        listener.close()
        life.close()
        if begun is not None:
            _become(*begun)
            code = importlib.import_module(begun[0].module).main()
            threading._shutdown()  # type: ignore[attr-defined]
        else:
            path.unlink(missing_ok=True)
            code = 0
    except BaseException as error:  # nothing is above this frame that could say it
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _import() -> None:
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder that the launcher was started in shadows no module
    gc.disable()
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a forked child would inherit locks without their owners
    for module in _IMPORTS:
        importlib.import_module(module)
    importlib.import_module("ftrain_snapshot.codec").choose()
    if threads is None:
        del os.environ["OPENBLAS_NUM_THREADS"]
    else:
        os.environ["OPENBLAS_NUM_THREADS"] = threads
    gc.freeze()  # or each child's first collection would copy all of this process's pages


def _serve(listener: socket.socket, life: socket.socket) -> tuple[_Start, list[int]] | None:
    """Fork what is asked for until the launcher ends; in a child: what that is to be, and its descriptors."""
    while True:
        ready, _, _ = select.select([listener, life], [], [])
        if life in ready:
            return None
        line, _ = listener.accept()
        descriptors: list[int] = []
        try:
            with line:
                line.settimeout(_ASKING_SECONDS_MAX)
                _, descriptors, _, _ = socket.recv_fds(line, 1, _DESCRIPTORS_MAX)
                wanted = frames.decode(_decode_start, frames.recv_frame(line))
                if select.select([line], [], [], 0)[0]:
                    raise EOFError("who asked did not wait")
                pid = _fork_twice()
                if pid == 0:
                    return wanted, descriptors
                frames.send_frame(line, _encode(pid))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # who asked is gone, as the agent of a lost node is: nobody misses an answer
        except (OSError, ProtocolError) as error:
            os.write(2, f"ftrain: the nursery could not do what was asked: {error!r}\n".encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_twice() -> int:
    """As `os.fork`, but the child is the launcher's by the time that this returns in it, and here with its pid."""
    reader, writer = os.pipe()
    waiting, go = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid != 0:
            os.write(writer, b"%d" % pid)
            os._exit(0)
        for descriptor in (reader, writer, go):
            os.close(descriptor)
        if not os.read(waiting, 1):
            os._exit(1)  # the nursery is dead: who asked for this has it started by other means
        os.close(waiting)
        return 0
    os.close(writer)
    os.close(waiting)
    with os.fdopen(go, "wb") as going, os.fdopen(reader, "rb") as said:
        answer = said.read()
        os.waitpid(between, 0)
        going.write(b"!")
    if not answer:
        raise ChildProcessError("it cannot fork")
    return int(answer)


def _become(wanted: _Start, descriptors: list[int]) -> None:
    """What an ``exec`` would have given it: a session, a name, its files, its signals, its arguments."""
    os.setsid()
    linux.set_name(wanted.module.rpartition(".")[2])
    for place, source in enumerate(_high([os.open(os.devnull, os.O_RDONLY), *descriptors])):
        os.dup2(source, place)
    os.closerange(1 + len(descriptors), os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    gc.enable()
    sys.argv = [wanted.module, *wanted.arguments]
