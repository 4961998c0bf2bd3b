"""One ``ftrain run``, started and watched from outside through the commands that an operator has.

The demo and the benchmarks drive jobs with it. They see what an operator sees (``ftrain status``,
``ftrain incidents``) and break things as the world does: SIGKILL to a pid, or ``ftrain inject``.
They are asked in this process, by the commands' own code: an interpreter for each question takes a third of a second
of the cores that the jobs train on, and waits for that as long as thirty where these are busy.
Everything it starts carries MARK in its environment, so that what is left behind can be told (leftovers.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftrain_launcher import query
from ftrain_launcher.commands.show import ask_or_replay
from ftrain_launcher.errors import LauncherError
from ftrain_launcher.jobs import JobFolder

FTRAIN = str(Path(sys.executable).with_name("ftrain"))
MARK = "FTRAIN_SCRIPT_SESSION"
COMMAND_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 30.0
GONE_TIMEOUT_SECONDS = 5.0
POLL_SECONDS = 0.05
_PF_EXITING = 0x4
"""In the kernel's flags of a process (proc(5)): it runs no more of its own code."""

Json = dict[str, Any]


class JobFailed(Exception):
    """A job ended, or did not get where it should in time; carries the end of its output."""


def mark_session() -> str:
    """Mark this process's environment for all that it starts; the mark's value."""
    os.environ[MARK] = uuid.uuid4().hex
    return os.environ[MARK]


class Job:
    """A running job. A context manager: leaving it ends the job, whatever state it is in."""

    def __init__(self, name: str, flags: Sequence[str], script: Path, args: Sequence[str], output: Path) -> None:
        """Start ``ftrain run --name NAME FLAGS SCRIPT ARGS`` with all its output in the file ``output``."""
        self.name, self.output = name, output
        command = [FTRAIN, "run", "--name", name, *flags, str(script), *args]
        with output.open("wb") as sink:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_SECONDS)

    def status(self) -> Json | None:
        """What ``ftrain status --json`` prints; None while the job cannot be found yet."""
        return self._ask(query.status)

    def incidents(self) -> list[Json]:
        """The job's incidents, oldest first."""
        answer = self._ask(lambda folder: ask_or_replay(folder, "incidents"))
        return list(answer["incidents"]) if answer else []

    def kill_node(self, name: str) -> None:
        """As ``ftrain inject kill-node --node NAME``."""
        fault = {"kind": "kill-node", "node": name}
        try:
            query.ask(JobFolder.find(self.name), "/api/inject", fault, COMMAND_TIMEOUT_SECONDS)
        except LauncherError as error:
            raise JobFailed(f"{self.name}: killing {name}: {error}") from error

    def lose_node(self, node: Json) -> float:
        """Kill the node of this status entry, agent, daemon, workers and memory; when it happened, in Unix seconds.

        That is when the first of its processes begins to end, asked each millisecond: the time that asking for
        it takes is none of the fault's. It is gone only when its gigabytes are free.

        Raises:
            JobFailed: some of its processes live on.
        """
        pids = node_pids(node)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.kill_node, node["name"])
            while not any(map(is_ending, pids)) and not asked.done():
                time.sleep(0.001)
            killed_at = time.time()
            asked.result()
        if left := [pid for pid in wait_gone(pids, GONE_TIMEOUT_SECONDS) if not is_ending(pid)]:
            raise JobFailed(f"{node['name']} was to be lost, but {left} of its processes {pids} live")
        return killed_at

    def wait_for(self, what: str, condition: Callable[[Json], bool], timeout_seconds: float) -> Json:
        """Ask for the status until the condition holds; that status.

        Raises:
            JobFailed: the job ended, or the time was up, before it did.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            status = self.status()
            if status is not None and condition(status):
                return status
            if ended:
                raise JobFailed(f"{self.name} ended with {self.process.returncode} before {what}\n{self.story()}")
            time.sleep(POLL_SECONDS)
        raise JobFailed(f"{self.name}: not {what} after {timeout_seconds:.0f} s\n{self.story()}")

    def wait_for_incident(self, after: int, timeout_seconds: float) -> Json:
        """The first incident numbered above ``after``, once it is over: every rank trains again."""
        found: list[Json] = []

        def over(status: Json) -> bool:
            found[:] = [i for i in self.incidents() if i["number"] > after and i["seconds"] is not None]
            return bool(found)

        self.wait_for(f"recovered from incident {after + 1}", over, timeout_seconds)
        return found[0]

    def wait_ended(self, timeout_seconds: float) -> None:
        """Wait for the job's own end.

        Raises:
            JobFailed: it ended with another code than 0, or goes on.
        """
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise JobFailed(f"{self.name} goes on after {timeout_seconds:.0f} s\n{self.story()}") from None
        if code != 0:
            raise JobFailed(f"{self.name} ended with {code}\n{self.story()}")

    def tail(self, lines: int = 25) -> str:
        """The end of the job's output."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])

    def story(self) -> str:
        """What happened to it, incident by incident, and the end of its output."""
        told = [f"incident {i['number']}: {i['kind']}: {i['reason']}" for i in self.incidents()]
        return "\n".join((*told, self.tail()))

    def _ask(self, question: Callable[[JobFolder], Json]) -> Json | None:
        try:
            return question(JobFolder.find(self.name))
        except LauncherError:
            return None


def ranks(status: Json) -> dict[int, Json]:
    """Each rank's entry of the status, with the name of its node as ``node``."""
    return {rank["rank"]: {**rank, "node": node["name"]} for node in status["nodes"] for rank in node["ranks"]}


def node_of(status: Json, rank: int) -> Json:
    """The entry of the node that has this rank."""
    return next(node for node in status["nodes"] if any(entry["rank"] == rank for entry in node["ranks"]))


def node_pids(node: Json) -> list[int]:
    """Agent, daemon and workers of a node's entry."""
    return [node["agent_pid"], node["daemon_pid"], *(rank["pid"] for rank in node["ranks"])]


def all_ranks_at(status: Json, step: int, world_size: int) -> bool:
    """Whether the job runs and every rank has committed ``step``."""
    steps = [rank["step"] for rank in ranks(status).values()]
    return status["state"] == "running" and len(steps) == world_size and all(s is not None and s >= step for s in steps)


def is_running(pid: int) -> bool:
    """Whether the process lives: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def is_ending(pid: int) -> bool:
    """Whether the process was killed, be it still there."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    fields = stat.rsplit(")", 1)[1].split()
    return fields[0] in "ZX" or bool(int(fields[6]) & _PF_EXITING)


def wait_gone(pids: Sequence[int], timeout_seconds: float) -> list[int]:
    """Wait for processes to be gone; those that are not."""
    deadline = time.monotonic() + timeout_seconds
    while (living := [pid for pid in pids if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return living
