"""What can go wrong in the launcher.

LauncherError
├── UsageError           bad input: one line, exit code 2
├── JobNotFound          no such job, or it does not answer
├── ControllerAway       the controller does not answer just now
│   └── JobHasEnded      ... nor ever again: exit code 2
├── JoinRefused          the job does not want this host, or is not to be found: one line, exit code 2
├── SecretRefused        controller and caller do not know the same secret
├── RecordDamaged        a file of a job's folder cannot be read: exit code 2
├── JournalDamaged       a journal cannot be replayed
├── ZygoteFailed         the process that starts workers does not start, or does not answer
├── SpawnFailed          the zygote could not start a worker
├── NotBound             no processors for a worker near its GPU
└── WorkersWillNotDie    killed processes are still there
"""

from __future__ import annotations

from pathlib import Path


class LauncherError(Exception):
    """Base of all errors of the launcher; its text is one line that says what to do."""


class UsageError(LauncherError):
    """The user's input cannot be used: what, where, and what to do."""


class JobNotFound(LauncherError):
    """No job of that name is known here."""


class ControllerAway(LauncherError):
    """The job's controller does not answer just now; it may be on its way back."""


class JobHasEnded(ControllerAway):
    """The job is over, so nobody answers any more."""


class JoinRefused(LauncherError):
    """This host cannot take part in the job: why."""


class SecretRefused(LauncherError):
    """Controller and caller do not know the same secret."""


class RecordDamaged(LauncherError):
    """A file of a job's folder cannot be read: cut off when its disk failed, or another version of ftrain's."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; it is damaged, or of another version of ftrain: remove {path.parent}")


class JournalDamaged(LauncherError):
    """A journal cannot be replayed: the job cannot be resumed from it."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}; the job cannot be resumed from this journal")
        self.path, self.line = path, line


class ZygoteFailed(LauncherError):
    """The process that starts this node's workers did not start, or does not answer."""


class SpawnFailed(LauncherError):
    """The zygote could not start a worker: why."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(f"worker {id} was not started: {reason}")
        self.id = id


class NotBound(LauncherError):
    """A worker cannot be bound to the processors near its GPU: why."""


class WorkersWillNotDie(LauncherError):
    """Processes are still there after SIGKILL: they wait in the kernel, most often for a file system or a GPU."""

    def __init__(self, pids: dict[str, int], waited_seconds: float) -> None:
        names = ", ".join(f"{id} (pid {pid})" for id, pid in pids.items())
        super().__init__(f"still there {waited_seconds:.1f} s after SIGKILL: {names}; look at /proc/PID/stack")
        self.pids = pids
