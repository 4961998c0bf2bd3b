"""One `ftrain run` over several hosts of a lab: the same command on each, watched and broken from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ready
from jobs import PROGRAMS, TIMEOUT_SECONDS, Job, Outcome
from snapshot_nodes import wait_until
from stages import NodeFolder

from hosts.lab import Lab

PORT = 29400
CONTROLLER_GRACE_SECONDS = 8.0
TIMEOUTS = (
    *("--heartbeat-timeout-seconds", "6"),
    *("--agent-grace-seconds", "2"),
    *("--controller-grace-seconds", str(CONTROLLER_GRACE_SECONDS)),
)
"""Six hosts that start at once on two cores import torch for half a minute, and are silent for seconds on the way; a
daemon whose agent does not come within both graces ends."""
SHORT_SECONDS = 0.5
"""A cut that nobody may notice: TCP sends again 0.6 s after it was first in vain, and the first of these timeouts, an
agent's for the controller, is half of six seconds."""


class HostJob(Job):
    """Its controller runs on host 1. All hosts share a state folder, unless ``own_state``."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        *flags: str,
        program: str = "train.py",
        arguments: tuple[str, ...] = (),
        own_state: bool = False,
    ) -> None:
        Outcome.__init__(self, folder)  # started later, and host by host
        self.out.mkdir(parents=True)
        self.lab, self.flags = lab, flags
        self.name = f"h{os.getpid()}-{time.monotonic_ns() % 10**8}"
        self.script = [str(PROGRAMS / program), "--out", str(self.out), *arguments]
        self.own_state = own_state
        self.launchers: dict[int, ready.Process] = {}

    def home(self, host: int) -> Path:
        """The state folder that a host uses."""
        return self.folder / (f"home-{host}" if self.own_state else "home")

    def log_of(self, host: int) -> Path:
        """What a host's terminal shows."""
        return self.folder / f"terminal-{host}.log"

    def controller_flags(self) -> list[str]:
        """Where the controller runs: the same on all hosts."""
        return ["--controller", f"{self.lab.address(1)}:{PORT}"]

    def start(self, host: int, *flags: str) -> ready.Process:
        """Start the command on a host, as its user would."""
        command = ["run", "--name", self.name, *self.flags, *flags, *self.controller_flags(), *self.script]
        environment = {**os.environ, "FTRAIN_HOME": str(self.home(host))}
        with self.log_of(host).open("ab") as log:
            process = ready.start(command, stdout=log, environment=environment, host=self.lab.init_pid(host))
        self.launchers[host] = process
        if host == 1:
            self.process, self.log = process, self.log_of(1)
        return process

    def start_all(self, *hosts: int, nodes: int) -> None:
        """Start it on these hosts: the first ``nodes`` get the positions in this order, the others are spares."""
        for rank, host in enumerate(hosts[:nodes]):
            self.start(host, "--node-rank", str(rank))
        self.wait_for(lambda s: len(s["nodes"]) >= nodes, "the first hosts")
        for host in hosts[nodes:]:
            self.start(host)

    def status(self) -> dict[str, Any] | None:
        """What the controller last wrote down: its network is not ours."""
        try:
            return json.loads((self.home(1) / "jobs" / self.name / "status.json").read_bytes())
        except OSError:
            return None

    def ask(self, command: str, host: int = 1) -> Any:
        """The JSON of an operators' command that is given on a host."""
        words = [sys.executable, "-m", "ftrain_launcher.cli", command, "--job", self.name, "--json"]
        environment = {**os.environ, "FTRAIN_HOME": str(self.home(host))}
        code, said = self.lab.run(host, words, env=environment)
        return json.loads(said) if code == 0 else None

    def incidents(self) -> list[dict[str, Any]]:
        """The job's incidents, also after its end."""
        from ftrain_launcher.control.journal import replay
        from ftrain_launcher.control.views import incidents

        return incidents(replay(self.home(1) / "jobs" / self.name / "journal.jsonl"))["incidents"]

    def daemon_ports(self) -> list[int]:
        """Where all nodes' daemons listen for each other."""
        from ftrain_launcher.control.journal import replay

        nodes = replay(self.home(1) / "jobs" / self.name / "journal.jsonl").nodes.values()
        return [node.daemon_port for node in nodes if node.daemon_port]

    def folder_on(self, host: int) -> NodeFolder:
        """A look into the node of a host, once there is one: its memory, its daemon, its daemon's log."""
        shared_memory, jobs = self.lab.root(host) / "dev" / "shm", self.home(host) / "jobs"
        found: list[NodeFolder] = []

        def find() -> bool:
            assert self.launchers[host].poll() is None, self.log_of(host).read_text()
            for folder in shared_memory.glob(f"ftrain-{self.name}*/node-*"):
                found.extend(NodeFolder(folder, log) for log in jobs.rglob(f"daemon-{folder.name}.log"))
            return bool(found)

        wait_until(find, TIMEOUT_SECONDS, f"a node on host {host}")
        return found[0]

    def kill_rank(self, rank: int) -> int:
        """SIGKILL a worker from outside; the pid that died, as its host sees it: here that is another process."""

        def place(status: dict[str, Any]) -> tuple[str, int] | None:
            found = [(n["hostname"], r["pid"]) for n in status["nodes"] for r in n["ranks"] if r["rank"] == rank]
            return found[0] if found and found[0][1] else None

        hostname, pid = self.wait_for(place, f"a pid of rank {rank}")
        code, said = self.lab.run(int(hostname.removeprefix("h")), ["kill", "-9", str(pid)])
        assert code == 0, said
        return int(pid)

    def wait_recovered(self, times: int) -> None:
        """Wait until the job has been formed anew so many times, and runs."""
        formed = 1 + times
        self.wait_for(lambda s: s["generation"] == formed and s["state"] == "running", f"recovery {times}")

    def node_on(self, host: int) -> dict[str, Any]:
        """The newest node of a host, in a fresh status."""
        status = self.wait_for(lambda s: s, "a status")
        return [n for n in status["nodes"] if n["hostname"] == f"h{host}"][-1]

    def wait_all(self, *hosts: int, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[int, int]:
        """Wait for the launchers of these hosts (all of them by default) to end; their exit codes."""
        deadline = time.monotonic() + timeout_seconds
        codes = {}
        for host in hosts or tuple(self.launchers):
            try:
                codes[host] = self.launchers[host].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"host {host} did not end\n{self.log_of(host).read_text()}") from None
        return codes

    def close(self) -> None:
        """End what still runs; nothing may be left on any host."""
        self.lab.heal()
        for launcher in self.launchers.values():
            if launcher.poll() is None:
                launcher.terminate()
        try:
            self.wait_all()
        finally:
            left = {host: self.lab.processes(host) for host in self.launchers if self.lab.processes(host)}
            for host in self.launchers:
                self.lab.kill(host)
        assert not left, f"left behind: {left}"
