"""`ftrain run --engine ray` where there is no cluster: one line, soon. And the guard, which clears up after others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import exists
from needs import require_ray
from snapshot_nodes import wait_until

WAIT_SECONDS = 120.0
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
os.makedirs(sys.argv[1].replace("PID", str(os.getpid())))
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
"""Like a launcher that hangs: its child is in a session of its own, and it has a folder in shared memory."""
POLITE = STUBBORN.replace("signal.SIG_IGN", "lambda *_: sys.exit(7)")


def refusal(address: str) -> str:
    command = [sys.executable, "-m", "ftrain_launcher", "run", "--engine", "ray", "--nnodes", "2"]
    done = subprocess.run(
        [*command, "--ray-address", address, __file__],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_where_nothing_listens_there_is_no_cluster() -> None:
    require_ray()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        assert "nothing answers there (Connection refused)" in refusal(f"127.0.0.1:{reserved.getsockname()[1]}")


def test_what_is_no_cluster_is_told_from_one() -> None:
    require_ray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(b"HTTP/1.0 400 Bad Request\\r\\n\\r\\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert "what answers there is no Ray cluster" in refusal(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


class Guarded:
    """A program under a guard, as an actor has it."""

    def __init__(self, program: str, arena: Path) -> None:
        self.arena = arena
        command = [sys.executable, "-P", "-m", "ftrain_launcher.engines.ray.guard", str(arena)]
        words = [*command, sys.executable, "-c", program, str(arena)]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # as Ray does
        self.guard = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        assert self.guard.stdin is not None
        assert self.guard.stdout is not None
        self.line, self.output = self.guard.stdin, self.guard.stdout
        self.pid, self.child = map(int, self.output.readline().split())

    def wait_nothing_left(self) -> None:
        wait_until(lambda: not exists(self.pid) and not exists(self.child), WAIT_SECONDS, "the end of all")

    @property
    def folder(self) -> Path:
        return Path(str(self.arena).replace("PID", str(self.pid)))


@pytest.fixture
def guarded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Guarded]:
    found = Guarded(request.param, tmp_path / "ftrain-job-PID")
    assert found.folder.exists()
    yield found
    for pid in (found.guard.pid, found.pid, found.child):
        if exists(pid):
            os.kill(pid, signal.SIGKILL)
    found.guard.wait()
    found.line.close()
    found.output.close()


@pytest.mark.parametrize("guarded", [POLITE], indirect=True)
def test_when_the_actor_is_gone_the_launcher_leaves_and_nothing_is_left(guarded: Guarded) -> None:
    guarded.line.close()
    assert guarded.guard.wait(WAIT_SECONDS) == 7
    guarded.wait_nothing_left()
    assert not guarded.folder.exists()


@pytest.mark.parametrize("guarded", [STUBBORN], indirect=True)
def test_a_launcher_that_does_not_leave_is_killed_with_all_that_it_started(guarded: Guarded) -> None:
    guarded.line.close()
    assert guarded.guard.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    guarded.wait_nothing_left()
    assert not guarded.folder.exists()


@pytest.mark.parametrize("guarded", [STUBBORN], indirect=True)
def test_what_a_killed_launcher_leaves_is_cleared_away(guarded: Guarded) -> None:
    os.kill(guarded.pid, signal.SIGKILL)
    assert guarded.guard.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    guarded.wait_nothing_left()
    assert not guarded.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("guarded", [STUBBORN], indirect=True)
def test_a_signal_for_the_job_comes_by_the_line(guarded: Guarded, number: signal.Signals) -> None:
    guarded.line.write(bytes([number]))
    guarded.line.flush()
    assert guarded.guard.wait(WAIT_SECONDS) in (128 + number, 1)  # python's own way to end at SIGINT


@pytest.mark.parametrize("guarded", [POLITE], indirect=True)
def test_a_killed_guard_takes_its_launcher_along(guarded: Guarded) -> None:
    os.kill(guarded.guard.pid, signal.SIGKILL)
    wait_until(lambda: not exists(guarded.pid), WAIT_SECONDS, "the launcher's end")
