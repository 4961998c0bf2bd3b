"""What several unit tests begin with."""

from __future__ import annotations

import pytest
from unit.coordinator_job import Job


@pytest.fixture
def job() -> Job:
    """Of which all ranks run."""
    job = Job()
    job.run()
    return job
