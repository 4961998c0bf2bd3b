"""What several unit tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.coordinator_job import Job
from unit.ring_worker import Worker


@pytest.fixture
def job() -> Job:
    """Of which all ranks run."""
    job = Job()
    job.run()
    return job


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """That writes its ring in the test's folder."""
    return Worker(tmp_path)
