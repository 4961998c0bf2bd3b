"""`ftrain` from a process that has its imports done, torch and all: a job starts in a fifth of the processor time.

    process = ready.start(["run", ...], stdout=file, environment={...}, host=lab.init_pid(2))

What runs is what a user runs, but no interpreter is started for it: the launcher is a fork of one process for all
tests, its nursery and so the agents, daemons and the controller are forks of the launcher, and a zygote, which starts
anew otherwise, is a fork of one of these. How a user's command starts is the matter of test_launching.py,
test_launcher_hosts.py, test_launcher_torchrun.py and test_recorder_jobs.py.

This file is also the program of that one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

_IMPORTS = (
    "ftrain.preload",
    "ftrain_launcher.cli",
    "ftrain_launcher.control.controller",
    "ftrain_launcher.engines.host",
    "ftrain_launcher.engines.local",
    "ftrain_launcher.joining",
    "ftrain_launcher.launch",
    "ftrain_launcher.node.agent",
    "ftrain_launcher.processes.zygote",
    "ftrain_snapshot.daemon",
    "ftrain_snapshot.service",
)
_NAMESPACES = ("pid", "net", "uts", "ipc", "mnt")
_REQUEST_BYTES_MAX = 1 << 17


class Process:
    """One that was started so, with the methods of a Popen. Its parent waits for it, and says how it ended."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.pid = int(line.recv(64))
        self.returncode: int | None = None

    def __del__(self) -> None:
        self._line.close()  # of one that nobody waits for: its host was lost

    def poll(self) -> int | None:
        """Its exit code, or a signal's number with a minus; None: it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("ftrain", timeout or 0.0)
            self.returncode = int(self._line.recv(64))
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str], *, stdout: IO[bytes], environment: Mapping[str, str], host: int | None = None
) -> Process:
    """Run `ftrain` with these arguments in a session of its own. ``host``: the process 1 of the host to run it on."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect(str(_server()))
    request = {"arguments": list(arguments), "environment": dict(environment), "folder": os.getcwd(), "host": host}
    socket.send_fds(line, [json.dumps(request).encode()], [stdout.fileno()])
    return Process(line)


@cache
def _server() -> Path:
    """Where the one process listens. It ends with this one, whose end of a pipe it holds."""
    path = Path(tempfile.mkdtemp(prefix="ftrain-test-ready-")) / "socket"
    command = [sys.executable, "-P", __file__, str(path)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    _servers.append(server)
    return path


_servers: list[subprocess.Popen[bytes]] = []


def close() -> None:
    """End it, if there is one."""
    for server in _servers:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()
    _servers.clear()


# ---- the one process


def _serve(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(64)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            break
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _watch(line)
        line.close()
    path.unlink()
    path.parent.rmdir()


def _watch(line: socket.socket) -> NoReturn:
    """Start what is asked for and be its parent: as it is neither the test's, nor of the host."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, descriptors, _, _ = socket.recv_fds(line, _REQUEST_BYTES_MAX, 1)
    request = json.loads(data)
    if request["host"] is not None:
        _enter(request["host"])
    pid = os.fork()
    if pid == 0:
        line.close()
        _be_ftrain(request, descriptors[0])
    line.send(b"%d" % pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        line.send(b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _enter(init_pid: int) -> None:
    """This process's next child is one of that host."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = [os.open(f"/proc/{init_pid}/ns/{name}", os.O_RDONLY) for name in _NAMESPACES]
    for namespace in namespaces:
        if libc.setns(namespace, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)


def _be_ftrain(request: dict[str, Any], output: int) -> NoReturn:
    from ftrain_launcher import cli

    code: object = 1
    try:
        os.setsid()
        for place, source in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(source, place)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        gc.enable()
        sys.argv = ["ftrain", *request["arguments"]]
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:  # nothing is above this frame that could say it
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


# ---- zygotes


async def _fork_zygote(config: Any) -> Any:
    """What takes the place of `exec_zygote` in these processes."""
    from ftrain_launcher.processes import nursery, zygote_line
    from ftrain_launcher.processes.zygote_start import zygote_environment

    folders = (config.socket_path.parent, config.socket_path.parent.parent)  # a job's, a node's
    arena = next(folder for folder in folders if (folder / "nursery.sock").exists())
    environment = zygote_environment(os.environ, preload=bool(config.preload))
    arguments = (json.dumps(environment), *config.command()[4:])
    with config.log_path.open("ab") as log:
        nursery.start(arena, "ready", arguments, (log.fileno(), log.fileno()))
    return await zygote_line._connect_when_ready(config.socket_path, config.start_timeout_seconds, failure=str)


def _start_zygote(config: Any) -> Any:
    """What takes the place of `start_zygote` in the launcher, which is a fork with all imports itself."""
    from ftrain_launcher.processes import zygote, zygote_start

    pid = os.fork()
    if pid:
        return zygote_start.Started(config, pid)
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(config.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for place, source in enumerate((nothing, log, log)):
            os.dup2(source, place)
        os.environ.update(zygote_start.zygote_environment(os.environ, preload=bool(config.preload)))
        sys.argv = ["zygote", *config.command()[4:]]
        zygote.main()
    except BaseException as error:  # nothing is above this frame that could say it
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)


def main() -> int:
    """Be a zygote: the nursery calls this."""
    from ftrain_launcher.processes import zygote

    os.environ.update(json.loads(sys.argv.pop(1)))
    zygote.main()
    return 0


def _prepare() -> None:
    gc.disable()
    for name in _IMPORTS:
        importlib.import_module(name)
    for name in sys.modules["ftrain.preload"].LATER:
        importlib.import_module(name)
    importlib.import_module("ftrain_snapshot.codec").choose()
    sys.modules["ftrain_launcher.processes.zygote_start"].start_zygote = _start_zygote  # type: ignore[attr-defined]
    sys.modules["ftrain_launcher.processes.workers"].exec_zygote = _fork_zygote  # type: ignore[attr-defined]
    sys.modules["ready"] = sys.modules["__main__"]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _prepare()
    _serve(Path(sys.argv[1]))
