"""What `ftrain run` does to a script: one timeout for its groups (timeout.py), a recorder, a tracker that outlives it.

`start` is called before the script's first line, in a fork of the zygote or by ``startup/sitecustomize.py``. Whatever
needs torch waits until the script imports it; in a fork of a zygote with torch that is at once. The library is
taken if there is one, else the Python recorder, which says so; if that cannot be either, the worker trains
unrecorded. Steps are marked by `Context`; a script without one marks a step whenever its first optimizer has stepped.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ftrain.caretakers import let_tracker_outlive_its_group
from ftrain.comm import library
from ftrain.comm.native import NativeRecorder, load_native
from ftrain.comm.ring import HOLDS, NATIVE, WAITS, Identity, ring_path
from ftrain.environment import JobEnvironment, WorkerEnvironment, read_environment


class Recorder(Protocol):
    """What records: the library, or the Python one."""

    def mark(self, step: int) -> None:
        """Step ``step`` is done."""

    def close(self) -> None:
        """The process ends in good order."""


_native: NativeRecorder | None = None
_recorder: Recorder | None = None
_clock: OptimizerClock | None = None


def prepare() -> None:
    """In a zygote, after its imports: load the library and wrap the kernels, so that no worker needs to."""
    try:
        if library.is_wanted():
            _load(build=False)
    except library.Unavailable as reason:
        print(f"ftrain: {reason}", file=sys.stderr)


def start(*, build: bool = False) -> None:
    """Begin, if this is a worker of `ftrain run`; to record, unless that is switched off. Never raises.

    Args:
        build: build the library first if it is not there.
    """
    try:
        environment = read_environment()
        job = environment.job
        if job is None:
            return
        when_imported("multiprocessing.resource_tracker", let_tracker_outlive_its_group)
        when_imported("torch.distributed", lambda: _guarded(lambda: _begin(environment, job, build)))
        if job.recorder:
            when_imported("torch.optim.optimizer", lambda: _guarded(_mark_optimizer_steps))
    except Exception:  # training must go on without it, whatever it is
        traceback.print_exc()


def mark_step(step: int) -> None:
    """Step ``step`` is done."""
    if _recorder is not None:
        _recorder.mark(step)


def note_wait() -> None:
    """The rank has done its step, and waits for rank 0's word until the step is marked, or `note_hold`."""
    mark_step(WAITS)


def note_hold() -> None:
    """It waits for no other rank, but has yet to end its step: memory that its node has to make, what is captured."""
    mark_step(HOLDS)


def take_over_marks() -> None:
    """From now on only `mark_step` marks steps."""
    if _clock is not None:
        _clock.stop()


def _guarded(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:  # as in `start`; this runs within the script's own import statement
        traceback.print_exc()


def _begin(environment: WorkerEnvironment, job: JobEnvironment, build: bool) -> None:
    from ftrain.comm.timeout import inherit_timeout

    inherit_timeout(job.collective_timeout_seconds)
    if not job.recorder:
        return
    atexit.register(_close)
    if job.standby:
        _prepare_standby(build)
    else:
        _record(environment, job, build)


def restart() -> None:
    """This process goes on in another generation, or begins in its first one: it is recorded into a ring of its own."""
    environment = read_environment()
    if environment.job is not None and environment.job.recorder:
        _record(environment, environment.job, build=False)


def _prepare_standby(build: bool) -> None:
    """It has no rank yet, and so no ring."""
    with suppress(library.Unavailable):  # said once it has a place
        _load(build=build)


def _close() -> None:
    if _recorder is not None:
        _recorder.close()


def _record(environment: WorkerEnvironment, job: JobEnvironment, build: bool) -> None:
    global _recorder
    path = ring_path(job.node_dir, environment.local_rank)
    place = (environment.rank, environment.local_rank, environment.world_size, job.generation)
    try:
        _recorder = _open(path, Identity(NATIVE, os.getpid(), *place), build)
    except OSError as error:
        print(f"ftrain: rank {environment.rank} is not recorded: {error}", file=sys.stderr)


def _load(*, build: bool) -> NativeRecorder:
    """The library, its wrappers in place; a fork has it from its zygote."""
    global _native
    if _native is None:
        native = load_native(build=build)
        native.install()
        if _has_devices():
            native.follow_coalescing()
        _native = native
    return _native


def _has_devices() -> bool:
    import torch

    return bool(torch.version.cuda or torch.version.hip)


def _open(path: Path, identity: Identity, build: bool) -> Recorder:
    try:
        native = _load(build=build)
        native.open(path, identity)
        return native
    except library.Unavailable as reason:
        if identity.rank == 0:
            print(f"ftrain: the recorder runs in Python, which costs more: {reason}", file=sys.stderr)
    from ftrain.comm import fallback

    return fallback.install(path, identity)


# ---- steps of scripts without a Context


class OptimizerClock:
    """Marks 0, 1, 2, ... whenever the first optimizer that has stepped steps; of several, one counts."""

    def __init__(self, remove_hook: Callable[[], None]) -> None:
        self._remove_hook = remove_hook
        self._optimizer: weakref.ref[Any] | None = None
        self._steps = 0

    def stepped(self, optimizer: Any) -> None:
        """An optimizer has stepped."""
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is optimizer:
            mark_step(self._steps)
            self._steps += 1

    def stop(self) -> None:
        """Mark no more."""
        self._remove_hook()


def _mark_optimizer_steps() -> None:
    global _clock
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():  # a compiled step must not break at this
            clock.stepped(optimizer)

    clock = _clock = OptimizerClock(register_optimizer_step_post_hook(stepped).remove)


# ---- modules that the script imports later


def when_imported(name: str, action: Callable[[], None]) -> None:
    """Call ``action`` as soon as a module has been imported: now, or at the end of its import."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds one module as everybody else would, and calls an action after it has run."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self._action()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec
