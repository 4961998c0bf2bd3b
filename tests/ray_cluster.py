"""A Ray cluster on hosts of a lab, and jobs that `ftrain run --engine ray` starts there.

Host 1 has the head, which runs no node of a job: its loss is the cluster's. Each of the others has room for one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts import Lab
from hosts.job import TIMEOUTS, HostJob
from snapshot_nodes import wait_until

PORT = 6379
HEAD = 1
_RECONNECT_SECONDS = 30
"""How long Ray's processes wait for a store that is lost, before they end (by default a minute)."""
START_SECONDS = 180.0
_STARTS_MAX = 5
_STORE_BYTES = 80_000_000
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_SECONDS),
}


class RayCluster:
    """A lab and Ray's processes on its hosts; they end with it."""

    def __init__(self, hosts: int, folder: Path) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # short: unix sockets live in it
        self.lab = Lab(hosts, private=[str(self._temporary)])
        self.folder, self.home = folder, folder / "home"
        self.private = self._temporary
        """A folder of which each host has an empty one of its own."""
        (folder / "user").mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **_SETTINGS,
            "HOME": str(folder / "user"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "FTRAIN_HOME": str(self.home),
        }
        self.hosts: list[int] = []
        """Those that have room for a node."""

    def __enter__(self) -> RayCluster:
        self.lab.__enter__()
        try:
            head = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
            self._start(HEAD, *head, f"--temp-dir={self._temporary}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.lab.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def address(self) -> str:
        """Where the head is."""
        return f"{self.lab.address(HEAD)}:{PORT}"

    def add(self, *hosts: int) -> None:
        """Let these hosts join the cluster."""
        for host in hosts:
            self._start(host, f"--address={self.address}", "--num-cpus=1")
            self.hosts.append(host)

    def have(self, *hosts: int) -> None:
        """Make it a cluster of these hosts, whatever a test before left."""
        for host in set(self.hosts) - set(hosts):
            self.remove(host)
        self.add(*sorted(set(hosts) - set(self.hosts)))

    def remove(self, host: int) -> None:
        """All that runs on a host is killed."""
        self.lab.kill(host)
        self._forget(host)

    def crash(self, host: int) -> None:
        """Power loss."""
        self.lab.crash(host)
        self._forget(host)

    def _forget(self, host: int) -> None:
        """With the power its memory is gone, which a host of a lab keeps."""
        self.hosts.remove(host)
        for folder in (self.lab.root(host) / "dev" / "shm").glob("ftrain-*"):
            shutil.rmtree(folder)

    def kill_store(self) -> None:
        """SIGKILL the head's store of what the cluster is, and nothing else."""
        (pid,) = (pid for pid, command in self.lab.processes(HEAD).items() if "gcs_server" in command.split(" ")[0])
        assert self.lab.run(HEAD, ["kill", "-9", str(pid)])[0] == 0

    def of_ftrain(self) -> dict[int, list[str]]:
        """What runs on the hosts for jobs, and what lies in their shared memory."""
        found = {}
        for host in (HEAD, *self.hosts):
            left = [c for c in self.lab.processes(host).values() if any(word in c for word in _OURS)]
            left += [str(path.name) for path in (self.lab.root(host) / "dev" / "shm").glob("ftrain-*")]
            if left:
                found[host] = left
        return found

    def wait_clean(self, seconds: float = 60.0) -> None:
        """Wait until nothing of any job is left."""
        deadline = time.monotonic() + seconds
        while left := self.of_ftrain():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)

    def _start(self, host: int, *words: str) -> None:
        """Ray gives itself 30 s for that, which a busy machine may need more than once."""
        self.lab.heal(host)
        command = [str(Path(sys.executable).with_name("ray")), "start", *words]
        command += [f"--node-ip-address={self.lab.address(host)}", f"--object-store-memory={_STORE_BYTES}"]
        code, said = 1, ""
        for _ in range(_STARTS_MAX):
            # Not through a pipe: the raylet keeps it open.
            with (self.folder / f"start-{host}.log").open("w+b") as log:
                process = self.lab.popen(
                    host,
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment,
                    start_new_session=True,
                )
                code = process.wait(START_SECONDS)
                log.seek(0)
                said = log.read().decode(errors="replace")
            if code == 0:
                return
            self.lab.kill(host)
        raise AssertionError(f"ray start on host {host} ended with {code}:\n{said}")


_OURS = ("ftrain_launcher", "ftrain_snapshot", "ftrain.health", "ray::Supervisor", "ray::Member")


class RayJob(HostJob):
    """One command, on the head's host; what it runs is wherever Ray says."""

    def __init__(
        self,
        cluster: RayCluster,
        folder: Path,
        *flags: str,
        program: str = "train.py",
        arguments: tuple[str, ...] = (),
        words: Sequence[str] = (),
    ) -> None:
        """``words``: a python program that starts it; it gets the address, the name, and the script with its words."""
        super().__init__(cluster.lab, folder, *flags, *TIMEOUTS, program=program, arguments=arguments)
        self.cluster, self._words = cluster, words
        self.drive()

    def home(self, host: int) -> Path:
        """All hosts share it: Ray's processes have one environment."""
        return self.cluster.home

    def drive(self) -> None:
        """Start the command, or give it once more."""
        command = ["-m", "ftrain_launcher.cli", "run", "--engine", "ray", "--name", self.name]
        command += ["--ray-address", self.cluster.address, *self.flags, *self.script]
        if self._words:
            command = [*self._words, self.cluster.address, self.name, *self.script]
        self.log = self.log_of(HEAD)
        with self.log.open("ab") as log:
            self.process = self.launchers[HEAD] = self.lab.popen(
                HEAD,
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.cluster.environment,
                start_new_session=True,
            )

    def ask(self, command: str, host: int = HEAD) -> Any:
        """The JSON of an operators' command."""
        return super().ask(command, host)

    def host_of(self, position: int) -> int:
        """The number of the host that has a position."""
        status = self.wait_for(lambda s: s, "a status")
        (name,) = (n["hostname"] for n in status["nodes"] if n["position"] == position and n["state"] != "lost")
        return int(name.removeprefix("h"))

    def wait_ended(self, seconds: float) -> int:
        """The command's exit code."""
        wait_until(lambda: self.process.poll() is not None, seconds, f"the end of the job\n{self.tail()}")
        code: int = self.process.returncode
        return code

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            self.wait_ended(START_SECONDS)
