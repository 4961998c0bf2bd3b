"""A launcher that is told to end before its loop runs: the loop gets to know, and nothing is cut short."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from unit.test_launcher_jobs import record

from ftrain_launcher.commands import starting
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder, JobRecord, Result

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}  # the tests may run under nohup
    yield
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)  # what still waits is of the test
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRecord:
    monkeypatch.setenv("FTRAIN_HOME", str(tmp_path))
    plain = record("one")
    work = msgspec.structs.replace(plain.config.work, log_folder=str(tmp_path / "logs"))
    config = msgspec.structs.replace(plain.config, work=work)
    return msgspec.structs.replace(plain, arena_folder=str(tmp_path / "arena"), config=config)


def run(job: JobRecord) -> int:
    return starting._run(argparse.Namespace(), JobFolder.create(job), job, None)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_the_loop_runs(number: int, job: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object) -> Result:
        assert Path(job.arena_folder).is_dir()
        signal.raise_signal(number)
        assert number in signal.sigpending(), "it waits for the loop"
        return Result(0, "training finished")

    monkeypatch.setattr(starting, "_launch", launch)
    assert run(job) == 0
    assert not Path(job.arena_folder).exists()


def test_a_job_of_the_same_name_that_began_a_moment_before_is_one_line(job: JobRecord) -> None:
    arena = Path(job.arena_folder)
    arena.mkdir()
    with pytest.raises(UsageError, match="is in use by another job of this name: choose another --name"):
        run(job)
    assert arena.is_dir()
