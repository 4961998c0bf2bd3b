"""Recovery in the same process: a worker leaves its generation, and runs the training function again in the next one.

A thread listens to the agent. Told to leave, it interrupts the main thread (a signal whose handler raises
`GenerationEnded`, which cuts every wait of Python's short) and severs its sockets (sever.py, for the waits of C++), and
again, until the function has unwound. Then the main thread lets go of all that the generation held, says that it waits,
and is assigned a place in another one: the environment that a forked worker would have got. The function begins at its
top, its state restored as any new worker's is. Of the old generation nothing is trusted; tensors that it left
unchanged are kept, and proved (live.py).

A standby is the same from the middle on: it has run the script up to the function, and waits for its first place.
Whoever waits ends with its agent. docs/recovery.md says what a function must bear, and what this does not survive.
"""

from __future__ import annotations

import gc
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

import msgspec
import torch.distributed as dist

from ftrain import sever
from ftrain.comm import worker as recorder
from ftrain.environment import JobEnvironment, WorkerEnvironment, read_environment
from ftrain.errors import GenerationEnded
from ftrain.letting_go import clear_frames, let_go
from ftrain.link import Assignment, Hello, Leave, Stays, ToWorker, Waits
from ftrain.live import Held
from ftrain.rehearsal import rehearse
from ftrain.rng import rng_state, set_rng_state
from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.frames import connect_unix, recv_frame, send_frame

RECALL = signal.SIGRTMIN + 10
"""Interrupts the main thread; a real-time signal, which scripts seldom have a use for."""
ASSIGNMENT_SECONDS_MAX = 300.0
"""A worker that has left waits so long for its next place: its node may have become a spare."""
_AGAIN_SECONDS = 0.02
_RAISE_AGAIN_SECONDS = 0.25
"""An exception that did not end the function was swallowed; one that is on its way must not be cut off."""
_RECONNECT_SECONDS = 0.2
_CONNECT_TIMEOUT_SECONDS = 2.0
_IMPORTING = "<frozen importlib._bootstrap>"
R = TypeVar("R")


class Window:
    """While it is open, whoever is in it can be made to leave. Only the main thread opens and closes it."""

    def __init__(self) -> None:
        self._is_open = False
        self._raised_at = -_RAISE_AGAIN_SECONDS

    def __enter__(self) -> Window:
        self._is_open = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """From here on nothing is interrupted."""
        self._is_open = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        now = time.monotonic()
        # An import that was cut short can perhaps not be made again: it may end first.
        if self._is_open and now - self._raised_at >= _RAISE_AGAIN_SECONDS and not _is_importing(frame):
            self._raised_at = now
            raise GenerationEnded


