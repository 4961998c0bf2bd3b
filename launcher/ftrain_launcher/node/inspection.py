"""What an agent can see of a worker from outside: its process in /proc, and its Python stack by py-spy.

The stack is evidence for people: a verdict never depends on it. py-spy pauses the process for some milliseconds to
read a stack that holds together, but not one that is stopped already: that one stands still by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path

import psutil

from ftrain_launcher.questions import Finding

_STACK_SECONDS = 2.0
_STACK_CHARACTERS_MAX = 16_000


async def inspect(rank: int, pid: int | None) -> Finding:
    """Look at one worker, for about ``_STACK_SECONDS`` at most."""
    if pid is None:
        return Finding(rank, "gone")
    try:
        process = psutil.Process(pid)
        state, times = process.status(), process.cpu_times()
    except psutil.Error:
        return Finding(rank, "gone")
    words = f"{state}, {times.user + times.system:.1f} s of processor time, pid {pid}"
    stack, failure = await _stack(pid, stopped=state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    return Finding(rank, words, stack, failure)


async def _stack(pid: int, *, stopped: bool) -> tuple[str, str]:
    """The stacks of all Python threads of a process; or why they cannot be had."""
    program = _py_spy()
    if program is None:
        return "", "py-spy is not installed"
    how = ("--nonblocking",) if stopped else ()
    reader = await asyncio.create_subprocess_exec(
        program,
        *("dump", "--pid", str(pid), *how),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_STACK_SECONDS):
            out, error = await reader.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            reader.kill()
        await reader.wait()
        return "", f"py-spy took more than {_STACK_SECONDS:g} s"
    if reader.returncode != 0:
        reason = error.decode(errors="replace").strip().splitlines()
        return "", reason[0] if reason else f"py-spy ended with code {reader.returncode}"
    return out.decode(errors="replace")[:_STACK_CHARACTERS_MAX], ""


def _py_spy() -> str | None:
    """Where it is: beside this interpreter, or on the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")
