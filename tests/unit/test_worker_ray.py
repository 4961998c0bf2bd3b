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
        get=lambda answer, timeout: answer,
        is_initialized=lambda: True,
        get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"),
        exceptions=SimpleNamespace(
            RayActorError=ConnectionError, ActorUnavailableError=ConnectionAbortedError, GetTimeoutError=TimeoutError
        ),
        util=SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: False))),
    )
    monkeypatch.setitem(sys.modules, "ray", made_up)
    return found


class Fails:
    """A method of an actor that cannot be asked."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def remote(self, *_: Any) -> Any:
        raise self._errors.pop(0)


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
    ((name,),) = owner.farewell.asked
    assert {asked[2] for asked in owner.heard.asked} == {name}, "one who listens, to the end"
    job.stop()
    assert owner.signal.asked == [(2,)]


def test_waiting_has_an_end(actors: dict[str, Any]) -> None:
    actors["j"] = SimpleNamespace(heard=Remote(([], 1, None)))
    with pytest.raises(TimeoutError, match="runs still"):
        on_ray.RayJob.attach("j").wait(timeout_seconds=0.0)


def test_an_owner_that_is_lost_while_it_is_asked_is_the_jobs_end(actors: dict[str, Any]) -> None:
    actors["j"] = SimpleNamespace(heard=Fails(ConnectionError()), status=Fails(ConnectionError()))
    assert on_ray.RayJob.attach("j").wait() == 6
    with pytest.raises(on_ray.RayJobNotFound, match="no job named 'j'"):
        on_ray.RayJob.attach("j").status()


def test_a_line_that_is_down_for_a_moment_is_no_end(actors: dict[str, Any]) -> None:
    heard = Fails(ConnectionAbortedError(), TimeoutError(), ConnectionError())
    actors["j"] = SimpleNamespace(heard=heard, status=Fails(ConnectionAbortedError()))
    job = on_ray.RayJob.attach("j")
    assert job.status() is None
    assert job.wait() == 6, "asked again"


def test_how_a_job_ended_is_known_from_then_on(actors: dict[str, Any]) -> None:
    actors["j"] = SimpleNamespace(heard=Remote(([], 1, (3, ""))), farewell=Remote(None))
    job = on_ray.RayJob.attach("j")
    assert job.wait() == 3
    del actors["j"]
    assert job.wait() == 3


def test_a_command_that_is_killed_is_not_the_jobs_end(actors: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, exit_code=-9)
    actors["j"] = SimpleNamespace(heard=Remote(([], 1, None), ([], 1, (0, ""))), farewell=Remote(None))
    assert on_ray.RayJob.start("/x/train.py", nodes=1, name="j").wait() == 0


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        ((), {"nodes": 0}, "nodes=0: give a number from 1 on, or"),
        ((), {"nodes": "3-4"}, "nodes='3-4'"),
        ((), {"nodes": True}, "nodes=True"),
        ((), {"nodes": 2, "workers_per_node": "auto"}, "workers_per_node='auto': give a number from 1 on, or \"gpu\""),
        ((), {"nodes": 2, "spares": -1}, "spares=-1: give a number from 0 on"),
        ((), {"nodes": 2, "name": ""}, "name=''"),
        ((), {"nodes": 2, "options": "--parity 1"}, "options='--parity 1': give a sequence of texts"),
        (("--epochs", 3), {"nodes": 2}, "give a sequence of texts"),
    ],
)
@pytest.mark.usefixtures("actors")
def test_what_describes_no_job_is_refused_in_one_line(
    words: tuple[Any, ...], given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = command(monkeypatch)
    with pytest.raises(on_ray.RayJobInvalid) as refused:
        on_ray.RayJob.start("/x/train.py", *words, **given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert commands == []


@pytest.mark.usefixtures("actors")
def test_a_script_has_a_path() -> None:
    with pytest.raises(on_ray.RayJobInvalid, match="script='': give the path"):
        on_ray.run("", nodes=1)


@pytest.mark.usefixtures("actors")
def test_a_program_that_is_on_no_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    with pytest.raises(on_ray.RayUnavailable, match=r"connected to no Ray cluster: call ray\.init first"):
        on_ray.RayJob.attach("j")
    monkeypatch.setattr(sys.modules["ray"].util.client.ray, "is_connected", lambda: True)
    with pytest.raises(on_ray.RayUnavailable, match=r"client \(ray://\)"):
        on_ray.run("/x/train.py", nodes=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(on_ray.RayUnavailable, match="pip install"):
        on_ray.run("/x/train.py", nodes=1)


@pytest.mark.usefixtures("actors")
def test_a_job_that_is_not_there_is_told() -> None:
    with pytest.raises(on_ray.RayJobNotFound, match="no job named 'other' is in this Ray cluster"):
        on_ray.RayJob.attach("other")
