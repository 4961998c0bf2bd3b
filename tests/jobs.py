"""Real jobs for tests: `ftrain run` (`ready.py`), watched through `ftrain status --json`, broken from outside."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ready
from stages import NodeFolder, stop

PROGRAMS = Path(__file__).parent / "programs"
ARGUMENTS = ("--steps", "120")
"""Of ``train.py``, where it is compared with `undisturbed` jobs."""
TIMEOUT_SECONDS = 180.0
"""Only hangs take so long, whatever else this machine has to do."""
WARNINGS = ("slow", "communication_slow")
"""Incidents that nothing follows from: what the detector may say of a machine on which others work, too."""
_POLL_SECONDS = 0.05
"""A status costs this process and the controller some milliseconds each, of the cores that the job trains on."""


class Outcome:
    """What the ranks of a job wrote down, in its output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"

    def ends(self) -> list[str]:
        """The hash of all that each rank held at its end, in order of rank."""
        return [path.read_text() for path in sorted(self.out.glob("end-*"), key=lambda p: int(p.name[4:]))]

    def steps(self, rank: int) -> dict[int, dict[str, Any]]:
        """What a rank logged of each step; of a step that was run again, the last."""
        lines = (self.out / f"rank-{rank}.jsonl").read_text().splitlines()
        return {entry["step"]: entry for entry in map(json.loads, lines)}


