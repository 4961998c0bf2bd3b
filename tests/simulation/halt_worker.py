"""The ranks of test_halt.py: their commit is the real one; each look at what they share lets others run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from simulation.interleaving import Stage

from ftrain.halt import Halt
from ftrain.link import Halted
from ftrain.session import Session
from ftrain.slots import SlotChooser
from ftrain_snapshot.control import ControlPage, HaltMode
from ftrain_snapshot.words import SnapshotId

if TYPE_CHECKING:
    from simulation.halt_job import Job

STEPS = 40
SEEN_SECONDS = 4e-4
"""Within this, what was written is seen by the others."""


class Page:
    """A node's control page, through a processor's store buffer; each look lets others run."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job, self._page = job, ControlPage(folder, create=True)
        self._buffers: dict[str, list[tuple[float, Callable[[], None]]]] = defaultdict(list)
        """Of each processor: what it has written, and when that is seen."""

    def _write(self, writer: str, do: Callable[[], None]) -> None:
        buffer = self._buffers[writer]
        seen = self._job.stage.now + self._job.dice.uniform(0.0, SEEN_SECONDS)
        buffer.append((max(seen, buffer[-1][0]) if buffer else seen, do))
        self._job.stage.switch()

    def _read(self, look: Callable[[], Any]) -> Any:
        self._job.stage.switch()
        for buffer in self._buffers.values():
            while buffer and buffer[0][0] <= self._job.stage.now:
                buffer.pop(0)[1]()
        return look()

    def arrive(self, lane: int, step: int) -> None:
        self._write(f"lane {lane}", lambda: self._page.arrive(lane, step))

    def arrived(self, lane: int) -> int:
        return self._read(lambda: self._page.arrived(lane))

    def halt(self) -> tuple[HaltMode, int]:
        return self._read(self._page.halt)

    def set_halt(self, mode: HaltMode, step: int | None = None) -> None:
        self._write("agent", lambda: self._page.set_halt(mode, step))

    def set_progress(self, lane: int, step: int) -> None:
        pass

    def close(self) -> None:
        self._page.close()


class Store(dict):
    """The generation's store."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def set(self, key: str, value: str) -> None:
        self._stage.switch()
        self[key] = value.encode()

    def get(self, key: str) -> bytes:
        self._stage.switch()
        return self[key]

    def check(self, keys: list[str]) -> bool:
        self._stage.switch()
        return all(key in self for key in keys)

    def add(self, key: str, amount: int) -> int:
        raise AssertionError("all ranks are laid out alike")


class Worker(Session):
    """A rank's real commit; what it captures is written down."""

    def __init__(self, job: Job, rank: int) -> None:
        self._job, self._rank, self._lane = job, rank, rank % job.lanes
        self._control = job.pages[rank // job.lanes]
        self._slots = SlotChooser(job.store, job if rank == 0 else None)
        self._halt = Halt(self._control, self._lane, self._say, clock=job.stage.clock, pause=job.stage.pause)
        self._capturer: Any = self
        self._arena: Any = SimpleNamespace(
            fits=lambda size: True, ready=lambda _: True, hurry=lambda: None, lane=None, client=self
        )
        self._link: Any = SimpleNamespace(send=lambda message: None)
        self._replicas: Any = SimpleNamespace(due=lambda step: False)
        self._buckets, self._begun, self._stepped, self._layouts = {}, True, False, None
        self.newest: SnapshotId | None = None
        self.executed: list[int] = []
        self.captured: dict[int, int] = {}
        self.ended = False

    def _say(self, message: Halted) -> None:
        self._job.tell(self._rank // self._job.lanes, self._rank, message)

    # what a capturer and a daemon do

    def _collect(self, step: int) -> Any:
        return SimpleNamespace(data_bytes=0, plan=SimpleNamespace(digest=7, logical=b"")), b""

    def is_settled(self) -> bool:
        return True

    def finish(self) -> None:
        pass

    def begin(self, snapshot: SnapshotId | None = None, *_: object) -> None:
        if snapshot is not None:
            self.newest = snapshot
            self.captured[snapshot.version] = snapshot.slot
            self._job.seal(snapshot)

    def skip(self, snapshot: SnapshotId) -> None:
        self._job.give_up(snapshot)

    def skipped(self, version: int) -> None:
        pass

    # training

    def train(self) -> None:
        job, dice = self._job, self._job.dice
        for step in range(STEPS):
            if step % job.accumulate == 0:
                job.meet(step)
            job.stage.pause(dice.uniform(0.0, 2.0 * job.step_seconds))
            if (self._rank, step) == job.evaluates:
                job.stage.pause(job.evaluation_seconds)
            self.executed.append(step)
            sound = (self._rank, step) not in job.unsound
            self.commit(step, due=(step + 1) % job.every == 0, last=step == STEPS - 1, sound=sound)
        self.ended = job._has_news = True
