"""The zygote: one process per node that has the heavy imports done, forks the workers, and is their parent.

A fork of it is a worker after 10 ms instead of the seconds that ``import torch`` takes (FACTS 5). It imports
and forks and nothing else: with one thread, and no tensor ever made, a forked torch is as good as a fresh one.
It serves once it has imported the preload module. That module's ``LATER``, if it has one, names what is imported after
that, one by one, while nobody wants anything: whoever is forked earlier imports by itself what it needs of them.
What is wanted in the middle of one is done at its end, but for what needs no fork.
The agent connects to its socket and sends ``Spawn`` and ``Kill``; every death is pushed as ``Exited`` at once.
The agent may die and come back: the workers go on, exits are kept, and only after ``owner_grace_seconds``
without a client does the zygote kill everything and end. If the zygote dies, the kernel kills its workers.

Run as ``python -P -m ftrain_launcher.processes.zygote --socket PATH``; the socket exists once the imports are done.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ftrain.caretakers import is_caretaker
from ftrain_launcher.processes import child, linux, spawning
from ftrain_launcher.processes.spawning import Children, Exited, Forked, ForkZygote, Ready, Spawn, Spawned
from ftrain_launcher.processes.zygote_clients import Client, Clients

_TERMINATE_GRACE_SECONDS = 5.0
_END_TIMEOUT_SECONDS = 5.0
_EXITS_KEPT_MAX = 1024
_QUIET_SECONDS = 0.5
"""Without a request, before the next later import: a generation's workers are asked for one after the other."""
_FORKED_ZYGOTE_SECONDS = 30.0
"""The same after a zygote was forked off: its workers and imports come first, and only its successor lacks these."""
_ROOT_SHARE, _SLICE_SECONDS = 0.05, 0.005
"""Of a processor: what the later imports of a zygote take that has forked off others, whose workers train by then, or
are in the middle of a recovery."""


@dataclass(frozen=True, kw_only=True)
class ZygoteRole:
    """This process is to be a zygote."""

    socket_path: Path
    """Where it listens."""
    preload: str
    """The module that was imported; empty: none."""
    preload_seconds: float
    owner_grace_seconds: float
    """How long it lives, with its workers, while no client is connected."""
    later: tuple[str, ...] = ()
    """Modules that are still to be imported, in this order."""


Role = ZygoteRole | child.WorkerRole
"""What a process is to be: the program's own first role, or that of a freshly forked child."""