class Member:
    """This process, for as long as it takes part in the job: its line to the agent, and how it is made to leave."""

    def __init__(self, environment: WorkerEnvironment, job: JobEnvironment) -> None:
        self.window = Window()
        self.held: Held | None = None
        """What the generation that was left has not changed since its last snapshot."""
        self._path = job.node_dir / "agent.sock"
        self._hello = Hello(environment.rank, environment.local_rank, os.getpid(), job.generation)
        self._main = threading.main_thread().ident
        self._generation = 0 if job.standby else job.generation
        self._waiting = job.standby
        self._line: socket.socket | None = None
        self._sending = threading.Lock()
        self._asked, self._left, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._assignments: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, name="ftrain-rejoin", daemon=True)

    def __enter__(self) -> Member:
        signal.signal(RECALL, self.window.interrupt)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._closed.set()
        self._left.set()
        with self._sending:
            if self._line is not None:
                _hang_up(self._line)
        self._thread.join(_CONNECT_TIMEOUT_SECONDS)
        signal.signal(RECALL, signal.SIG_IGN)  # one may be on its way

    def take_held(self) -> Held | None:
        """It is the caller's from here on."""
        held, self.held = self.held, None
        return held

    def wait_asked(self, timeout_seconds: float) -> bool:
        """Whether the agent wants this process to leave, waiting for its word."""
        return self._asked.wait(timeout_seconds)

    def wait_assignment(self) -> WorkerEnvironment:
        """Say that this process waits, and take the place that it is given. Raises SystemExit if there is none."""
        first = self._generation == 0
        self._waiting = True
        self._left.set()
        if not first:
            self._send(Waits())
        try:
            assignment = self._assignments.get(timeout=None if first else ASSIGNMENT_SECONDS_MAX)
        except queue.Empty:
            assignment = None
        if assignment is None:
            raise SystemExit(0)
        _redirect(assignment)
        os.environ.pop("FTRAIN_STANDBY", None)
        os.environ.update(assignment.env)
        return read_environment()

    # ---- the thread

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with connect_unix(self._path, _CONNECT_TIMEOUT_SECONDS) as line:
                    line.settimeout(None)
                    self._say_hello(line)
                    while not self._closed.is_set():
                        self._take(_decode(recv_frame(line)))
            except (OSError, EOFError, SnapshotError, msgspec.DecodeError):
                pass  # The agent is away.
            with self._sending:
                self._line = None
            if self._waiting:
                self._assignments.put(None)
                return
            self._closed.wait(_RECONNECT_SECONDS)

    def _say_hello(self, line: socket.socket) -> None:
        with self._sending:
            self._line = line
            for message in (self._hello, Stays(), *([Waits()] if self._waiting else [])):
                send_frame(line, msgspec.msgpack.encode(message))

    def _send(self, message: Waits) -> None:
        with self._sending:
            if self._line is not None:
                try:
                    send_frame(self._line, msgspec.msgpack.encode(message))
                except OSError:
                    _hang_up(self._line)

    def _take(self, message: ToWorker) -> None:
        match message:
            case Assignment(generation):
                self._generation, self._waiting = generation, False
                self._asked.clear()
                self._left.clear()
                self._assignments.put(message)
            case Leave(generation) if generation > self._generation and not self._waiting:
                self._asked.set()
                self._recall()

    def _recall(self) -> None:
        """Until the main thread waits, or is done, or this process is killed."""
        assert self._main is not None
        first = True
        while not self._left.is_set():
            signal.pthread_kill(self._main, RECALL)
            sever.sockets.sever()
            if first:
                sever.abort_accelerators()
            first = False
            self._left.wait(_AGAIN_SECONDS)


def is_possible(job: JobEnvironment) -> bool:
    """Whether this process can rejoin: the job allows it, and its groups are ours to make and to take down."""
    on_main = threading.current_thread() is threading.main_thread()
    return job.in_process and on_main and not dist.is_initialized() and sever.install()


def run(environment: WorkerEnvironment, job: JobEnvironment, generation: Callable[[WorkerEnvironment, Member], R]) -> R:
    """Call ``generation`` in one generation after the other, until it returns or raises anything but GenerationEnded.

    A standby waits for its first one. Whatever the script has drawn of its generators, each begins with the same.
    """
    drawn = rng_state()
    if job.standby:
        rehearse()
        set_rng_state(drawn)
    # The first optimizer imports it anyway. Coming after this, it would double the time that a recovery takes.
    importlib.import_module("torch._dynamo")
    gc.collect()
    gc.freeze()  # what the script has made so far stays: not to be looked at whenever a generation is let go
    with Member(environment, job) as member:
        if job.standby:
            environment = member.wait_assignment()
            recorder.restart()
        while True:
            try:
                return generation(environment, member)
            except GenerationEnded as ended:
                clear_frames(ended)
            let_go()
            if member.held is not None:
                member.held.drop_shared()
            environment = member.wait_assignment()
            recorder.restart()
            set_rng_state(drawn)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def _redirect(assignment: Assignment) -> None:
    """Each generation's output has files of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    for path, target in ((assignment.stdout_path, 1), (assignment.stderr_path, 2)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.dup2(fd, target)
        os.close(fd)


def _hang_up(line: socket.socket) -> None:
    """Wake its reader: closing it would not."""
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


_decode = msgspec.msgpack.Decoder(ToWorker).decode
