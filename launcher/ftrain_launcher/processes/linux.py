"""The few Linux calls behind "no process is left over", which the standard library lacks.

A worker dies with the process that forked it (``die_with_parent``). What a worker left behind in a session of
its own is handed to the nearest subreaper (``adopt_orphans``), which finds it among its children
(``children_of``) and kills it. FACTS 11a has the measurements behind this choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PF_EXITING = 0x4
_PR_SET_CHILD_SUBREAPER = 36
# Loaded at import: a forked child must not have to load anything before it is safe.
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Be killed when the parent's thread that forked this process ends; end at once if it already did.

    ``number``: the signal; another one leaves a process the time to clear up.
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends. Not inherited by children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """The name that ``ps`` and ``top`` show for this thread; the kernel keeps 15 bytes of it."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def flush_c_output() -> None:
    """Write out what C and C++ code printed: ``os._exit`` does not."""
    _libc.fflush(None)


def thread_count() -> int:
    """Threads of this process, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def children_of(pid: int) -> set[int]:
    """Direct children of a single-threaded process, zombies included; empty if it is gone."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except ProcessLookupError:
        return set()
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or the process is gone
        return {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _parent_of(entry) == pid}


def _parent_of(pid: str) -> int:
    with contextlib.suppress(OSError):
        return int(_stat_of(pid)[1])
    return -1


def _group_of(pid: str) -> int:
    with contextlib.suppress(OSError):
        return int(_stat_of(pid)[2])
    return -1


def _stat_of(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5)). Raises OSError."""
    # The command in parentheses may hold anything, so count fields from its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def has_ended(pid: int) -> bool:
    """Is this process gone, a zombie, or on its way out? (Flag PF_EXITING: its sockets close after it is set.)"""
    try:
        fields = _stat_of(pid)
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def is_stopped(pid: int) -> bool:
    """Did a signal stop this process (SIGSTOP)?"""
    try:
        return _stat_of(pid)[0] == "T"
    except OSError:
        return False


def send_signal(pid: int, number: int) -> None:
    """Signal a process that may be gone already, or may have become another user's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_group(leader: int, spare: Callable[[int], bool] | None = None) -> None:
    """SIGKILL a process and all of its group. The caller is its parent and has not reaped it yet.

    ``spare``: which of its group are to live on; each is looked at then, which takes milliseconds.
    """
    if spare is not None:
        members = {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _group_of(entry) == leader}
        for pid in {leader, *(pid for pid in members if not spare(pid))}:
            send_signal(pid, signal.SIGKILL)
        return
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # so young that it has no session yet, and so no group
        send_signal(leader, signal.SIGKILL)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """No signal is delivered in the body, nor to a child forked there until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def dead_children() -> Iterator[tuple[int, int | None, int | None]]:
    """Reap every child that ended; yields (pid, code, signal) of each *before* it is reaped.

    Until the caller asks for the next one, the pid (and the process group of that number) cannot be reused.
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        exited = found.si_code == os.CLD_EXITED
        yield found.si_pid, found.si_status if exited else None, None if exited else found.si_status
        os.waitpid(found.si_pid, 0)