class Zygote:
    """One zygote: its children, and what its clients ask of it."""

    def __init__(self, role: ZygoteRole) -> None:
        self._role = role
        self._pid = os.getpid()
        self._running: dict[str, int] = {}
        self._exits: dict[str, Exited] = {}  # not yet acknowledged
        self._programs: set[int] = set()
        """Those of these that are no Python of ours: what clears up after them is in their groups."""
        self._zygotes: set[int] = set()
        self._owner: Client | None = None
        self._terminated = False
        self._kill_at: float | None = None  # set: no new children, and the end is near
        self._later = deque(role.later)
        self._quiet_until = time.monotonic() + _QUIET_SECONDS
        self._paused_at = 0.0
        """In seconds of processor time: the last pause within an import."""
        linux.adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up is all that is needed
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_terminate)
        threads = linux.thread_count()
        self._clients = Clients(role.socket_path, Ready(self._pid, role.preload, role.preload_seconds, threads))
        log("zygote_ready", socket=role.socket_path, preload=role.preload or "none", threads=threads)

    def _on_terminate(self, number: int, frame: object) -> None:
        self._terminated = True

    def serve(self) -> Role | None:
        """Serve to the end; returns None then, and in a forked child what that child is to be."""
        while not self._is_over():
            role = self._attend(self._seconds_to_wait())
            if role is not None:
                return role
            if self._later and time.monotonic() >= self._quiet_until:
                self._import_next()
        self._end()
        return None

    def _attend(self, timeout_seconds: float | None, *, may_fork: bool = True) -> Role | None:
        """Wait for something to do, and do it, in the order in which it was asked for."""
        self._clients.wait(timeout_seconds)
        self._reap()
        if self._terminated:
            self._begin_shutdown(_TERMINATE_GRACE_SECONDS)
        requests = self._clients.requests
        while requests and (may_fork or not isinstance(requests[0][1], Spawn | ForkZygote)):
            self._quiet_until = max(self._quiet_until, time.monotonic() + _QUIET_SECONDS)
            role = self._handle(*requests.popleft())
            if role is not None:
                return role
        return None

    def _import_next(self) -> None:
        """Deaths are told meanwhile, but nothing is forked: the child would have half a module."""
        name = self._later.popleft()
        between = _Between(self._attend_in_import)
        sys.meta_path.insert(0, between)
        self._paused_at = time.process_time()
        try:
            importlib.import_module(name)
        except Exception as error:  # of whatever kind: a worker that needs the module meets it, and says so
            log("later_import_failed", module=name, error=repr(error))
        finally:
            sys.meta_path.remove(between)
        gc.freeze()
        if not self._later:
            log("later_import_done", threads=linux.thread_count())

    def _attend_in_import(self) -> None:
        self._attend(0.0, may_fork=False)
        used = time.process_time() - self._paused_at
        is_waited_for = self._clients.requests or self._kill_at is not None
        if self._zygotes and used >= _SLICE_SECONDS and not is_waited_for:
            self._attend(used / _ROOT_SHARE - used, may_fork=False)
            self._paused_at = time.process_time()

    def _seconds_to_wait(self) -> float | None:
        """Until there is something to do here besides what clients are going to ask; None: nothing."""
        if self._clients.requests:  # what came in the middle of an import
            return 0.0
        left = self._seconds_left()
        if not self._later:
            return left
        until_quiet = max(0.0, self._quiet_until - time.monotonic())
        return until_quiet if left is None else min(left, until_quiet)

    def _seconds_left(self) -> float | None:
        """Until this zygote's time is up; None: no end in sight."""
        deadline = self._kill_at
        if deadline is None:
            if self._clients.none_since is None:
                return None
            deadline = self._clients.none_since + self._role.owner_grace_seconds
        return max(0.0, deadline - time.monotonic())

    def _is_over(self) -> bool:
        return self._seconds_left() == 0.0 or (self._kill_at is not None and not self._running)

    def _handle(self, client: Client, request: spawning.Request) -> Role | None:
        match request:
            case Spawn():
                self._owner = client
                return self._spawn(client, request)
            case ForkZygote():
                return self._fork_zygote(client, request)
            case spawning.Kill():
                self._kill(request)
            case spawning.List():
                self._owner = client
                children = Children(tuple(self._running.items()), tuple(self._exits.values()))
                self._clients.send(client, children)
            case spawning.Acknowledge(id):
                self._exits.pop(id, None)
            case spawning.Shutdown(grace_seconds):
                self._begin_shutdown(grace_seconds)
        return None

    def _kill(self, kill: spawning.Kill) -> None:
        if kill.signal not in signal.valid_signals():
            log("no_such_signal", signal=kill.signal)
            return
        for pid in (self._running[id] for id in kill.ids if id in self._running):
            if kill.signal == signal.SIGKILL:
                self._kill_group(pid)
            else:
                linux.send_signal(pid, kill.signal)

    def _kill_group(self, pid: int) -> None:
        linux.kill_group(pid, is_caretaker if pid in self._programs else None)

    def _spawn(self, client: Client, spawn: Spawn) -> Role | None:
        if spawn.start == "fork" and spawn.kind != "exec" and linux.thread_count() > 1:
            # Another thread may hold a lock that the child would wait for, for ever.
            log("fork_unsafe", id=spawn.id, threads=linux.thread_count(), instead="exec")
            spawn = msgspec.structs.replace(spawn, start="exec")
        output_fds: tuple[int, ...] = ()
        try:
            self._check(spawn)
            output_fds = stdout, stderr = child.open_output(spawn)
            pid = self._fork()
            if pid == 0:
                return child.WorkerRole(spawn, stdout, stderr, self._pid, tuple(self._later))
        except (OSError, ValueError) as error:
            self._clients.send(client, Spawned(spawn.id, 0, str(error)))
        else:
            self._running[spawn.id] = pid
            if spawn.kind == "exec":
                self._programs.add(pid)
            self._clients.send(client, Spawned(spawn.id, pid, ""))
        for fd in set(output_fds):
            os.close(fd)
        return None

    def _check(self, spawn: Spawn) -> None:
        if self._kill_at is not None:
            raise ValueError("the zygote is shutting down")
        if spawn.id in self._running or spawn.id in self._exits:
            raise ValueError(f"id {spawn.id} is in use")
        if not spawn.argv:
            raise ValueError("argv is empty")
        if not os.path.isdir(spawn.cwd):
            raise ValueError(f"no such folder: {spawn.cwd}")

    def _fork_zygote(self, client: Client, request: ForkZygote) -> Role | None:
        try:
            if self._kill_at is not None:
                raise ValueError("this zygote is shutting down")
            if linux.thread_count() > 1:
                raise ValueError(f"this zygote cannot fork: it has {linux.thread_count()} threads")
            pid = self._fork()
        except (OSError, ValueError) as error:
            self._clients.send(client, Forked(0, str(error)))
            return None
        if pid == 0:
            os.setsid()
            child.redirect_log(request.log_path)
            return replace(self._role, socket_path=Path(request.socket_path), later=tuple(self._later))
        self._zygotes.add(pid)
        self._quiet_until = time.monotonic() + _FORKED_ZYGOTE_SECONDS
        self._clients.send(client, Forked(pid, ""))
        return None

    def _fork(self) -> int:
        # A signal caught in the child by the parent's handlers would wake the parent through the shared socket.
        with linux.signals_blocked():
            pid = os.fork()
            if pid == 0:
                self._clients.close_in_child()
                child.reset_signals()
        return pid

    def _reap(self) -> None:
        """Report the dead. A dead worker's group goes with it; the last one takes all orphans along."""
        ids = {pid: id for id, pid in self._running.items()}
        reaped = False
        for pid, code, number in linux.dead_children():
            reaped = True
            self._zygotes.discard(pid)
            if pid in ids:
                self._kill_group(pid)
                self._programs.discard(pid)
                del self._running[ids[pid]]
                self._note(Exited(ids[pid], pid, code, number))
        # A process that a worker detached may serve other workers too: it ends with the last of them.
        if reaped and not self._running:
            self._kill_orphans()

    def _note(self, exited: Exited) -> None:
        if len(self._exits) >= _EXITS_KEPT_MAX:
            del self._exits[next(iter(self._exits))]
        self._exits[exited.id] = exited
        if self._owner is not None:
            self._clients.send(self._owner, exited)

    def _kill_orphans(self, *, caretakers: bool = False) -> None:
        for pid in linux.children_of(self._pid) - self._zygotes - set(self._running.values()):
            if caretakers or not is_caretaker(pid):
                linux.send_signal(pid, signal.SIGKILL)

    def _begin_shutdown(self, grace_seconds: float) -> None:
        self._terminated = False
        if self._kill_at is None:
            for pid in self._running.values():
                linux.send_signal(pid, signal.SIGTERM)
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)

    def _end(self) -> None:
        """Kill what is left and wait until it is gone."""
        log("zygote_end", socket=self._role.socket_path, killed=len(self._running))
        for pid in self._running.values():
            self._kill_group(pid)
        deadline = time.monotonic() + _END_TIMEOUT_SECONDS
        while linux.children_of(self._pid) - self._zygotes and time.monotonic() < deadline:
            self._kill_orphans()
            self._clients.wait(0.01)  # a death wakes it; an orphan's own children appear only after that
            self._reap()
        self._kill_orphans(caretakers=True)
        self._clients.close()


