"""The faults of scripts/bench/recovery.py: jobs of ours and of the rivals, broken from outside again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
from job import Job, JobFailed, Json, node_of
from recovery_notes import NotBegun, Notes, Recovery
from rivals.commands import RANKS, RIVALS, WORKER, Rival
from rivals.torchrun_nodes import TIGHTEST, lose_node

STAYING = "ftrain --standby 1"
OURS = ("ftrain", STAYING)
TIGHT, DEFAULTS = "torchrun --nnodes 3:4, tightest settings", "torchrun --nnodes 3:4, defaults"
STANDBY_SECONDS = 1.0
"""A lost rank's standby has been replaced by then."""
CLOSED_TIMEOUT_SECONDS = 30.0
_STARTS_MAX = 3


class Fault(NamedTuple):
    """One fault, and how it went."""

    seconds: float
    """From the fault to the first new step of all ranks."""
    recovery: Recovery
    incident: Json | None = None
    """What ftrain says of it."""

    @property
    def others_seconds(self) -> float:
        """From the fault to the first new step of any rank: those that are left may not wait for the lost one."""
        return self.seconds - (self.recovery.first_step - self.recovery.earliest_step)

    @property
    def after_detection(self) -> float:
        """Seconds from its first sign."""
        assert self.incident is not None
        return float(self.recovery.first_step - self.incident["timeline"]["detected"])


class Ours:
    """A job of ours, broken again and again."""

    def __init__(self, job: Job, folder: Path, chance: random.Random) -> None:
        self.job, self.notes, self.chance = job, Notes(folder, RANKS), chance

    def alive(self) -> bool:
        return self.job.process.poll() is None

    def ready(self) -> Json:
        """Wait until the job can stand the next fault, to a random moment; its status."""
        self.notes.wait_warm(self.alive)
        time.sleep(STANDBY_SECONDS)
        status = self.job.wait_for(
            "protected",
            lambda s: s["state"] == "running" and s["snapshots"]["protected"] is not None,
            CLOSED_TIMEOUT_SECONDS,
        )
        time.sleep(self.chance.uniform(0.0, 0.3))
        return status

    def break_rank(self, number: signal.Signals, rank: int) -> Fault:
        """Send a rank this signal."""
        before = self.ready()["incidents"]
        old, broken_at = self.notes.last(), time.time()
        os.kill(old[rank].pid, number)
        return self._fault(broken_at, self.notes.wait_recovered(old, self.alive), before)

    def lose_node(self, rank: int) -> Fault:
        """Lose the rank's node, its memory included."""
        status = self.ready()
        old = self.notes.last()
        broken_at = self.job.lose_node(node_of(status, rank))
        return self._fault(broken_at, self.notes.wait_recovered(old, self.alive), status["incidents"])

    def _fault(self, broken_at: float, recovery: Recovery, incidents_before: int) -> Fault:
        incident = self.job.wait_for_incident(incidents_before, CLOSED_TIMEOUT_SECONDS)
        return Fault(recovery.first_step - broken_at, recovery, incident)


def break_ours(
    folder: Path, *, side: str, parts: Sequence[str], count: int, chance: random.Random
) -> dict[str, list[Fault]]:
    """One job of this side of ours, and so many faults of each part.

    Raises:
        RuntimeError, JobFailed: it did not survive them.
    """
    flags = ["--local-nodes", str(RANKS), "--nproc-per-node", "1", "--snapshot-every", "1"]
    flags += ["--standby", "1"] if side == STAYING else ["--spares", str(count)]
    name = f"bench-{folder.name}-{os.getpid()}"
    faults: dict[str, list[Fault]] = {}
    with Job(name, flags, WORKER, ["ftrain", str(folder)], folder / "log") as job:
        ours = Ours(job, folder, chance)
        try:
            if "worker" in parts:
                ranks = [chance.randrange(RANKS) for _ in range(count)]
                faults["worker"] = [ours.break_rank(signal.SIGKILL, rank) for rank in ranks]
            if "stop" in parts:  # a node that hangs twice is given no ranks any more
                ranks = chance.sample(range(RANKS), count)
                faults["stop"] = [ours.break_rank(signal.SIGSTOP, rank) for rank in ranks]
            if "node" in parts and side != STAYING:
                faults["node"] = [ours.lose_node(chance.randrange(RANKS)) for _ in range(count)]
        except (RuntimeError, JobFailed) as error:
            error.add_note(job.tail())
            raise
    return faults


