"""How the training function ended, told to the agent once.

An exception is reported with its traceback and the process ends with code 1, without printing it: the agent does.
An error of communication is most likely a consequence of a fault elsewhere (gloo's errors are plain RuntimeErrors,
FACTS 6: only the text tells), so the rank says so and waits a moment for the agent to decide. Code of its own that
a script ends with passes through; being asked to stop is no failure.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch.distributed as dist

from ftrain.errors import BatchTooSmall, LossNotFinite, MeshImpossible, PeerSilent, StateUndescribed
from ftrain.link import COMMUNICATION, Failed, Misfit

FATE_TIMEOUT_SECONDS = 10.0
"""How long a rank with a broken connection waits for the agent to end it."""
TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT
TRACEBACK_CHARACTERS_MAX = 200_000


def is_communication_error(error: BaseException) -> bool:
    """It looks like a lost peer: an error of torch.distributed, gloo, nccl or the store, or caused by one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PeerSilent | dist.DistError):
            return True
        if type(seen) is RuntimeError and COMMUNICATION.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


def describe_failure(error: BaseException, step: int | None) -> Failed:
    """The report of an exception."""
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.").removeprefix("__main__.")
    first_line = (_text_of(error).strip().splitlines() or [""])[0]
    is_explained = isinstance(error, StateUndescribed)  # by its line; the script has no place where it is wrong
    text = "" if is_explained else "".join(traceback.format_exception(error))
    return Failed(
        step=step,
        error=f"{name}: {first_line}" if first_line else name,
        traceback=text[-TRACEBACK_CHARACTERS_MAX:],
        communication=is_communication_error(error),
        not_finite=isinstance(error, LossNotFinite),
        newest_version=error.version if isinstance(error, LossNotFinite) else None,
        misfit=_misfit_of(error),
    )


def _misfit_of(error: BaseException) -> Misfit | None:
    match error:
        case MeshImpossible():
            return Misfit(error.fixed, error.is_free, error.needs)
        case BatchTooSmall():
            return Misfit(error.ranks_max, False, error.needs, at_most=True)
    return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own class may fail in any way, and its report must not be lost for that
        return ""


def exit_code_of(stop: SystemExit) -> int:
    """The code that python would end the process with."""
    if stop.code is None:
        return 0
    return stop.code if isinstance(stop.code, int) else 1


def await_fate(failed: Failed, wait_asked: Callable[[float], bool] | None = None) -> bool:
    """Give the agent time to end this process, where the cause is likely elsewhere; or to have it leave.

    ``wait_asked`` waits until this process is asked to leave its generation; returns whether it was.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if not failed.communication:
        return False
    if wait_asked is not None:
        return wait_asked(FATE_TIMEOUT_SECONDS)
    time.sleep(FATE_TIMEOUT_SECONDS)  # most often this process is killed meanwhile: there is nothing else to wait for
    return False


@contextmanager
def orderly_termination() -> Iterator[None]:
    """SIGTERM raises SystemExit in the training function, unless the script has a handler of its own."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