class _Between(importlib.abc.MetaPathFinder):
    """Does something before each of the many imports that one consists of; finds nothing itself."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        """Any module is about to be looked for."""
        self._action()


def log(event: str, **fields: object) -> None:
    """One line on stderr. Not ``logging``: the workers would inherit its handlers."""
    words = [f"event={event}", f"pid={os.getpid()}", *(f"{name}={value}" for name, value in fields.items())]
    os.write(2, (" ".join(words) + "\n").encode())


def main() -> None:
    """Import, then serve; a forked child comes back here to become what it is to be."""
    parser = argparse.ArgumentParser(prog="ftrain_launcher.processes.zygote", description=__doc__.partition("\n")[0])
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--preload", default=spawning.PRELOAD, help="the module to import first")
    parser.add_argument("--no-preload", dest="preload", action="store_const", const="")
    parser.add_argument("--owner-grace-seconds", type=float, default=spawning.OWNER_GRACE_SECONDS)
    arguments = parser.parse_args()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the starter left open is not the workers'
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder that this was started in is not the script's
    gc.disable()
    began = time.monotonic()
    later: Iterable[str] = ()
    if arguments.preload:
        later = getattr(importlib.import_module(arguments.preload), "LATER", ())
    gc.freeze()  # or each child's first collection would copy all of the parent's pages
    role: Role | None = ZygoteRole(
        socket_path=arguments.socket.absolute(),
        preload=arguments.preload,
        preload_seconds=time.monotonic() - began,
        owner_grace_seconds=arguments.owner_grace_seconds,
        later=tuple(later),
    )
    while isinstance(role, ZygoteRole):
        role = Zygote(role).serve()
    if role is not None:
        child.become_worker(role)
    os._exit(0)  # everything is done, and taking torch down takes longer than all of it


if __name__ == "__main__":
    main()
