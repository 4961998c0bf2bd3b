"""A job of which the detector says something: what is told of it, and what its nodes answer."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from simulation.checkers import state_of
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.job.events import CordonNode, Diagnosed, Leave, Progress
from ftrain_launcher.job.incidents import Incident
from ftrain_launcher.job.membership import Phase

SAFE = {snapshot(4): WHOLE}


def running_job() -> Iterator[Job]:
    """Three nodes train, and a new controller would know of it what this one knows."""
    job = Job()
    job.run()
    yield job
    assert state_of(job.replayed()) == state_of(job.coordinator)


def started(**options: object) -> Job:
    job = Job(msgspec.structs.replace(config(), **options))
    job.run()
    return job


def say(job: Job, kind: Kind = Kind.HANG, *ranks: int, after: float = 0.01, **more: object) -> None:
    """The detector has found something in the generation that runs."""
    fields = {"generation": job.coordinator.formed, "confidence": 0.9, "sentence": f"ranks {ranks}: {kind}", "step": 5}
    job.tell(Diagnosed(Verdict(kind=kind, ranks=ranks, **(fields | more))), after)


def again(job: Job, held: dict = SAFE) -> None:
    """All stop, and train again; who is given a position meanwhile has to stop, too."""
    for _ in range(2):
        if job.coordinator.phase is Phase.STOPPING:
            job.stop_all(held)
    job.step_all()


def protect(job: Job, version: int, sealed: int | None = None) -> None:
    job.tell(Progress(job.coordinator.formed, version if sealed is None else sealed, version))


def move(job: Job, version: int) -> None:
    """The ranks are halted, and given to another node."""
    job.halt(version)
    again(job, {snapshot(version): WHOLE})


def last(job: Job) -> Incident:
    return job.coordinator.incidents[-1]


def cordon(job: Job, node: str, leave: Leave = Leave.AT_NEXT_FAULT) -> None:
    job.tell(CordonNode(node, "its fan is loud", leave))


def hang_twice(job: Job) -> None:
    say(job, Kind.HANG, 1)
    again(job)
    say(job, Kind.HANG, 1, step=9)
