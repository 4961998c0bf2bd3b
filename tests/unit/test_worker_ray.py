"""`ftrain.ray`, with a Ray that is made up: which command it gives, and what it asks the actor that owns a job."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ftrain import ray as on_ray


class Remote:
    """A method of an actor: what is asked is noted, the answers are given in turn."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._answers = list(answers)

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The cluster's actors by name."""
    found: dict[str, Any] = {}

    def get_actor(name: str, namespace: str) -> Any:
        assert namespace == "ftrain"
        if name not in found:
            raise ValueError(name)
        return found[name]

    made_up = ModuleType("ray")
    vars(made_up).update(
        get_actor=get_actor,
        get=lambda answer: answer,
        is_initialized=lambda: True,
        get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"),
        exceptions=SimpleNamespace(RayActorError=ConnectionError),
    )
    monkeypatch.setitem(sys.modules, "ray", made_up)
    return found


def command(monkeypatch: pytest.MonkeyPatch, exit_code: int = 0) -> list[list[str]]:
    """The commands that are given, which end at once."""
    given: list[list[str]] = []

    def popen(words: list[str], **_: Any) -> Any:
        given.append(words)
        return SimpleNamespace(wait=lambda timeout: exit_code)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return given


@pytest.mark.usefixtures("actors")
def test_a_job_is_the_command_on_the_cluster_that_the_program_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    given = command(monkeypatch)
    on_ray.run("/x/train.py", "--lr", "1", nodes="2:3", workers_per_node="gpu", name="j", options=("--parity", "1"))
    words = " ".join(given[0][1:])
    assert words.startswith(
        "-m ftrain_launcher run --engine ray --name j --nnodes 2:3 --nproc-per-node gpu --spares 0 "
    )
    assert words.endswith("--ray-address 10.0.0.1:6379 --parity 1 -- /x/train.py --lr 1")


@pytest.mark.usefixtures("actors")
def test_a_job_that_fails_raises_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, exit_code=5)
    with pytest.raises(on_ray.RayJobFailed, match="job j ended with exit code 5") as failed:
        on_ray.run("/x/train.py", nodes=2, name="j")
    assert failed.value.exit_code == 5


@pytest.mark.usefixtures("actors")
def test_names_are_made_from_the_scripts_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch)
    names = {on_ray.RayJob.start("/x/train.py", nodes=1).name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("train-") for name in names)


def test_a_job_of_another_driver_is_asked_waited_for_and_ended_by_its_name(actors: dict[str, Any]) -> None:
    answers = (([], 1, None), ([(1, b"x")], 2, None), ([(1, b"y")], 3, (3, "")))
    owner = actors["j"] = SimpleNamespace(
        status=Remote({"generation": 2}), heard=Remote(*answers), signal=Remote(None), farewell=Remote(None)
    )
    job = on_ray.RayJob.attach("j")
    assert job.status() == {"generation": 2}
    assert job.wait() == 3
    assert len(owner.heard.asked) == 3
    assert owner.farewell.asked == [()]
    job.stop()
    assert owner.signal.asked == [(2,)]


def test_waiting_has_an_end(actors: dict[str, Any]) -> None:
    actors["j"] = SimpleNamespace(heard=Remote(([], 1, None)))
    with pytest.raises(TimeoutError, match="runs still"):
        on_ray.RayJob.attach("j").wait(timeout_seconds=0.0)


def test_an_owner_that_is_lost_while_it_is_asked_is_the_jobs_end(actors: dict[str, Any]) -> None:
    class Lost:
        def remote(self, *_: Any) -> Any:
            raise ConnectionError

    actors["j"] = SimpleNamespace(heard=Lost())
    assert on_ray.RayJob.attach("j").wait() == 6


@pytest.mark.usefixtures("actors")
def test_a_job_that_is_not_there_is_told() -> None:
    with pytest.raises(on_ray.RayJobNotFound, match="no job named 'other' is in this Ray cluster"):
        on_ray.RayJob.attach("other")
