"""What holds for the whole suite: it leaves nothing behind, touches nobody's state, and can be repeated.

Every process that a test starts inherits FTRAIN_TEST_SESSION; when the session ends, no process may carry it and
/dev/shm may hold no ftrain-* entry that was not there before. FTRAIN_HOME is a folder of the session's own.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, wait_until_clean

MARK = "FTRAIN_TEST_SESSION"
SEED = int(os.environ.get("FTRAIN_TEST_SEED") or random.SystemRandom().randrange(2**32))
LEFTOVER_TIMEOUT_SECONDS = 10.0


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARK] = uuid.uuid4().hex
    os.environ["FTRAIN_HOME"] = tempfile.mkdtemp(prefix="ftrain-test-home-")  # short: unix sockets may live in it
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite must do with two cores


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["FTRAIN_HOME"], ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {SEED} (again with FTRAIN_TEST_SEED={SEED})"


@pytest.fixture(scope="session")
def seed() -> int:
    """The session's seed, printed on top of the report; derive others from it (``random.Random(seed + i)``)."""
    return SEED


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """The last test of the session is reported as an error if anything that the session made outlives it."""
    before = shared_memory_entries()
    yield
    left = wait_until_clean(MARK, os.environ[MARK], before, LEFTOVER_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, os.environ[MARK]):
        os.kill(pid, signal.SIGKILL)  # reported below; not to disturb what runs next
    for line in left:
        if line.startswith("shared memory: "):
            _remove(Path(line.removeprefix("shared memory: ")))
    if left:
        pytest.fail("the session left behind (some test, not always this one):\n" + "\n".join(left), pytrace=False)


def _remove(path: Path) -> None:
    assert path.parent == SHARED_MEMORY
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
