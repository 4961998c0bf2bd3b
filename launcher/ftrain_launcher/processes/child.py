"""What happens in a process that the zygote forked, from the fork to its end: it becomes a worker.

First what an ``exec`` would have given it: a session, default signals, files for its output, a folder, the
environment. Then either a real ``exec``, or the script itself in this interpreter, whose imports are already
there. At the end it does what the interpreter does at its own end (threads joined, exit functions, files and
output flushed) but leaves by ``os._exit``: C++ destructors that abort after a finished run are no training fault
(FACTS 10), and the zygote's frames are never returned to.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib.abc
import importlib.machinery
import io
import os
import pkgutil
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from ftrain.comm import STARTUP_FOLDER
from ftrain_launcher.processes import linux
from ftrain_launcher.processes.spawning import Spawn

CANNOT_START = 127
"""Exit code when the program cannot be executed, as a shell's."""
_INTERRUPTED = -signal.SIGINT
"""Of a script that KeyboardInterrupt ended."""


@dataclass(frozen=True)
class WorkerRole:
    """This process, freshly forked, is to be the worker of ``spawn``."""

    spawn: Spawn
    stdout: int
    stderr: int
    """May be the same descriptor."""
    parent_pid: int
    """The zygote's: if it has another parent by now, the zygote is dead."""
    later: tuple[str, ...] = ()
    """Modules that the zygote has not imported yet."""


def open_output(spawn: Spawn) -> tuple[int, int]:
    """Open a worker's output files, in the zygote, where a failure can still be told to the agent.

    Raises:
        OSError: a folder or file cannot be made.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    Path(spawn.stdout_path).parent.mkdir(parents=True, exist_ok=True)
    stdout = os.open(spawn.stdout_path, flags, 0o644)
    if spawn.stderr_path == spawn.stdout_path:
        return stdout, stdout
    try:
        Path(spawn.stderr_path).parent.mkdir(parents=True, exist_ok=True)
        return stdout, os.open(spawn.stderr_path, flags, 0o644)
    except OSError:
        os.close(stdout)
        raise


def redirect_log(path: str) -> None:
    """Send this process's own output to ``path``; empty: leave it where it goes."""
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        _redirect(os.open(os.devnull, os.O_RDONLY), fd, fd)


def reset_signals() -> None:
    """Take back the signal handling of the zygote, or of the launcher."""
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def become_worker(role: WorkerRole) -> NoReturn:
    """Do the worker's whole life; never returns to the zygote's frames."""
    code = CANNOT_START
    try:
        _enter(role)
        if role.spawn.start == "exec" or role.spawn.kind == "exec":
            _execute(role.spawn)
        else:
            code = _run(role.spawn, role.later)
    except BaseException as error:  # nothing is above this frame that could say it
        _report(error)
    finally:
        os._exit(code)


def _enter(role: WorkerRole) -> None:
    os.setsid()
    linux.die_with_parent(role.parent_pid)
    _redirect(os.open(os.devnull, os.O_RDONLY), role.stdout, role.stderr)
    if role.spawn.processors:
        os.sched_setaffinity(0, role.spawn.processors)
    os.environ.update(role.spawn.env)
    os.chdir(role.spawn.cwd)


def _redirect(*sources: int) -> None:
    """Make these the standard input, output and error, and close their first numbers."""
    for target, source in enumerate(sources):
        os.dup2(source, target)
    for source in set(sources) - {0, 1, 2}:
        os.close(source)


def _execute(spawn: Spawn) -> None:
    """Replace this process. Returns, having said why, only if that is not possible."""
    # As subprocess does: Python ignores these, the programs it starts should not.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")  # a killed worker's last lines must be in its file
    if _is_worker(spawn):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STARTUP_FOLDER), os.environ.get("PYTHONPATH"))))
    argv = {
        "script": (sys.executable, *spawn.argv),
        "module": (sys.executable, "-m", *spawn.argv),
        "exec": spawn.argv,
    }[spawn.kind]
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"ftrain: cannot start {argv[0]}: {error.strerror}\n".encode())


def _run(spawn: Spawn, later: tuple[str, ...]) -> int:
    """Run the script or module as ``__main__`` and end the interpreter's work; returns the exit code."""
    _refresh(spawn)
    if later:
        sys.meta_path.insert(0, _QuickImports(frozenset(later)))
    if _is_worker(spawn):
        from ftrain.comm import worker  # it takes numpy along, which not every zygote has

        worker.start()
    code = _guarded(spawn)
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException as error:  # the outermost frame of the program: whatever it is, say it
            _report(error)
    _write_out_files()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    linux.flush_c_output()
    if code == _INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)  # so that the exit shows the signal, as the interpreter does it
    return code


