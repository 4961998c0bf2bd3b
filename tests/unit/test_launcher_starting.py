"""A launcher that is told to end before its loop runs clears away what it began."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from unit.test_launcher_jobs import record

from ftrain_launcher.commands import starting
from ftrain_launcher.errors import UsageError
from ftrain_launcher.jobs import JobFolder, JobRecord, Result

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}  # the tests may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRecord:
    monkeypatch.setenv("FTRAIN_HOME", str(tmp_path))
    plain = record("one")
    work = msgspec.structs.replace(plain.config.work, log_folder=str(tmp_path / "logs"))
    config = msgspec.structs.replace(plain.config, work=work)
    return msgspec.structs.replace(plain, arena_folder=str(tmp_path / "arena"), config=config)


def run(job: JobRecord) -> tuple[int, Result | None]:
    folder = JobFolder.create(job)
    code = starting._run(argparse.Namespace(), folder, job, None)
    return code, folder.result()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_the_loop_runs(number: int, job: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object) -> Result:
        assert Path(job.arena_folder).is_dir()
        os.kill(os.getpid(), number)
        return Result(0, "it was not stopped")

    monkeypatch.setattr(starting, "_launch", launch)
    name = signal.Signals(number).name
    assert run(job) == (128 + number, Result(128 + number, f"stopped by {name}"))
    assert not Path(job.arena_folder).exists()


def test_what_nohup_has_ignored_stays_ignored(job: JobRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def launch(*_: object) -> Result:
        os.kill(os.getpid(), signal.SIGHUP)
        return Result(0, "training finished")

    monkeypatch.setattr(starting, "_launch", launch)
    assert run(job)[0] == 0


def test_a_job_of_the_same_name_that_began_a_moment_before_is_one_line(job: JobRecord) -> None:
    arena = Path(job.arena_folder)
    arena.mkdir()
    with pytest.raises(UsageError, match="is in use by another job of this name: choose another --name"):
        run(job)
    assert arena.is_dir()
