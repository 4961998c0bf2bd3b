"""Where jobs are found: one folder a job under the state folder, readable by its owner only.

$FTRAIN_HOME/jobs/NAME/job.json         what the job is (JobRecord)
                       secret           the job's secret, hex
                       controller.json  where its controller listens, and its pid
                       journal.jsonl    the coordinator's events
                       status.json      the last status, for when the controller is away
                       result.json      exit code and message, once the job has ended
                       hosts/HOST-PID/  of a host that joined: its own job.json, secret, controller.json, result.json

The state folder may be shared by all hosts (NFS) or be each host's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import TypeVar

import msgspec

from ftrain_launcher.errors import JobNotFound, RecordDamaged, UsageError
from ftrain_launcher.job.events import JobConfig

_T = TypeVar("_T")


class TlsFiles(msgspec.Struct, frozen=True):
    """Where a host has what its daemon proves itself with; paths in PEM, absolute."""

    certificate: str
    key: str
    authority: str


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
    hostname: str = ""
    """The host whose launcher wrote this; empty: this one."""
    salt: str = ""
    """Made the job's secret from the user's (``--secret-file``)."""
    open: bool = False
    """Hosts may join without knowing a secret: they are told the job's."""
    failure_domains: tuple[str, ...] = ()
    """The labels of this machine's nodes in order of their numbers; empty: none."""
    tls: TlsFiles | None = None
    """This machine's files for TLS between daemons; None: they talk in the clear."""
    candidate: int | None = None
    """Which of ``config.candidates`` this machine is; None: none."""

    @property
    def owner_grace_seconds(self) -> float:
        """How long a node's daemon and zygote wait for an agent that is away before they end by themselves."""
        return self.controller_grace_seconds + self.config.agent_grace_seconds

    def is_here(self) -> bool:
        """Was this written on this host? Else its pids say nothing here."""
        return self.hostname in ("", socket.gethostname())


class Endpoint(msgspec.Struct, frozen=True):
    """Where a job's controller listens."""

    host: str
    port: int
    pid: int | None
    """None: it runs on another host."""


class Result(msgspec.Struct, frozen=True):
    """How a job ended."""

    exit_code: int
    message: str


def state_home() -> Path:
    """The state folder: ``$FTRAIN_HOME``, else ``ftrain`` under the user's state directory.

    Raises:
        UsageError: nothing says where that is.
    """
    chosen = os.environ.get("FTRAIN_HOME")
    if chosen:
        return Path(chosen)
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # a user without a name, in a container
        raise UsageError(
            "this user has no home folder: set FTRAIN_HOME to the folder for what is kept of jobs"
        ) from None
    return Path(base) / "ftrain"


def derive(secret: bytes, label: str) -> str:
    """Another secret, made from this one for one use; hex."""
    return hmac.new(secret, label.encode(), hashlib.sha256).hexdigest()


def job_secret(shared: bytes, salt: str) -> str:
    """One job's secret, from what all hosts know: it is of no use for the next job."""
    return derive(shared, f"ftrain job {salt}")


def line_key(secret: str) -> bytes:
    """The key of the handshake on every line to the controller."""
    return derive(secret.encode(), "ftrain line").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.chmod(temporary, 0o600)
    os.replace(temporary, path)


def _decode(path: Path, of: type[_T]) -> _T:
    """Raises RecordDamaged, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=of)
    except msgspec.DecodeError as error:
        raise RecordDamaged(path, str(error)) from error


class JobFolder:
    """One job's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.jsonl"
        self.secret = path / "secret"

    @classmethod
    def create(cls, record: JobRecord, secret: str | None = None) -> JobFolder:
        """Make the folder of a new job. ``secret``: hex; None: a random one.

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
            shutil.rmtree(folder.path / "hosts", ignore_errors=True)
        folder._write(record, secret or secrets.token_hex(32))
        return folder

    @classmethod
    def place(cls, record: JobRecord) -> JobFolder:
        """Where the folder of a host that joins goes; not made yet."""
        return cls(state_home() / "jobs" / record.name / "hosts" / f"{record.hostname}-{record.launcher_pid}")

    def join(self, record: JobRecord, secret: str, controller: Endpoint) -> None:
        """Make this host's folder of a job whose controller runs on another."""
        self._write(record, secret)
        self.write_endpoint(controller)

    def _write(self, record: JobRecord, secret: str) -> None:
        state_home().mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.mkdir(parents=True, exist_ok=True)
        for private in (*self.path.parents, self.path):
            if state_home() in private.parents:  # not that one itself, if it was there: it may be /tmp
                os.chmod(private, 0o700)
        write_atomically(self.secret, secret.encode())
        write_atomically(self.path / "job.json", msgspec.json.encode(record))

    @classmethod
    def find(cls, name: str | None) -> JobFolder:
        """The folder of a job by name, or of the newest job if none is given.

        Raises:
            JobNotFound: there is none.
        """
        jobs = state_home() / "jobs"
        with contextlib.suppress(OSError):  # no file can have such a name
            if name is not None and (jobs / name / "job.json").exists():
                return cls(jobs / name)
        try:
            found = [cls(p.parent) for p in (*jobs.glob("*/job.json"), *jobs.glob("*/hosts/*/job.json"))]
        except OSError as error:
            raise JobNotFound(f"{jobs}: {error.strerror or error}; set FTRAIN_HOME to another state folder") from error
        if name is not None:
            found = [f for f in found if (record := f._readable()) is not None and record.name == name]
        if not found:
            raise JobNotFound(
                f"no job under {jobs}: start one with 'ftrain run'"
                if name is None
                else f"no job named {name!r} under {jobs}"
            )
        running = [f for f in found if f.is_running()]
        return max(running or found, key=lambda f: f._created())

    def record(self) -> JobRecord:
        """What the job is. Raises RecordDamaged, OSError."""
        return _decode(self.path / "job.json", JobRecord)

    def _readable(self) -> JobRecord | None:
        """What the job is; None: its record is damaged."""
        try:
            return self.record()
        except RecordDamaged:
            return None

    def _created(self) -> float:
        """When; nothing that cannot be read is the newest."""
        record = self._readable()
        return record.created if record is not None else 0.0

    def is_running(self) -> bool:
        """Has it neither ended nor, as far as can be seen from here, lost its launcher?"""
        if (self.path / "result.json").exists() or not (self.path / "job.json").exists():
            return False
        record = self._readable()
        return record is not None and (not record.is_here() or Path(f"/proc/{record.launcher_pid}").exists())

    def has_controller(self) -> bool:
        """Does the job's controller run on this host?"""
        endpoint = self.endpoint()
        return self.record().is_here() and (endpoint is None or endpoint.pid is not None)

    def token(self) -> str:
        """What operators show the controller; made from the secret, which itself is never sent."""
        return derive(self.secret.read_bytes(), "ftrain control")

    def line_key(self) -> bytes:
        """What agents and launchers show that they know, without showing it (`handshake.py`)."""
        return line_key(self.secret.read_text())

    def write_endpoint(self, endpoint: Endpoint) -> None:
        """Say where the controller listens."""
        write_atomically(self.path / "controller.json", msgspec.json.encode(endpoint))

    def endpoint(self) -> Endpoint | None:
        """Where the controller listens, as far as is known. Raises RecordDamaged."""
        try:
            return _decode(self.path / "controller.json", Endpoint)
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
        """How the job ended; None while it runs. Raises RecordDamaged."""
        try:
            return _decode(self.path / "result.json", Result)
        except FileNotFoundError:
            return None
