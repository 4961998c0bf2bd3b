"""Jobs whose terminal is gone: ``2>&1 | head``, a closed window, a connection that broke."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Job, holding

STEPS, HELD = 40, 20


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Whose terminal is a pipe that nobody reads any more once its ranks train."""
    terminal = tmp_path / "job" / "terminal.log"
    terminal.parent.mkdir()
    os.mkfifo(terminal)
    reader = os.open(terminal, os.O_RDONLY | os.O_NONBLOCK)
    job = Job(tmp_path / "job", "--local-nodes", "2", arguments=("--steps", str(STEPS), *holding(HELD)))
    job.log = tmp_path / "nothing"
    job.log.touch()
    job.wait_step(HELD - 1, 2)
    os.close(reader)
    yield job
    job.close()


def test_it_recovers_and_ends_with_its_own_exit_code(job: Job) -> None:
    job.kill_rank(1)
    job.wait_for(lambda s: s["generation"] == 2, "a second generation")
    job.go(HELD)
    assert job.wait() == 0
    assert len(job.ends()) == 2


def test_it_can_be_ended(job: Job) -> None:
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