def break_rival(folder: Path, *, rival: Rival, count: int, chance: random.Random) -> dict[str, list[Fault]]:
    """One job of a rival's, and so many killed ranks.

    Raises:
        RuntimeError: it did not survive them.
    """
    notes, faults = Notes(folder, RANKS), []
    with rival.start(folder) as job:
        try:
            for _ in range(count):
                notes.wait_warm(job.alive)
                time.sleep(chance.uniform(0.0, 0.3))
                old, broken_at = notes.last(), time.time()
                os.kill(old[chance.randrange(RANKS)].pid, signal.SIGKILL)
                recovery = notes.wait_recovered(old, job.alive)
                faults.append(Fault(recovery.first_step - broken_at, recovery))
        except RuntimeError as error:
            error.add_note(job.tail())
            raise
    return {"worker": faults}


def lose_rival_node(folder: Path, *, settings: tuple[str, ...]) -> dict[str, list[Fault]]:
    """One job of torchrun's, and one lost node.

    Raises:
        RuntimeError: it did not survive it.
    """
    try:
        killed_at, recovery = lose_node(folder, settings)
    except RuntimeError as error:
        for path in sorted(folder.glob("log-*")):
            error.add_note(path.read_text(errors="replace")[-1000:])
        raise
    return {"node": [Fault(recovery.first_step - killed_at, recovery)]}


class Campaign:
    """All faults that are measured; a job that fails costs its own faults alone."""

    def __init__(self, folder: Path, count: int, chance: random.Random) -> None:
        self.folder, self.count, self.chance = folder, count, chance
        self.found: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        """By part and side."""
        self.failed: list[str] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._jobs = 0

    def round(self, parts: Sequence[str], sides: Sequence[str], *, with_defaults: bool) -> None:
        """A job of each side, in turn."""
        for side in OURS:
            if side in sides and {"worker", "stop", "node"} & set(parts):
                work = partial(break_ours, side=side, parts=parts, count=self.count, chance=self.chance)
                self._attempt(side, work)
        for rival in RIVALS:
            if rival.name in sides and "worker" in parts:
                self._attempt(rival.name, partial(break_rival, rival=rival, count=self.count, chance=self.chance))
        if "torchrun" in sides and "node" in parts:
            self._attempt(TIGHT, partial(lose_rival_node, settings=TIGHTEST))
            if with_defaults:
                self._attempt(DEFAULTS, partial(lose_rival_node, settings=()))

    def _attempt(self, side: str, work: Callable[[Path], dict[str, list[Fault]]]) -> None:
        def keep() -> None:
            for part, faults in self._results(side, work).items():
                self.found[part, side] += faults
                print(f"{part}, {side}: {', '.join(f'{fault.seconds:.2f}' for fault in faults)} s", flush=True)

        self.attempt(side, keep)

    def _results(self, side: str, work: Callable[[Path], dict[str, list[Fault]]]) -> dict[str, list[Fault]]:
        """Of a job that begins: torchrun's agents with tight settings may lose each other while they start."""
        for _ in range(_STARTS_MAX - 1):
            try:
                return work(self._new_folder())
            except NotBegun as error:
                print(f"{side}: {error}; once more", flush=True)
        return work(self._new_folder())

    def _new_folder(self) -> Path:
        self._jobs += 1
        folder = self.folder / f"job-{self._jobs}"
        folder.mkdir()
        return folder

    def attempt(self, what: str, work: Callable[[], None]) -> None:
        """Do something that may fail without the others' loss, and say how long it takes."""
        print(f"{what} ...", flush=True)
        began = time.monotonic()
        try:
            work()
        except (RuntimeError, JobFailed, OSError, psutil.Error, subprocess.TimeoutExpired) as error:
            said = [f"{what}: {type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
            print("\n".join(said), flush=True)
            self.failed.append(what)
        self._seconds[what] += time.monotonic() - began

    def took(self) -> list[str]:
        """What each side's jobs took, their start and end included."""
        return [f"{seconds / 60:.1f} min: {what}" for what, seconds in self._seconds.items()]
