"""The recorder's library, loaded by ctypes: what Python may ask of ``cpp/recorder.cpp``.

It takes torch's symbols from the process, so torch must have been imported before.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from ftrain.comm import library
from ftrain.comm.ring import NATIVE, Identity, create_ring


class NativeRecorder:
    """The loaded library; there is one of it in a process."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._functions = functions
        functions.ftrain_recorder_mark.argtypes = [ctypes.c_int64]
        functions.ftrain_recorder_simulate_device.argtypes = [ctypes.c_int]
        functions.ftrain_recorder_freeze_device.argtypes = [ctypes.c_int]

    def install(self) -> None:
        """Wrap torch's kernels: no thread, no file, nothing recorded yet. Raises Unavailable."""
        if self._functions.ftrain_recorder_install() == 0:
            raise library.Unavailable("torch's operators cannot be wrapped")

    def uninstall(self) -> None:
        """Put the bare kernels back; only while no operation is under way."""
        self._functions.ftrain_recorder_uninstall()

    def open(self, path: Path, identity: Identity) -> None:
        """Record into a fresh ring from now on. Raises OSError."""
        fd = create_ring(path, identity._replace(kind=NATIVE))
        try:
            error = self._functions.ftrain_recorder_open(fd)
        finally:
            os.close(fd)
        if error != 0:
            path.unlink(missing_ok=True)
            raise OSError(error, os.strerror(error), str(path))

    def mark(self, step: int) -> None:
        """Step ``step`` is done."""
        self._functions.ftrain_recorder_mark(step)

    def close(self) -> None:
        """The process ends in good order."""
        self._functions.ftrain_recorder_close()

    def follow_coalescing(self) -> None:
        """See the ends of calls in a group of calls (`batch_isend_irecv` on NCCL): it is closed past torch's operators.

        Only its end gives a work, for all of them. Whatever goes wrong here, the work is given as it is.
        """
        from torch.distributed import ProcessGroup

        begin, end = ProcessGroup._start_coalescing, ProcessGroup._end_coalescing
        if getattr(end, "is_followed", False):
            return

        def followed_begin(group: Any, *args: Any) -> None:
            begin(group, *args)
            self._functions.ftrain_recorder_begin_coalescing()

        def followed_end(group: Any, *args: Any) -> Any:
            work = None
            try:
                work = end(group, *args)
                return work if work is None else _followed(work)
            finally:
                self._functions.ftrain_recorder_end_coalescing()

        followed_end.is_followed = True  # type: ignore[attr-defined]
        ProcessGroup._start_coalescing = followed_begin  # type: ignore[method-assign, assignment]
        ProcessGroup._end_coalescing = followed_end  # type: ignore[method-assign, assignment]

    def simulate_device(self, on: bool) -> None:
        """For tests: treat all operations as if a device did them, one after the other."""
        self._functions.ftrain_recorder_simulate_device(on)

    def freeze_device(self, on: bool) -> None:
        """The simulated device does nothing from now on; or does again."""
        self._functions.ftrain_recorder_freeze_device(on)


def _followed(work: Any) -> Any:
    import torch

    try:
        return torch.distributed.Work.unbox(torch.ops.ftrain.end_coalescing(work.boxed()))
    except Exception:  # the user's operation must go on, whatever was wrong with ours
        return work


def load_native(*, build: bool) -> NativeRecorder:
    """Load the library.

    Args:
        build: build it first if it is not there, which takes a while.

    Raises:
        Unavailable: it is not there, cannot be built, or does not fit.
    """
    path = library.ensure() if build else library.cached()
    try:
        return NativeRecorder(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise library.Unavailable(f"{path} cannot be loaded: {error}") from error
