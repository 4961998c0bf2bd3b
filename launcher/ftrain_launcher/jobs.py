"""Where jobs are found: one folder a job under the state folder, readable by its owner only.

$FTRAIN_HOME/jobs/NAME/job.json         what the job is (JobRecord)
                       secret           the job's secret, hex
                       controller.json  where its controller listens, and its pid
                       journal.jsonl    the coordinator's events
                       status.json      the last status, for when the controller is away
                       result.json      exit code and message, once the job has ended
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import msgspec

from ftrain_launcher.errors import JobNotFound, UsageError
from ftrain_launcher.events import JobConfig


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is: written once, read by its agents and by operators' commands."""

    name: str
    created: float
    launcher_pid: int
    arena_folder: str
    """The folder that holds one folder a node: shared memory and sockets."""
    config: JobConfig
    host: str = "127.0.0.1"
    """Where this machine's agents, daemons and stores listen."""
    controller_grace_seconds: float = 10.0
    """How long agents and daemons wait for a controller that is away before they end the job themselves."""
    root_zygote: str = ""
    """Socket of a process with torch imported that the zygotes of emulated nodes are forked from; empty: none."""
    controller_host: str = "127.0.0.1"
    controller_port: int = 0
    """Where the controller listens; 0: a port of the system's choice."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where a job's controller listens."""

    host: str
    port: int
    pid: int


class Result(msgspec.Struct, frozen=True):
    """How a job ended."""

    exit_code: int
    message: str


def state_home() -> Path:
    """The state folder: ``$FTRAIN_HOME``, else ``ftrain`` under the user's state directory."""
    chosen = os.environ.get("FTRAIN_HOME")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "ftrain"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.chmod(temporary, 0o600)
    os.replace(temporary, path)


class JobFolder:
    """One job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.jsonl"
        self.secret = path / "secret"

    @classmethod
    def create(cls, record: JobRecord) -> JobFolder:
        """Make the folder of a new job.

        Raises:
            UsageError: a job of that name is running.
        """
        folder = cls(state_home() / "jobs" / record.name)
        if folder.path.exists():
            if folder.is_running():
                raise UsageError(f"a job named {record.name!r} is running: choose another --name")
            for old in folder.path.iterdir():
                if old.is_file():
                    old.unlink()
        for private in (state_home(), folder.path.parent, folder.path):
            private.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(folder.path, 0o700)
        write_atomically(folder.secret, secrets.token_hex(32).encode())
        write_atomically(folder.path / "job.json", msgspec.json.encode(record))
        return folder

    @classmethod
    def find(cls, name: str | None) -> JobFolder:
        """The folder of a job by name, or of the newest job if none is given.

        Raises:
            JobNotFound: there is none.
        """
        jobs = state_home() / "jobs"
        if name is not None:
            if not (jobs / name / "job.json").exists():
                raise JobNotFound(f"no job named {name!r} under {jobs}")
            return cls(jobs / name)
        found = [cls(p.parent) for p in jobs.glob("*/job.json")]
        if not found:
            raise JobNotFound(f"no job under {jobs}: start one with 'ftrain run'")
        running = [f for f in found if f.is_running()]
        return max(running or found, key=lambda f: f.record().created)

    def record(self) -> JobRecord:
        """What the job is."""
        return msgspec.json.decode((self.path / "job.json").read_bytes(), type=JobRecord)

    def is_running(self) -> bool:
        """Has it neither ended nor lost its launcher?"""
        if self.result() is not None or not (self.path / "job.json").exists():
            return False
        return Path(f"/proc/{self.record().launcher_pid}").exists()

    def token(self) -> str:
        """What agents and operators show the controller; made from the secret, which itself is never sent."""
        return hmac.new(self.secret.read_bytes(), b"ftrain control", hashlib.sha256).hexdigest()

    def write_endpoint(self, endpoint: Endpoint) -> None:
        """Say where the controller listens."""
        write_atomically(self.path / "controller.json", msgspec.json.encode(endpoint))

    def endpoint(self) -> Endpoint | None:
        """Where the controller listens, as far as is known."""
        try:
            return msgspec.json.decode((self.path / "controller.json").read_bytes(), type=Endpoint)
        except FileNotFoundError:
            return None

    def write_status(self, status: bytes) -> None:
        """Keep the last status for when the controller is away."""
        write_atomically(self.path / "status.json", status)

    def last_status(self) -> bytes | None:
        """The status that the controller wrote last."""
        try:
            return (self.path / "status.json").read_bytes()
        except FileNotFoundError:
            return None

    def write_result(self, result: Result) -> None:
        """Say how the job ended."""
        write_atomically(self.path / "result.json", msgspec.json.encode(result))

    def result(self) -> Result | None:
        """How the job ended; None while it runs."""
        try:
            return msgspec.json.decode((self.path / "result.json").read_bytes(), type=Result)
        except FileNotFoundError:
            return None
