"""What an agent sees of a worker from outside: running, stopped, gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from ftrain_launcher.node.inspection import inspect

PROGRAM = """
def looping_for_ever():
    print("up", flush=True)
    while True:
        pass

looping_for_ever()
"""


@pytest.fixture
def looping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_the_stack_of_a_process_is_told_whether_it_runs_or_is_stopped(looping: subprocess.Popen[bytes]) -> None:
    running = asyncio.run(inspect(3, looping.pid))
    assert running.rank == 3
    assert f"pid {looping.pid}" in running.process
    assert "looping_for_ever" in running.stack, running.no_stack

    looping.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, looping.pid, os.WSTOPPED)
    assert psutil.Process(looping.pid).status() == psutil.STATUS_STOPPED
    stopped = asyncio.run(inspect(3, looping.pid))
    assert stopped.process.startswith("stopped")
    assert "looping_for_ever" in stopped.stack, stopped.no_stack


def test_a_process_that_is_gone_is_said_to_be(looping: subprocess.Popen[bytes]) -> None:
    looping.kill()
    looping.wait()
    assert asyncio.run(inspect(3, looping.pid)).process == "gone"
    assert asyncio.run(inspect(3, None)).process == "gone"
