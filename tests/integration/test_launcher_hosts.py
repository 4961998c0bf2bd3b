"""Several launchers of one job on this machine, as torchrun allows: who may join, who may not, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import free_port

PROGRAM = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
(out / f"rank-{os.environ['RANK']}").write_text(f"{os.environ['MASTER_ADDR']} {os.environ['WORLD_SIZE']} {os.getcwd()}")
while not (out / "end").exists():
    time.sleep(0.02)
"""
WAIT_SECONDS = 180.0
Launch = Callable[..., "Launcher"]


class Launcher:
    """One `ftrain run`."""

    def __init__(self, folder: Path, name: str, flags: tuple[str, ...], script: list[str], cwd: Path | None) -> None:
        self.home = folder / "home"
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", "ftrain_launcher.cli", "run", "--no-zygote", *flags, *script]
        environment = {**os.environ, "FTRAIN_HOME": str(self.home)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=cwd or folder
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        try:
            return self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.said()}") from None

    def wait_said(self, text: str) -> None:
        wait_until(lambda: text in self.said(), lambda: f"{text!r} was not said:\n{self.said()}")

    def refusal(self) -> str:
        """The one line with which it ended."""
        assert self.wait() == 2, self.said()
        (line,) = [line for line in self.said().splitlines() if "error" in line]
        return line


def wait_until(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


@pytest.fixture
def flags() -> tuple[str, ...]:
    """Two hosts, with a port that is free."""
    port = free_port()
    return ("--nnodes", "2", "--controller", f"127.0.0.1:{port}", "--join-timeout-seconds", str(WAIT_SECONDS))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts launchers of one script; they are ended with the test."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    started: list[Launcher] = []

    def start(*flags: str, arguments: tuple[str, ...] = (), cwd: Path | None = None) -> Launcher:
        words = [str(script), str(tmp_path), *arguments]
        started.append(Launcher(tmp_path, f"launcher-{len(started)}", flags, words, cwd))
        return started[-1]

    yield start
    (tmp_path / "end").touch()
    for launcher in started:
        if launcher.process.poll() is None:
            launcher.process.send_signal(signal.SIGTERM)
        launcher.wait()


def test_the_job_runs_over_both_and_each_ends_with_its_code(
    launch: Launch, flags: tuple[str, ...], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    launchers = [launch(*flags), launch(*flags, cwd=elsewhere)]
    files = [tmp_path / "rank-0", tmp_path / "rank-1"]
    wait_until(lambda: all(f.exists() and f.read_text() for f in files), lambda: "".join(x.said() for x in launchers))
    assert {f.read_text().rpartition(" ")[0] for f in files} == {"127.0.0.1 2"}
    assert {f.read_text().rpartition(" ")[2] for f in files} == {str(tmp_path), str(elsewhere)}
    (tmp_path / "end").touch()
    assert [launcher.wait() for launcher in launchers] == [0, 0]
    assert any("whoever reaches that port can join" in launcher.said() for launcher in launchers)
    assert all("training finished" in launcher.said() for launcher in launchers)


def test_one_that_was_asked_for_something_else_is_refused_there(launch: Launch, flags: tuple[str, ...]) -> None:
    lead = launch(*flags, "--name", "mine")
    lead.wait_said("1 to come")
    assert "its arguments must be the same" in launch(*flags, arguments=("--more",)).refusal()
    assert "--nproc-per-node must be the same on all hosts: 2 here, 1" in launch(*flags, "--nproc-per-node=2").refusal()
    assert "--name yours, but the job at this controller is mine" in launch(*flags, "--name", "yours").refusal()
    assert "started without --secret-file" in launch(*flags, "--secret-file", str(secret(lead.log.parent))).refusal()
    assert lead.process.poll() is None


def secret(folder: Path, text: str = "sixteen bytes or more") -> Path:
    path = folder / f"secret-{len(text)}"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_only_those_that_know_the_secret_join(launch: Launch, flags: tuple[str, ...], tmp_path: Path) -> None:
    mine, other = secret(tmp_path), secret(tmp_path, "another one of some length")
    lead = launch(*flags, "--secret-file", str(mine))
    lead.wait_said("1 to come")
    assert (
        "does not know this secret; --secret-file must be the same"
        in launch(*flags, "--secret-file", str(other)).refusal()
    )
    assert "was started with a --secret-file" in launch(*flags).refusal()
    joined = launch(*flags, "--secret-file", str(mine))
    joined.wait_said("joined at")
    assert "warning" not in lead.said()
    (tmp_path / "end").touch()
    assert (lead.wait(), joined.wait()) == (0, 0)
    kept = [path.read_bytes() for path in (tmp_path / "home").rglob("secret")]
    assert len(kept) == 2
    assert len(set(kept)) == 1
    assert mine.read_bytes() not in kept


def test_a_host_waits_for_the_controller_visibly_and_not_for_ever(launch: Launch) -> None:
    """192.0.2.1 is nobody's address (RFC 5737); on this machine nothing can listen there."""
    flags = ("--nnodes", "2", "--controller", "192.0.2.1:29400", "--join-timeout-seconds", "1")
    launcher = launch(*flags)
    assert "no controller at 192.0.2.1:29400 within 1 s (--join-timeout-seconds)" in launcher.refusal()
    assert "waiting for the controller at 192.0.2.1:29400, for up to 1 s" in launcher.said()


def test_something_else_that_listens_there_is_no_controller(launch: Launch) -> None:
    server = [sys.executable, "-c", "import http.server as h; s = h.ThreadingHTTPServer(('127.0.0.1', 0), "]
    server[-1] += "h.SimpleHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()"
    with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            place = f"127.0.0.1:{process.stdout.readline().strip()}"
            assert "is no controller of ftrain's" in launch("--nnodes", "2", "--controller", place).refusal()
        finally:
            process.kill()


def test_the_job_ends_when_hosts_do_not_come(launch: Launch, flags: tuple[str, ...]) -> None:
    lead = launch(*flags, "--join-timeout-seconds", "3")
    assert lead.wait() == 5
    assert "1 of 2 hosts did not come within 3 s (--join-timeout-seconds)" in lead.said()


def test_a_host_that_is_told_to_leave_leaves_alone(launch: Launch, flags: tuple[str, ...], tmp_path: Path) -> None:
    lead, spare = launch(*flags, "--parity", "1"), launch(*flags)
    wait_until(lambda: (tmp_path / "rank-1").exists(), lambda: lead.said() + spare.said())
    leaver = next(x for x in (lead, spare) if "joined at" in x.said())
    leader = next(x for x in (lead, spare) if x is not leaver)
    leaver.process.send_signal(signal.SIGTERM)
    assert leaver.wait() == 143
    assert "this host leaves the job, which goes on" in leaver.said()
    leader.wait_said("waiting for a host: 1 of 2 are missing")
    (tmp_path / "rank-1").unlink()
    launch(*flags)
    wait_until(lambda: (tmp_path / "rank-1").exists(), leader.said)
    (tmp_path / "end").touch()
    assert leader.wait() == 0