class Job(Outcome):
    """One `ftrain run` with a state folder and an output folder of its own. ``anew``: by a new interpreter."""

    process: ready.Process | subprocess.Popen[bytes]

    def __init__(
        self,
        folder: Path,
        *flags: str,
        program: str = "train.py",
        arguments: tuple[str, ...] = (),
        anew: bool = False,
    ) -> None:
        super().__init__(folder)
        self.out.mkdir(parents=True)
        self.name = f"t{os.getpid()}-{time.monotonic_ns() % 10**10}"
        self.environment = {**os.environ, "FTRAIN_HOME": str(folder / "home")}
        self.log = folder / "terminal.log"
        memory = flags[flags.index("--arena-dir") + 1] if "--arena-dir" in flags else "/dev/shm"
        self.arena = Path(memory) / f"ftrain-{self.name}"
        command = ["run", "--name", self.name, *flags, str(PROGRAMS / program), "--out", str(self.out), *arguments]
        with self.log.open("wb") as log:
            if anew:
                interpreter = [sys.executable, "-m", "ftrain_launcher.cli"]
                self.process = subprocess.Popen(
                    [*interpreter, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment,
                    start_new_session=True,
                )
            else:
                self.process = ready.start(command, stdout=log, environment=self.environment)

    # ---- looking

    def ask(self, command: str) -> Any:
        """The JSON of an operators' command."""
        done = subprocess.run(
            [sys.executable, "-m", "ftrain_launcher.cli", command, "--job", self.name, "--json"],
            capture_output=True,
            env=self.environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            return None
        return json.loads(done.stdout)

    def incidents(self) -> list[dict[str, Any]]:
        """The job's incidents, also after its end."""
        return list(self.ask("incidents")["incidents"])

    def faults(self) -> list[dict[str, Any]]:
        """Its incidents without mere `WARNINGS`."""
        return [found for found in self.incidents() if found["kind"] not in WARNINGS]

    def status(self) -> dict[str, Any] | None:
        """The status, asked in this process: quicker than the command, and the same code."""
        from ftrain_launcher import query
        from ftrain_launcher.errors import LauncherError
        from ftrain_launcher.jobs import JobFolder

        folder = JobFolder(self.folder / "home" / "jobs" / self.name)
        try:
            return query.status(folder)
        except (LauncherError, OSError):
            return None

    def wait_for(
        self, condition: Callable[[dict[str, Any]], Any], what: str, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> Any:
        """Wait until the status fulfils a condition, and return what that returned."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            status = self.status()
            found = condition(status) if status else None
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"the job ended with {self.process.returncode} before {what}\n{self.tail()}")
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"not within {timeout_seconds} s: {what}\n{self.status()}\n{self.tail()}")

    def wait_step(self, step: int, ranks: int | None = None) -> dict[str, Any]:
        """Wait until every rank, and so many of them, has committed a step, and return the status."""

        def reached(status: dict[str, Any]) -> dict[str, Any] | None:
            found = ranks_of(status).values()
            are_there = bool(found) and ranks in (None, len(found))
            done = are_there and all(r["step"] is not None and r["step"] >= step and r["pid"] for r in found)
            return status if done else None

        return self.wait_for(reached, f"step {step}")

    def wait_shown(self, *words: str) -> None:
        """Wait until the terminal has shown each of these: after the status does."""
        self.wait_for(lambda _: all(each in self.log.read_text() for each in words), f"the terminal shows {words}")

    def node(self, name: str) -> NodeFolder:
        """A look into an emulated node."""
        logs = self.folder / "home" / "jobs" / self.name / "logs"
        return NodeFolder(self.arena / name, logs / f"daemon-{name}.log")

    def tail(self, count: int = 60) -> str:
        """The end of what the terminal showed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    # ---- breaking

    def kill_rank(self, rank: int) -> int:
        """SIGKILL a worker from outside; the pid that died."""
        pid = self.wait_for(lambda s: ranks_of(s).get(rank, {}).get("pid"), f"a pid of rank {rank}")
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def kill_nodes(self, *names: str, at_once: Callable[[], None] = lambda: None) -> None:
        """SIGKILL these nodes' agents, daemons and workers, all at once, and take their memory.

        Their launcher stands still until it is done, and ``at_once`` as well: it must not start an agent anew whose
        daemon has yet to die.
        """

        def known(status: dict[str, Any]) -> list[dict[str, Any]] | None:
            nodes = [n for n in status["nodes"] if n["name"] in names and n["agent_pid"] and n["daemon_pid"]]
            return nodes if len(nodes) == len(names) else None

        pids = processes_of(self.wait_for(known, f"the pids of {', '.join(names)}"))
        stop(self.process.pid)
        try:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # a worker, which ends with its agent
                    os.kill(pid, signal.SIGKILL)
            for name in names:
                shutil.rmtree(self.arena / name, ignore_errors=True)
            at_once()
        finally:
            self.process.send_signal(signal.SIGCONT)

    def drain(self, node: str, *words: str) -> subprocess.Popen[bytes]:
        """Begin to drain a node; returns when the ranks are asked to halt. The command waits until it is done."""
        command = [sys.executable, "-m", "ftrain_launcher.cli", "drain", node, *words, "--job", self.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while f"{node} is cordoned" not in self.log.read_text():
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.01)
        return process

    def go(self, step: int) -> None:
        """Let ranks that ``--hold`` this step begin it."""
        (self.out / f"go-{step}").touch()

    def capture(self, *steps: int, ranks: int) -> None:
        """Let ranks that ``--hold`` each of these steps make it, with a snapshot of it."""
        for step in steps:
            self.wait_step(step - 1, ranks)
            self.node("node-0").wait_rest()  # with the gate, as long as it is not lost
            self.go(step)

    # ---- the end

    def wait(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Wait for the job's end; its exit code."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job did not end\n{self.status()}\n{self.tail()}") from None

    def close(self) -> None:
        """End the job if it still runs, and assert that nothing is left of it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert not self.arena.exists(), f"{self.arena} is left"


SomeJob = TypeVar("SomeJob", bound=Job)


class Jobs:
    """The jobs of a test, each in a folder of its own; at the test's end nothing may be left of any of them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._closing = contextlib.ExitStack()

    def start(self, start: Callable[[Path], SomeJob]) -> SomeJob:
        """Have a job started in the next folder."""
        job = start(self._folder / f"job-{self._count}")
        self._count += 1
        self._closing.callback(job.close)
        return job

    def close(self) -> None:
        """Close all, the last one first; also those behind one that fails the test by that."""
        self._closing.close()


def ranks_of(status: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Rank to its entry in a status."""
    return {r["rank"]: r for n in status["nodes"] for r in n["ranks"]}


def pids_of(status: dict[str, Any]) -> list[int]:
    """All processes of a job that its status names."""
    controller = status["controller"]["pid"]
    return [*([controller] if controller else []), *processes_of(status["nodes"])]


def processes_of(nodes: list[dict[str, Any]]) -> list[int]:
    """Agents, daemons and workers of nodes of a status."""
    pids = [pid for n in nodes for pid in (n["agent_pid"], n["daemon_pid"], *(r["pid"] for r in n["ranks"]))]
    return [pid for pid in pids if pid is not None]


def assert_same(job: Job, ends: list[str]) -> None:
    """The job ends well, and all ranks hold what they would without a fault."""
    assert job.wait() == 0, job.tail()
    assert job.ends() == ends


def holding(*steps: int) -> tuple[str, ...]:
    """Arguments of a program in ``programs``: its ranks wait before these steps, until `Job.go`."""
    return ("--hold", *map(str, steps)) if steps else ()


def free_port() -> int:
    """Below those that the system hands out: until the launcher listens there, no other process is given it."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(lowest // 2, lowest), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def exists(pid: int) -> bool:
    """There is such a process, and it is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