def _write_out_files() -> None:
    """Write out the files that the program left open, as the interpreter does when it takes its objects down.

    Text first, since it may lie on a compressor, and that on a plain file. Only closing brings a compressor's end.
    """
    files = [one for one in gc.get_objects() if io.IOBase.__base__ in type(one).__mro__]
    plain = (io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)
    silent = (io.RawIOBase, io.BufferedReader, io.BytesIO, io.StringIO, *plain)
    texts = [one for one in files if isinstance(one, io.TextIOWrapper)]
    others = [one for one in files if not isinstance(one, (io.TextIOWrapper, *silent))]
    for finish in (
        *(one.flush for one in texts),
        *(one.close for one in others),
        *(one.flush for one in files if isinstance(one, plain)),
    ):
        try:
            finish()
        except ValueError:  # it is closed, or not for writing
            pass
        except Exception as error:  # a file of any kind that cannot be written out: the interpreter says it, too
            _report(error)


def _is_worker(spawn: Spawn) -> bool:
    """It is a rank's script; what else an agent starts lacks the variable, and other programs have no recorder."""
    return spawn.kind != "exec" and "FTRAIN_RECORDER" in spawn.env


def _refresh(spawn: Spawn) -> None:
    """Renew what a new interpreter would have made for itself."""
    gc.enable()
    linux.set_name(spawn.id)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = list(spawn.argv)
    sys.orig_argv = [sys.executable, *(("-m",) if spawn.kind == "module" else ()), *spawn.argv]
    if not os.environ.get("PYTHONSAFEPATH"):
        script_folder = os.path.dirname(os.path.realpath(spawn.argv[0]))
        sys.path.insert(0, os.getcwd() if spawn.kind == "module" else script_folder)
    # Each new process has random numbers of its own. Python's `random` sees to that after a fork; the others are
    # looked up, never imported. (CUDA's generators have a fixed first seed, and do not exist yet.)
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()
    if (multiprocessing := sys.modules.get("multiprocessing.process")) is not None:
        multiprocessing.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]
        multiprocessing.current_process().authkey = os.urandom(32)


class _QuickImports(importlib.abc.MetaPathFinder):
    """Finds modules as everybody else would; while one of these is imported the garbage collector rests.

    A third of the time that torch._dynamo takes would be its: it looks again and again at what stays for good.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Only the first of them that is imported; what it takes along comes with it."""
        if name not in self._names:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        spec = next((found for other in others if (found := other.find_spec(name, path, target)) is not None), None)
        if spec is None or spec.loader is None or not gc.isenabled():
            return spec
        execute = spec.loader.exec_module

        def execute_quickly(module: ModuleType) -> None:
            gc.disable()
            try:
                execute(module)
            finally:
                gc.enable()

        spec.loader.exec_module = execute_quickly  # type: ignore[method-assign]
        return spec


def _guarded(spawn: Spawn) -> int:
    try:
        if spawn.kind == "module":
            runpy.run_module(spawn.argv[0], run_name="__main__", alter_sys=True)
        else:
            _run_script(os.path.abspath(spawn.argv[0]))
    except SystemExit as stop:
        return _exit_code(stop)
    except KeyboardInterrupt as error:
        _report(error)
        return _INTERRUPTED
    except BaseException as error:  # the outermost frame of the program: whatever it is, say it
        _report(error)
        return 1
    return 0


def _run_script(path: str) -> None:
    """As the interpreter does it: ``__main__`` is the script and stays it, for threads and exit functions that look
    there (pickle does), and is of no package. Of `runpy` neither is true."""
    if pkgutil.get_importer(path) is not None:  # a folder, or a zip file
        runpy.run_path(path, run_name="__main__")
        return
    with io.open_code(path) as file:
        code = pkgutil.read_code(file)
        file.seek(0)
        code = code or compile(file.read(), path, "exec", dont_inherit=True)
    main = sys.modules["__main__"] = ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    main.__dict__.update(__file__=path, __cached__=None, __builtins__=builtins, __loader__=loader)
    exec(code, main.__dict__)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback by the program's own hook, without the frames of this file and of runpy."""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OUR_FILES:
        traceback = traceback.tb_next
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)


_OUR_FILES = frozenset({__file__, runpy.__file__, runpy.run_path.__code__.co_filename})
