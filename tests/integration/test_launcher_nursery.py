"""The nursery: what it forks is the launcher's own, as if it had been started anew; nothing depends on its life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import exists
from processes import environment
from snapshot_nodes import wait_until

from ftrain_snapshot.frames import connect_unix

LAUNCHER = """
import os, sys
from pathlib import Path
from ftrain_launcher.processes import linux, nursery

linux.adopt_orphans()
folder = Path(sys.argv[1])
with nursery.opened(folder):
    for word in sys.stdin:
        files = [open(folder / name, "wb") for name in ("out", "err", "own")]
        descriptors = [file.fileno() for file in files]
        pid = nursery.start(folder, "integration.nursery_child", (word.strip(), "b c"), descriptors)
        for file in files:
            file.close()
        _, status = os.waitpid(pid, 0)
        print(pid, os.waitstatus_to_exitcode(status), flush=True)
"""


class Launcher:
    """A process with a nursery."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            stderr=subprocess.PIPE,
        )

    def start(self, code: int) -> tuple[int, dict[str, Any]]:
        """Have a process started that ends with this code; the code that the launcher saw, what the process said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{code}\n")
        self.process.stdin.flush()
        seen = int(self.process.stdout.readline().split()[1])
        return seen, json.loads((self.folder / "own").read_text())

    def nursery(self) -> int:
        """Its pid."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "nursery\n")

    def close(self) -> str:
        """End it; what it and its nursery have said of errors."""
        said = self.process.communicate(timeout=30)[1] if self.process.returncode is None else ""
        return str(said)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[], Launcher]]:
    launchers: list[Launcher] = []

    def new() -> Launcher:
        launchers.append(Launcher(tmp_path))
        return launchers[-1]

    yield new
    for launcher in launchers:
        launcher.close()


def test_what_it_forks_is_the_launchers_child_with_its_own_session_arguments_and_descriptors(
    launch: Callable[[], Launcher], tmp_path: Path
) -> None:
    launcher = launch()
    expected = {
        "parent": launcher.process.pid,
        "leads_its_session": True,
        "stdin": os.devnull,
        "descriptors": 4,
        "threads": 1,
        "new": False,
        "torch": False,
        "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
    }
    for code in (0, 7):
        assert launcher.start(code) == (code, {**expected, "arguments": [str(code), "b c"]})
        assert (tmp_path / "out").read_text() == "out\n"
        assert (tmp_path / "err").read_text() == "err\n"


def test_who_asks_and_dies_before_the_answer_is_no_error(launch: Callable[[], Launcher], tmp_path: Path) -> None:
    launcher = launch()
    launcher.start(0)
    with connect_unix(tmp_path / "nursery.sock", 10):
        pass
    assert launcher.start(3)[0] == 3
    assert launcher.close() == ""


def test_without_one_a_new_interpreter_is_started(launch: Callable[[], Launcher]) -> None:
    launcher = launch()
    launcher.start(0)
    nursery = launcher.nursery()
    os.kill(nursery, signal.SIGKILL)
    wait_until(lambda: not exists(nursery), 10, "the nursery's death")
    code, own = launcher.start(5)
    assert (code, own["parent"], own["new"]) == (5, launcher.process.pid, True)
    assert (own["leads_its_session"], own["descriptors"], own["arguments"]) == (True, 4, ["5", "b c"])


def test_it_ends_with_the_launcher_and_takes_its_socket_along(launch: Callable[[], Launcher], tmp_path: Path) -> None:
    launcher = launch()
    launcher.start(0)
    nursery = launcher.nursery()
    launcher.process.kill()
    wait_until(lambda: not exists(nursery), 10, "the nursery's end")
    assert not (tmp_path / "nursery.sock").exists()
