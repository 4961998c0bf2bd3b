"""The workers of one node in its present generation: what was started, what they said, how they ended.

Their ends come from the zygote, their words over the link; both become messages to the controller. A failed
worker waits to be ended: its account of the failure is worth more than its exit code, and comes first. At the end of
its generation a worker is killed, or stays, and is given its next place in the same process (staying.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from ftrain import link
from ftrain_launcher.from_agent import (
    ArenaShort,
    Failure,
    RankHalted,
    RankRestored,
    RankState,
    RankStepped,
    ReplicaDigests,
    StateCertified,
    StateDescribed,
    StateUndescribed,
    Trouble,
    WorkerExit,
)
from ftrain_launcher.job.causes import NOT_CERTIFIED, UNLIKE
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node.links import LinkServer
from ftrain_launcher.node.state import WorkerRecord
from ftrain_launcher.node.staying import Seen, Waiting, WaitingRoom, can_stay
from ftrain_launcher.node.told import Tell
from ftrain_launcher.node.warm_standbys import Standbys
from ftrain_launcher.node.worker_output import WorkerOutput
from ftrain_launcher.node.worker_spawn import worker_spawn
from ftrain_launcher.processes.linux import has_ended
from ftrain_launcher.processes.spawning import Exited, Spawn
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.rings.process_state import ProcessWatch
from ftrain_launcher.to_agent import Form, Stop
from ftrain_snapshot.control import ControlPage

_RESTORE_TROUBLES = {
    **dict.fromkeys(("SnapshotIncomplete", "ChecksumMismatch", "StorageError"), "restore_failed"),
    **dict.fromkeys(("NotCertified", "StateUncovered", "StateInconsistent"), NOT_CERTIFIED),
}
"""What is the matter where a worker raises these, by their names."""
_UNLIKE = (
    "keep in different orders what all ranks hold the same: give optimizers their parameters, and ctx.track its "
    "objects, in one order on all ranks; lists, not sets"
)


class _Worker:
    """One worker, as far as its agent knows."""

    def __init__(self, record: WorkerRecord, argv: tuple[str, ...] = ()) -> None:
        self.record, self.argv = record, argv
        self.state = "starting"
        self.pid: int | None = record.pid
        """None: it has ended, or is being ended by us."""
        self.finished = False
        self.failure: Failure | None = None
        self.fails = False
        """Its function has raised what no lost peer explains: the process ends."""
        self.waits = False
        """It has left its generation."""
        self.described: int | None = None
        """Since which snapshot others can take over what it captures; None: nobody can, or it has said nothing yet."""
        self.settled = asyncio.Event()
        """It waits, or will not: it has ended, or its function has."""


class NodeWorkers:
    """Starts a generation's workers on one node and tells what becomes of them."""

    def __init__(
        self, job: JobRecord, node: str, host: WorkerHost, links: LinkServer, tell: Tell, errors_fd: int = 2
    ) -> None:
        """``errors_fd``: where the terminal's stderr is; its stdout is this process's."""
        self._job, self._node, self._host, self._links, self._tell = job, node, host, links, tell
        self._folder = Path(job.arena_folder) / node
        self._output = WorkerOutput(job, errors_fd)
        self._workers: dict[str, _Worker] = {}
        self._waiting = WaitingRoom()
        self._standbys = Standbys(node, job.config.work.standby, host, self._waiting)
        self.generation = 0
        """The generation whose workers these are, or were."""
        self._undescribed = 0
        """The generation of which it was told last that no other number of ranks can resume its state."""
        self._control: ControlPage | None = None

    def open(self) -> None:
        """The daemon runs: its control page is there to be read. What adopted workers did before is told again."""
        self._control = ControlPage(self._folder)
        for worker in self._workers.values():
            step, moment = self._control.progress(worker.record.local_rank)
            if worker.pid is not None and max(_started(worker.pid), worker.record.since) < moment:
                worker.state = "running"
                place = (self._node, self.generation, worker.record.rank)
                self._tell(RankRestored(*place, None, moment), ("restored", worker.record.rank))
                self._tell(RankStepped(*place, step, moment), ("stepped", worker.record.rank))

    def close(self) -> None:
        """Copy what is left of their output."""
        self._output.close()

    def records(self) -> tuple[WorkerRecord, ...]:
        """Those that have not ended, for an agent to come."""
        return tuple(w.record for w in self._workers.values() if w.pid is not None)

    def running(self) -> list[tuple[int, int, int]]:
        """Rank, local rank and pid of those that have not ended."""
        return [(w.record.rank, w.record.local_rank, w.pid) for w in self._workers.values() if w.pid is not None]

    def states(self) -> tuple[RankState, ...]:
        """All of the generation, with the last step that each committed."""
        return tuple(
            RankState(w.record.rank, w.record.local_rank, w.pid, w.state, self._step(w.record.local_rank))
            for w in sorted(self._workers.values(), key=lambda worker: worker.record.rank)
        )

    def _step(self, lane: int) -> int | None:
        step = self._control.progress(lane)[0] if self._control is not None else -1
        return None if step < 0 else step

    # ---- start and end

    async def start(self, form: Form) -> None:
        """Give places to those that wait for one; start the rest. Raises SpawnFailed, ZygoteFailed."""
        self.generation = form.generation
        missing: list[tuple[int, Spawn]] = []
        for lane in range(form.work.nproc_per_node):
            spawn = self._spawn(form, lane)
            self._output.begin(form.generation, form.rank_of(lane))
            if (taken := self._assign(spawn, lane)) is not None:
                self._add(form, lane, spawn, *taken)
            else:
                missing.append((lane, spawn))
        for lane, spawn in missing:  # A fork takes its time: those who waited are at work meanwhile.
            self._add(form, lane, spawn, spawn.id, await self._host.spawn(spawn))

    def _add(self, form: Form, lane: int, spawn: Spawn, id: str, pid: int) -> None:
        rank = form.rank_of(lane)
        self._workers[id] = _Worker(WorkerRecord(id, rank, lane, pid, time.time()), spawn.argv)
        self._output.show(self.generation, rank, lane)

    def _assign(self, spawn: Spawn, lane: int) -> tuple[str, int] | None:
        """Id and pid of a process that waited, and has this place now."""
        while (one := self._waiting.take(lane, spawn.argv)) is not None:
            place = link.Assignment(self.generation, spawn.env, spawn.stdout_path, spawn.stderr_path)
            if self._links.say(one.pid, place):
                return one.id, one.pid
            self._host.send_signal([one.id], signal.SIGKILL)
        return None

    @property
    def train(self) -> bool:
        """All have made a step in this generation."""
        return bool(self._workers) and all(w.state == "running" for w in self._workers.values())

    async def provide_standbys(self, form: Form) -> None:
        """Once all train: start what is missing, for whatever lane will need it; until then it has the first one's."""
        if self.train and all(self._links.listens(w.record.pid) for w in self._workers.values()):
            await self._standbys.provide(self._spawn(form, 0))

    def _spawn(self, form: Form, lane: int) -> Spawn:
        return worker_spawn(self._job, self._node, self._output, form, lane)

    def adopt(self, generation: int, records: tuple[WorkerRecord, ...]) -> None:
        """Take over the workers that an agent before this one started."""
        self.generation = generation
        for record in records:
            self._workers[record.id] = _Worker(record)
            self._output.show(generation, record.rank, record.local_rank, from_end=True)

    def bury_missing(self) -> None:
        """Report those that ended while no agent was there, and whose end was told to the one before."""
        for worker in self._workers.values():
            if worker.pid is not None and worker.record.id not in self._host.running:
                self.exited(Exited(worker.record.id, worker.record.pid, None, signal.SIGKILL))

    async def stop(self, message: Stop, kept: Collection[str]) -> None:
        """Have those leave that can stay; kill all else that the zygote runs, but for standbys and what is ``kept``.

        Returns when the others are gone.
        """
        leaving = [w for w in self._workers.values() if self._is_asked_to_leave(w, message)]
        await self._end(leaving, {*kept, *self._waiting.ids, *self._standbys.starting})

    async def end_all(self) -> None:
        """Kill all, and those that wait for a place, too; returns when they are gone."""
        await self._end([], set())

    async def _end(self, leaving: Collection[_Worker], spared: set[str]) -> None:
        """What dies of this was killed by us and is no sign of anything.

        What is dead already is, though nobody may have told yet: its peers' errors can be quicker than the kernel's
        word of its end.
        """
        for worker in self._workers.values():
            if worker not in leaving and worker.pid is not None and not has_ended(worker.pid):
                worker.pid = None
        spared |= {w.record.id for w in leaving}
        await self._host.kill_all_now([id for id in self._host.running if id not in spared])
        await self._wait_until_left(leaving)
        for worker in self._workers.values():
            self._output.finish(self.generation, worker.record.rank)
        self._workers.clear()

    @property
    def staying(self) -> int:
        """Workers that have left their generation, and wait for a place in the next one."""
        return self._waiting.stayed

    def _is_asked_to_leave(self, worker: _Worker, stop: Stop) -> bool:
        if worker.pid is None or not self._links.listens(worker.pid):
            return False
        process = ProcessWatch(worker.pid)
        seen = Seen(
            alive=not has_ended(worker.pid),
            state=process.read().letter,
            finished=worker.finished,
            fails=worker.fails,
            suspected=worker.record.rank in stop.suspects,
        )
        process.close()
        return can_stay(seen) and self._links.say(worker.pid, link.Leave(stop.generation))

    async def _wait_until_left(self, leaving: Collection[_Worker]) -> None:
        """Who does not leave within the grace time is killed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._job.config.work.abort_grace_seconds):
                for worker in leaving:
                    await worker.settled.wait()
        late = [w for w in leaving if w.pid is not None and not w.waits]
        for worker in late:
            worker.pid = None
        await self._host.kill_all_now([w.record.id for w in late])
        for worker in leaving:
            if worker.pid is not None:
                place = worker.record
                self._waiting.add(Waiting(place.id, place.pid, worker.argv, place.local_rank))

    def dismiss(self) -> None:
        """The node ends: nobody who waits is needed any more."""
        self._host.send_signal(self._waiting.ids | self._standbys.starting, signal.SIGKILL)

    def go_on(self) -> None:
        """Those that were halted train again."""
        for worker in self._workers.values():
            worker.state = "running" if worker.state == "halted" else worker.state

    def kill(self, rank: int) -> None:
        """SIGKILL one of them, as a fault would."""
        self._host.send_signal([w.record.id for w in self._workers.values() if w.record.rank == rank], signal.SIGKILL)

    # ---- what becomes of them

    def exited(self, exited: Exited) -> None:
        """The zygote says that one has ended."""
        self._waiting.remove(exited.id)
        self._standbys.exited(exited.id)
        worker = self._workers.get(exited.id)
        if worker is None:
            return
        worker.settled.set()
        if worker.pid is None:
            return
        worker.pid, worker.state = None, "exited"
        self._report_end(worker, exited.code, exited.signal, with_zygote=exited.with_zygote)
        self._output.finish(self.generation, worker.record.rank)

    def _report_end(self, worker: _Worker, code: int | None, number: int | None, *, with_zygote: bool = False) -> None:
        rank = worker.record.rank
        message = WorkerExit(
            node=self._node,
            generation=self.generation,
            rank=rank,
            pid=worker.record.pid,
            code=code,
            signal=number,
            with_zygote=with_zygote,
            finished=worker.finished,
            failure=worker.failure,
            step=self._step(worker.record.local_rank),
            last_lines=self._output.last_lines(self.generation, rank),
        )
        self._tell(message, ("exit", rank))

    def hear(self, hello: link.Hello, message: link.LinkMessage) -> None:
        """One of them says something."""
        if isinstance(message, link.Waits):
            self._hear_waits(hello.pid)
            return
        worker = self._of_pid(hello.pid)
        if worker is None or (hello.generation, hello.rank) != (self.generation, worker.record.rank):
            return
        rank, generation = hello.rank, hello.generation
        match message:
            case link.Restored(version, moment, read, kept):
                worker.state = "restored"
                self._tell(RankRestored(self._node, generation, rank, version, moment, read, kept), ("restored", rank))
            case link.FirstStep(step, moment):
                worker.state = "running"
                self._tell(RankStepped(self._node, generation, rank, step, moment), ("stepped", rank))
            case link.Finished():
                worker.finished, worker.state = True, "finished"
                worker.settled.set()
            case link.OutOfMemory(needed, available, goes_on):
                self._tell(ArenaShort(self._node, generation, needed, available, goes_on), ("short", goes_on))
            case link.Unlike():
                self._tell(Trouble(self._node, generation, UNLIKE, f"ranks 0 and {rank} {_UNLIKE}"), (UNLIKE,))
            case link.Failed():
                self._hear_failure(worker, message)
            case link.Halted(step, sealed, moment):
                worker.state = "halted" if sealed else "running"
                self._tell(RankHalted(self._node, generation, rank, step, sealed, moment), ("halted", rank))
            case link.Certified():
                self._tell(StateCertified(self._node, generation, message), ("certified", rank))
            case link.Undescribed(reason):
                worker.described = None
                if self._undescribed != generation:  # one of its workers is enough
                    self._undescribed = generation
                    self._tell(StateUndescribed(self._node, generation, reason), ("described",))
            case link.Described(version):
                worker.described = version
                self._tell_if_described(generation)
            case link.Replicas(step, digests):
                self._tell(ReplicaDigests(self._node, generation, rank, step, digests), ("replicas", rank))

    def _tell_if_described(self, generation: int) -> None:
        """Once all of them are."""
        since = [worker.described for worker in self._workers.values() if worker.described is not None]
        if len(since) == len(self._workers):
            self._undescribed = 0
            self._tell(StateDescribed(self._node, generation, max(since)), ("described",))

    def _of_pid(self, pid: int) -> _Worker | None:
        return next((w for w in self._workers.values() if w.record.pid == pid), None)

    def _hear_waits(self, pid: int) -> None:
        """A worker has left its generation, or a standby has come to where it waits."""
        worker = self._of_pid(pid)
        if worker is not None:
            worker.waits = not worker.finished
            worker.settled.set()
            return
        for id, its_pid in self._host.running.items():
            if its_pid == pid:
                self._standbys.waits(id, pid)

    def _hear_failure(self, worker: _Worker, message: link.Failed) -> None:
        """The worker waits for its end; its traceback goes beside its log, and the controller shows the cause's."""
        self._output.keep_traceback(self.generation, worker.record.rank, message.traceback)
        if not message.communication:
            worker.fails = True
            worker.settled.set()
        if (kind := restore_trouble(message.error)) is not None:
            self._tell(Trouble(self._node, self.generation, kind, message.error), ("trouble",))
            return
        worker.failure = Failure(
            step=message.step,
            error=message.error,
            traceback=message.traceback,
            communication=message.communication,
            not_finite=message.not_finite,
            newest_version=message.newest_version,
            misfit=message.misfit,
        )
        self._report_end(worker, None, None)


def restore_trouble(error: str) -> str | None:
    """The kind of a `Trouble`, if a worker's error (MODULE.NAME: TEXT) says that its state could not be had."""
    return _RESTORE_TROUBLES.get(error.split(":")[0].rpartition(".")[2])


def _started(pid: int) -> float:
    """When this process was started, in unix seconds; now, if it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return time.time()
