"""Pure: the durable tier, as the coordinator sees it: what is being written, and when to start from what is written.

The gate pins a snapshot when one is due (`ftrain_snapshot.pin`) and says so with every heartbeat, until it is told to
let go. So nothing here is lost with a message: a pin that is not being written is either begun or let go. Every node
writes its part; position 0 finishes the checkpoint once it finds the others' parts beside its own, so that its word is
the last one. Whatever fails, training goes on without that checkpoint.

Storage is looked at only where memory has nothing to start from: at the job's beginning, and when more was lost than
parity covers.
"""

from __future__ import annotations

import msgspec

from ftrain_launcher.from_agent import DurableEnded, DurableSearch
from ftrain_launcher.job.events import Progress
from ftrain_launcher.job.formation import Start
from ftrain_launcher.to_agent import Unpin, WriteDurable
from ftrain_launcher.work import Durable
from ftrain_snapshot.status import Levels
from ftrain_snapshot.words import SnapshotId

SEARCH_SECONDS_MAX = 30.0
"""How long storage may take to say what it holds."""
WRITER_END_SECONDS = 60.0
"""How long after its time is up a writer may take to end by itself."""
SETTLE_SECONDS = 30.0
"""How long the gate may take, after the last step, to say whether there is something left to write."""
_REPORTS_TO_SETTLE = 2
"""The first report after the last step may have been asked for before it."""


class DurableTier:
    """One job's; writes one checkpoint at a time."""

    def __init__(self, config: Durable | None) -> None:
        self.config = config
        self.newest: int | None = None
        """The newest version on storage, as far as this job knows."""
        self.writing: SnapshotId | None = None
        self.below: int | None = None
        """Only versions below this one are to be started from; None: any."""
        self.failure = ""
        """Why the last one was not written; empty: it was."""
        self._ended: SnapshotId | None = None
        """What was written last, or was not, though it was tried."""
        self._write_deadline: float | None = None
        self._settle_deadline: float | None = None
        """Set once the training is finished."""
        self._reports = 0
        self._begun = False
        """A generation was formed: what was on storage before is known."""
        self._news: list[str] = []

    # ---- the start

    def start(self, start: Start, search: DurableSearch | None) -> Start:
        """Where to start if storage is taken into account; `Start.undecided`: position 0 must look at it first."""
        if self.config is None or start.restore is not None:
            return start
        url = self.config.url
        if search is None:
            if start.lost and self.newest is None:
                return msgspec.structs.replace(start, lost=f"{start.lost} Nothing was written to {url} yet.")
            return msgspec.structs.replace(start, lost="", undecided=True)
        if search.failure:
            if self._begun and self.newest is None and not start.lost:
                return start  # there was nothing before, and nothing was written since
            text = f"{start.lost} " if start.lost else "it is not known where to start: "
            return msgspec.structs.replace(start, lost=f"{text}{search.failure}")
        if search.newest is None:
            lost = f"{start.lost} There is no complete checkpoint in {url}." if start.lost else ""
            return msgspec.structs.replace(start, lost=lost)
        lost_steps = start.newest_known - search.newest.step if start.lost and start.newest_known is not None else 0
        return Start(None, max(start.steps_lost, lost_steps), Levels(), durable=search.newest)

    def doubt(self, version: int | None) -> None:
        """The state of that version could not be certified: nothing that is on storage from there on counts."""
        if version is not None and (self.below is None or version < self.below):
            self.below = version

    def started(self, start: Start) -> None:
        """A generation was formed from there."""
        self._begun = True
        if start.durable is not None:
            self.newest = start.durable.step

    # ---- the writes

    def report(self, progress: Progress, now: float) -> WriteDurable | Unpin | None:
        """The gate says what it has pinned: what all members are to be told."""
        pinned = progress.pinned
        if self.config is None or pinned is None or self.writing is not None:
            return None
        if pinned == self._ended:
            return Unpin(pinned)
        self.writing = pinned
        self._write_deadline = now + self.config.write_timeout_seconds + WRITER_END_SECONDS
        self._say_who_waits()
        return WriteDurable(pinned)

    def was_tried(self, version: int) -> bool:
        """Whether that version, or a newer one, is what was written last, or was not, though it was tried."""
        return self._ended is not None and self._ended.version >= version

    def is_news(self, pinned: SnapshotId | None) -> bool:
        """Whether such a report changes anything here."""
        return self.finishing or (pinned is not None and pinned != self.writing)

    def end(self, event: DurableEnded, now: float) -> Unpin | None:
        """A node's part is written or is not; if that decides, what all members are to be told."""
        if event.snapshot != self.writing or (event.position and not event.failure):
            return None
        return self._close(f"{event.node}: {event.failure}" if event.failure else "", now)

    def tick(self, now: float) -> Unpin | None:
        """A deadline may have come: a writer that hangs is given up."""
        if self._write_deadline is None or now < self._write_deadline:
            return None
        return self._close("it took too long", now)

    def _close(self, failure: str, now: float) -> Unpin:
        assert self.writing is not None
        written, self.writing, self._write_deadline = self.writing, None, None
        self._ended, self.failure = written, f"step {written.version}: {failure}" if failure else ""
        if failure:
            self._news.append(f"the durable checkpoint of step {written.version} is not written: {failure}")
        else:
            self._news.append(f"the durable checkpoint of step {written.version} is written")
            known = -1 if self.newest is None else self.newest
            self.newest = max(written.version, known)
            if self.below is not None and written.version >= self.below:
                self.below = written.version + 1 if known > written.version else None
        if self.finishing:
            self._settle_deadline = now + SETTLE_SECONDS
        return Unpin(written)

    def take_news(self) -> list[str]:
        """What people are to be told, once."""
        news, self._news = self._news, []
        return news

    def abandon(self) -> None:
        """A generation is over: its writers end with it, and the next one's gate will pin anew."""
        self.writing = self._write_deadline = self._settle_deadline = None

    # ---- the end

    @property
    def finishing(self) -> bool:
        """The training is finished, and what is due of it is being written."""
        return self._settle_deadline is not None

    def finish(self, now: float) -> bool:
        """The training is finished; whether there is something to wait for."""
        if self.config is not None:
            self._settle_deadline, self._reports = now + SETTLE_SECONDS, 0
            self._say_who_waits()
        return self.finishing

    def _say_who_waits(self) -> None:
        if self.finishing and self.writing is not None:
            version = self.writing.version
            self._news.append(f"training is finished; waiting for the durable checkpoint of step {version}")

    def is_settled(self, progress: Progress) -> bool:
        """Once the training is finished: whether, as the gate says, all that was due is written."""
        self._reports += self.finishing
        busy = self.writing is not None or progress.pinned is not None or progress.in_flight
        return self.finishing and self._reports >= _REPORTS_TO_SETTLE and not busy

    def is_overdue(self, now: float) -> bool:
        """Once the training is finished: whether the gate was silent for too long."""
        return self.writing is None and self._settle_deadline is not None and now >= self._settle_deadline

    def next_deadline(self) -> float | None:
        """When `tick` and `is_overdue` are to be asked again."""
        return self._write_deadline if self.writing is not None else self._settle_deadline
