"""A job's folder: where it is found, and who may read it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from unit.coordinator_job import config

from ftrain_launcher import query
from ftrain_launcher.errors import JobNotFound, RecordDamaged, UsageError
from ftrain_launcher.jobs import Endpoint, JobFolder, JobRecord, Result, state_home, write_atomically

NOBODY = 2**30
"""Larger than any pid."""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAIN_HOME", str(tmp_path / "state"))


def record(name: str, *, created: float = 1.0, launcher_pid: int = NOBODY) -> JobRecord:
    return JobRecord(
        name=name, created=created, launcher_pid=launcher_pid, arena_folder="/dev/shm/none", config=config()
    )


def test_the_state_folder_is_the_users_choice_or_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_home().name == "state"
    monkeypatch.delenv("FTRAIN_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert state_home() == Path("/x/ftrain")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_home() == Path.home() / ".local/state/ftrain"


def test_everything_is_readable_by_its_owner_only() -> None:
    before = os.umask(0)
    try:
        folder = JobFolder.create(record("one"))
        folder.write_endpoint(Endpoint("127.0.0.1", 1, 2))
        folder.write_status(b"{}")
        folder.write_result(Result(0, ""))
    finally:
        os.umask(before)
    for path in (state_home(), folder.path.parent, folder.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = list(folder.path.iterdir())
    assert {f.name for f in files} == {"job.json", "secret", "controller.json", "status.json", "result.json"}
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}


def test_a_state_folder_that_was_there_keeps_its_mode() -> None:
    state_home().mkdir(mode=0o755)
    folder = JobFolder.create(record("one"))
    assert stat.S_IMODE(state_home().stat().st_mode) == 0o755
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700


def test_what_is_written_comes_back() -> None:
    folder = JobFolder.create(record("one"))
    assert (folder.endpoint(), folder.last_status(), folder.result()) == (None, None, None)
    folder.write_endpoint(Endpoint("127.0.0.1", 1, 2))
    folder.write_status(b'{"state": "running"}')
    folder.write_result(Result(3, "lost"))
    assert folder.record() == record("one")
    assert folder.endpoint() == Endpoint("127.0.0.1", 1, 2)
    assert folder.last_status() == b'{"state": "running"}'
    assert folder.result() == Result(3, "lost")


def test_the_token_says_nothing_of_the_secret() -> None:
    one, other = JobFolder.create(record("one")), JobFolder.create(record("other"))
    assert one.token() != other.token()
    assert one.secret.read_text() not in one.token()


def test_a_name_may_be_used_again_once_its_job_is_over() -> None:
    folder = JobFolder.create(record("one", launcher_pid=os.getpid()))
    secret = folder.secret.read_text()
    with pytest.raises(UsageError, match="running: choose another"):
        JobFolder.create(record("one"))
    folder.write_result(Result(0, ""))
    again = JobFolder.create(record("one"))
    assert again.result() is None
    assert again.secret.read_text() != secret


def test_the_newest_running_job_is_found_or_else_the_newest() -> None:
    with pytest.raises(JobNotFound, match="start one with 'ftrain run'"):
        JobFolder.find(None)
    JobFolder.create(record("older", created=1.0, launcher_pid=os.getpid()))
    JobFolder.create(record("newer", created=2.0))
    assert JobFolder.find(None).record().name == "older"
    JobFolder.find("older").write_result(Result(0, ""))
    assert JobFolder.find(None).record().name == "newer"
    with pytest.raises(JobNotFound, match="'third'"):
        JobFolder.find("third")


def test_a_job_without_its_launcher_does_not_run() -> None:
    assert not JobFolder.create(record("one")).is_running()
    assert JobFolder.create(record("two", launcher_pid=os.getpid())).is_running()


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"one", b"two"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_fields_of_a_newer_version_do_not_hurt() -> None:
    folder = JobFolder.create(record("one"))
    path = folder.path / "job.json"
    known = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(known | {"new": 1}))
    assert folder.record() == record("one")


def test_a_damaged_record_is_named_and_hides_no_other_job() -> None:
    """A disk that failed leaves empty files; another version of ftrain, fields that are not known here."""
    JobFolder.create(record("good", created=1.0))
    bad = JobFolder.create(record("bad", created=2.0))
    (bad.path / "job.json").write_bytes(b"")
    assert JobFolder.find(None).record().name == "good"
    assert not bad.is_running()
    with pytest.raises(RecordDamaged, match=f"{bad.path}/job.json: .*remove {bad.path}"):
        JobFolder.find("bad").record()
    assert JobFolder.create(record("bad")).record().name == "bad", "the name can be used again"


@pytest.mark.parametrize("file", ["result.json", "controller.json", "status.json"])
def test_what_else_is_damaged_is_named(file: str) -> None:
    folder = JobFolder.create(record("one"))
    (folder.path / file).write_bytes(b"{")
    assert JobFolder.find(None).record().name == "one"
    with pytest.raises(RecordDamaged, match=file):
        query.status(folder)
