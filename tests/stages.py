"""What a node's arena, daemon and daemon's log say at this moment: for tests that break something at a stage.

All of it is asked of the node itself, past the controller, whose status is half a second old.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshot_nodes import wait_until

from ftrain_launcher.node.state import NodeFile
from ftrain_snapshot import arena
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.manifest import CHUNK_BYTES, State
from ftrain_snapshot.messages import VerifyReport
from ftrain_snapshot.status import Levels

WAIT_SECONDS = 180.0
ASK_SECONDS = 0.01
"""How often a daemon is asked: it takes part of a millisecond of one that has better to do."""


class NodeFolder:
    """One node of a running job, of one lane, by its folder in shared memory."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self._log = log
        self._seen = False

    @property
    def log(self) -> str:
        """What its daemons have logged."""
        return self._log.read_text() if self._log.exists() else ""

    def wait_logged(self, words: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until its daemon has logged these words."""
        wait_until(lambda: words in self.log, seconds, f"{words!r} in {self._log.name}")

    @property
    def daemon_pid(self) -> int:
        """The daemon's pid, as the node sees it; 0: none is up."""
        record = NodeFile(self.folder).read()
        return (record.daemon_pid or 0) if record is not None else 0

    def levels(self) -> Levels:
        """The job's levels, if the gate is here and its daemon answers."""
        self._seen = self._seen or self.folder.exists()
        assert self.folder.exists() or not self._seen, f"{self.folder.name} is gone"
        try:
            with DaemonClient(self.folder, role="agent") as client:
                return client.status().levels
        except (SnapshotError, TimeoutError):
            return Levels()

    def wait_protected(self, version: int, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the gate, which must be here, has this version or a newer one protected."""

        def protected() -> bool:
            found = self.levels().protected
            return found is not None and found >= version

        wait_until(protected, seconds, f"version {version} protected", every_seconds=ASK_SECONDS)

    def wait_sealed(self, version: int, seconds: float = WAIT_SECONDS) -> Levels:
        """Wait until the gate, which must be here, has this version sealed; the levels then."""
        found = [Levels()]

        def sealed() -> bool:
            found[0] = self.levels()
            return found[0].sealed == version

        wait_until(sealed, seconds, f"version {version} sealed", every_seconds=ASK_SECONDS)
        return found[0]

    def wait_gate_open(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the gate, which must be here, lets the next snapshot in."""
        page = ControlPage(self.folder)
        wait_until(lambda: page.gate()[1] >= 0, seconds, "an open gate")
        page.close()

    def wait_rest(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the worker, which must wait, will be let in by the gate, which must be here.

        A gate that looks open may be one that it has gone through, if the daemon has yet to hear of that: then the
        slot is that of the newest capture.
        """
        page = ControlPage(self.folder)

        def at_rest() -> bool:
            with self.regions() as regions:
                captured, slot = max((_version(region.header()), region.slot) for region in regions)
            return page.gate()[1] not in (-1, slot if captured >= 0 else -1)

        wait_until(at_rest, seconds, "a gate that is open for the next snapshot", every_seconds=ASK_SECONDS)
        page.close()

    def verify(self) -> VerifyReport:
        """Have its daemon read all that it keeps."""
        with DaemonClient(self.folder, role="agent") as client:
            return client.verify()

    @contextmanager
    def regions(self) -> Iterator[list[Region]]:
        """Its lane's slots."""
        lane = Lane(self.folder, 0)
        try:
            yield lane.regions
        finally:
            lane.close()

    def is_capturing(self, region: Region) -> bool:
        """A worker has begun to write this region, and not ended."""
        state, header = region.header()
        return state is State.WRITING and header is not None and region.published < header.chunks

    def flip(self, version: int, chunk: int) -> None:
        """Flip a bit of a sealed version's chunk, where it lies."""
        with self.regions() as regions:
            (region,) = (r for r in regions if (found := r.header())[0] is State.SEALED and _version(found) == version)
            path = arena.home_path(self.folder, region.home(chunk), 0)
        with path.open("r+b") as file:
            file.seek(chunk * CHUNK_BYTES + 123)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0x40]))

    def parity_has_begun(self) -> bool:
        """Parity of a job's first snapshot has come: until then all of it is zeros."""
        return any(b.strip(b"\0") for path in self.folder.glob("slot*.parity*") for b in [path.read_bytes()[:4096]])


@contextmanager
def held_back(pid: int) -> Iterator[None]:
    """Let a process share this one's core, so that it does not get far between two looks at what it does.

    Elsewhere it might run on while this one waits for its turn; here it waits, too. It is to be killed meanwhile.
    """
    cores = os.sched_getaffinity(0)
    core = {min(cores)}
    os.sched_setaffinity(pid, core)
    os.sched_setaffinity(0, core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def stop(pid: int) -> None:
    """SIGSTOP, and wait until it stands still."""
    assert pid > 0, "there is no such process"  # 0: all of this group, this process among them
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] in "TZ", WAIT_SECONDS, f"{pid} to stand still")


def _version(found) -> int:
    return found[1].snapshot.version if found[1] is not None else -1
