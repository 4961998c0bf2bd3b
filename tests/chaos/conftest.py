"""Jobs on emulated nodes and on hosts, and how they end without a fault."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from heavy_jobs import EmulatedJob, HeavyHostJob
from hosts import Lab
from jobs import ARGUMENTS, Job, Jobs, Outcome
from needs import require_lab


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Starts jobs of any kind; at the test's end nothing may be left of them."""
    started = Jobs(tmp_path)
    yield started
    started.close()


@pytest.fixture
def emulated(jobs: Jobs) -> Callable[..., EmulatedJob]:
    """Starts jobs on emulated nodes."""
    return lambda *flags, **options: jobs.start(lambda folder: EmulatedJob(folder, *flags, **options))


@pytest.fixture
def on_hosts(jobs: Jobs) -> Callable[..., HeavyHostJob]:
    """Starts a job on hosts of a lab."""
    return lambda lab, *flags, **options: jobs.start(lambda folder: HeavyHostJob(lab, folder, *flags, **options))


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes a lab of so many hosts."""
    require_lab()
    labs: list[Lab] = []

    def make(hosts: int, **options: int) -> Lab:
        labs.append(Lab(hosts, **options))
        return labs[-1].__enter__()

    yield make
    for lab in labs:
        lab.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    """The training of so many nodes, without a fault, spares or storage: jobs with the same `ARGUMENTS` end alike."""

    def outcome(nodes: int) -> Outcome:
        def start(folder: Path) -> Job:
            return Job(folder, "--local-nodes", str(nodes), arguments=ARGUMENTS)

        return _run_once(tmp_path_factory, f"undisturbed-{nodes}", start, nodes)

    return outcome


@pytest.fixture(scope="session")
def ends_without_a_fault(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[str]]:
    """What the ranks of so many nodes hold at the end of an undisturbed heavy job."""

    def ends(nodes: int) -> list[str]:
        def start(folder: Path) -> Job:
            return EmulatedJob(folder, "--local-nodes", str(nodes))

        return _run_once(tmp_path_factory, f"undisturbed-heavy-{nodes}", start, nodes).ends()

    return ends


def _run_once(factory: pytest.TempPathFactory, name: str, start: Callable[[Path], Job], ranks: int) -> Outcome:
    """A job's outcome, for all processes that run tests of this session: whoever needs it first runs it.

    Both of ``scripts/test``'s sessions share one folder.
    """
    base = factory.getbasetemp()
    shared = Path(os.environ.get("FTRAIN_TEST_OUTCOMES", base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            job = start(folder)
            try:
                assert job.wait() == 0, job.tail()
            finally:
                job.close()
            assert len(job.ends()) == ranks
            done.touch()
    return Outcome(folder)
