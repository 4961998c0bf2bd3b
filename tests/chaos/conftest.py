"""Jobs on emulated nodes and on hosts, and how they end without a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from heavy_jobs import EmulatedJob, HeavyHostJob
from hosts import Lab
from jobs import ARGUMENTS, Job
from needs import require_lab


@pytest.fixture
def emulated(tmp_path: Path) -> Iterator[Callable[..., EmulatedJob]]:
    """Starts jobs on emulated nodes; at the test's end nothing may be left of them."""
    jobs: list[EmulatedJob] = []

    def start(*flags: str, **options: tuple) -> EmulatedJob:
        jobs.append(EmulatedJob(tmp_path / f"job-{len(jobs)}", *flags, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


@pytest.fixture
def on_hosts(tmp_path: Path) -> Iterator[Callable[..., HeavyHostJob]]:
    """Starts a job on hosts of a lab; at the test's end nothing may be left on any of them."""
    jobs: list[HeavyHostJob] = []

    def start(lab: Lab, *flags: str, **options: tuple) -> HeavyHostJob:
        jobs.append(HeavyHostJob(lab, tmp_path / f"job-{len(jobs)}", *flags, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.close()


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Job]:
    """The training of so many nodes, without a fault, spares or storage: jobs with the same `ARGUMENTS` end alike."""
    known: dict[int, Job] = {}

    def job_of(nodes: int) -> Job:
        if nodes not in known:
            folder = tmp_path_factory.mktemp(f"undisturbed-{nodes}")
            job = known[nodes] = Job(folder, "--local-nodes", str(nodes), arguments=ARGUMENTS)
            try:
                assert job.wait() == 0, job.tail()
            finally:
                job.close()
            assert len(job.ends()) == nodes
        return known[nodes]

    return job_of


@pytest.fixture(scope="session")
def ends_without_a_fault(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[str]]:
    """What the ranks of so many nodes hold at the end of an undisturbed heavy job."""
    known: dict[int, list[str]] = {}

    def ends(nodes: int) -> list[str]:
        if nodes not in known:
            job = EmulatedJob(tmp_path_factory.mktemp(f"undisturbed-{nodes}") / "job", "--local-nodes", str(nodes))
            assert job.wait() == 0, job.tail()
            job.close()
            known[nodes] = job.ends()
            assert len(known[nodes]) == nodes
        return known[nodes]

    return ends
