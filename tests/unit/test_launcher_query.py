"""Questions to a controller that may be away, and pids that are never wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.test_launcher_jobs import NOBODY, record

from ftrain_launcher import query
from ftrain_launcher.errors import ControllerAway, JobHasEnded, UsageError
from ftrain_launcher.jobs import Endpoint, JobFolder, Result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    monkeypatch.setenv("FTRAIN_HOME", str(tmp_path))
    return JobFolder.create(msgspec.structs.replace(record("one"), launcher_pid=os.getpid()))


def answer(pid: int) -> dict[str, Any]:
    ranks = [{"rank": 0, "pid": pid, "state": "running"}, {"rank": 1, "pid": None, "state": "finished"}]
    node = {"name": "node-0", "agent_pid": pid, "daemon_pid": pid, "ranks": ranks}
    return {"state": "running", "controller": {"pid": pid}, "nodes": [node]}


def test_pids_of_living_processes_stay() -> None:
    assert query.only_live_pids(answer(os.getpid())) == answer(os.getpid())


def test_pids_of_dead_processes_go() -> None:
    shown = query.only_live_pids(answer(NOBODY))
    node = shown["nodes"][0]
    assert (shown["controller"]["pid"], node["agent_pid"], node["daemon_pid"]) == (None, None, None)
    assert [(r["pid"], r["state"]) for r in node["ranks"]] == [(None, "exited"), (None, "finished")]


@pytest.mark.parametrize(("state", "alive"), [("S", True), ("Z", False), ("X", False)])
def test_a_zombie_is_dead(monkeypatch: pytest.MonkeyPatch, state: str, alive: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"7 (a (strange) name) {state} 1 7")
    assert (query.only_live_pids(answer(7))["controller"]["pid"] == 7) is alive


def test_a_controller_that_is_not_there_is_said_to_be_away(folder: JobFolder) -> None:
    with pytest.raises(ControllerAway, match="'one' does not answer"):
        query.ask(folder, "/api/status", wait_seconds=0)
    folder.write_result(Result(1, "it never began"))
    with pytest.raises(ControllerAway):
        query.status(folder)


def test_a_job_that_is_over_is_not_to_be_asked_again(folder: JobFolder) -> None:
    folder.write_endpoint(Endpoint("127.0.0.1", 1, None))
    record = msgspec.structs.replace(folder.record(), launcher_pid=NOBODY)
    (folder.path / "job.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(JobHasEnded, match="'one' has ended: its launcher is gone"):
        query.ask(folder, "/api/nodes", wait_seconds=0)
    folder.write_result(Result(0, "training finished"))
    with pytest.raises(JobHasEnded, match="'one' has ended: training finished"):
        query.ask(folder, "/api/nodes", wait_seconds=9)


def test_the_last_status_answers_for_a_job_that_has_ended(folder: JobFolder) -> None:
    folder.write_status(json.dumps(answer(NOBODY)).encode())
    folder.write_result(Result(3, "lost"))
    shown = query.status(folder)
    assert (shown["state"], shown["message"], shown["controller"]) == ("failed", "lost", {"pid": None})
    folder.write_result(Result(0, "training finished"))
    assert query.status(folder)["state"] == "finished"


class Connection:
    """Stands in for http.client's: answers from a list, and keeps what was asked."""

    answers: list[tuple[int, bytes] | Exception]
    asked: list[tuple[str, str, bytes | None, dict[str, str]]]

    def __init__(self, host: str, port: int, timeout: float) -> None:
        assert 0 < timeout <= 1
        self.status, self._data = 0, b""

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        self.asked.append((method, path, body, headers))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.status, self._data = answer

    def getresponse(self) -> Connection:
        return self

    def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        pass


@pytest.fixture
def connection(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> type[Connection]:
    folder.write_endpoint(Endpoint("127.0.0.1", 1, os.getpid()))
    Connection.answers, Connection.asked = [], []
    monkeypatch.setattr("http.client.HTTPConnection", Connection)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return Connection


def test_a_question_waits_for_a_controller_on_its_way_back(folder: JobFolder, connection: type[Connection]) -> None:
    connection.answers = [ConnectionRefusedError(), (200, b'{"a": 1}')]
    assert query.ask(folder, "/api/status") == {"a": 1}
    assert [(method, path) for method, path, _, _ in connection.asked] == [("GET", "/api/status")] * 2
    assert connection.asked[0][3] == {"Authorization": f"Bearer {folder.token()}"}


def test_a_wish_is_posted_and_a_refusal_is_one_line(folder: JobFolder, connection: type[Connection]) -> None:
    connection.answers = [(404, b"no rank 9: ranks are [0, 1]")]
    with pytest.raises(UsageError, match="no rank 9"):
        query.ask(folder, "/api/inject", {"kind": "kill-worker", "rank": 9})
    method, _, body, _ = connection.asked[0]
    assert (method, body) == ("POST", b'{"kind":"kill-worker","rank":9}')


def test_a_controller_that_does_not_take_the_token_is_named(folder: JobFolder, connection: type[Connection]) -> None:
    connection.answers = [(401, b"this job's token is wanted")]
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1 does not take this job's token: the secret in the job's"):
        query.ask(folder, "/api/nodes")


def test_who_listens_where_an_ended_jobs_controller_did_is_told_nothing(
    folder: JobFolder, connection: type[Connection]
) -> None:
    """Addresses and ports are given again."""
    connection.answers = [(404, b"")]
    folder.write_endpoint(Endpoint("127.0.0.1", 1, None))
    folder.write_result(Result(0, "training finished"))
    with pytest.raises(JobHasEnded, match="'one' has ended: training finished"):
        query.ask(folder, "/api/nodes")
    assert connection.asked == []
