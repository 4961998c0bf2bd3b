"""What holds for the whole suite: it leaves nothing behind, touches nobody's state, and can be repeated.

Every process that a test starts inherits FTRAIN_TEST_SESSION; when the session ends, no process may carry it and
/dev/shm may hold no ftrain-* entry that was not there before. Each process that runs tests (`scripts/test` has two,
of pytest-xdist) has an FTRAIN_HOME of its own.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest
import ready
from hypothesis import settings
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, wait_until_clean

MARK = "FTRAIN_TEST_SESSION"
SEED = int(os.environ.setdefault("FTRAIN_TEST_SEED", str(random.SystemRandom().randrange(2**32))))
LEFTOVER_TIMEOUT_SECONDS = 120.0
BEFORE = pytest.StashKey[set[str]]()
settings.register_profile("ftrain", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("ftrain")


def pytest_configure(config: pytest.Config) -> None:
    if not is_worker(config):
        os.environ[MARK] = uuid.uuid4().hex
        config.stash[BEFORE] = shared_memory_entries()
    os.environ["FTRAIN_HOME"] = tempfile.mkdtemp(prefix="ftrain-test-home-")  # short: unix sockets may live in it
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite must do with two cores
    # Of a job's start, with its dozen processes, these take a fifth: each would compile our modules anew, and read all
    # certificates of this machine when it imports aiohttp.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["SSL_CERT_FILE"] = os.devnull


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["FTRAIN_HOME"], ignore_errors=True)


def is_worker(config: pytest.Config) -> bool:
    """This process runs tests for another one, whose session it is."""
    return hasattr(config, "workerinput")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {SEED} (again with FTRAIN_TEST_SEED={SEED})"


@pytest.fixture(scope="session")
def seed() -> int:
    """The session's seed, printed on top of the report; derive others from it (``random.Random(seed + i)``)."""
    return SEED


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """When all that run tests have ended: an error is added to theirs if anything that the session made outlives it."""
    yield
    ready.close()
    if is_worker(session.config):
        return
    left = wait_until_clean(MARK, os.environ[MARK], session.config.stash[BEFORE], LEFTOVER_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, os.environ[MARK]):
        os.kill(pid, signal.SIGKILL)  # reported below; not to disturb what runs next
    for line in left:
        if line.startswith("shared memory: "):
            _remove(Path(line.removeprefix("shared memory: ")))
    if left:
        said = "the session left behind (some test, not always the last one):\n" + "\n".join(left)
        place = ("tests/conftest.py", None, "the session")
        report = pytest.TestReport("the session", place, {}, "failed", said, "teardown")
        session.config.hook.pytest_runtest_logreport(report=report)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _remove(path: Path) -> None:
    assert path.parent == SHARED_MEMORY
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
