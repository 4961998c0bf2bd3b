"""ftrain.comm.worker: which optimizer marks steps, and what waits for an import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ftrain.comm import worker
from ftrain.comm.worker import OptimizerClock, when_imported
from ftrain.environment import read_environment


class Optimizer:
    """One of several."""


class Marks:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def mark(self, step: int) -> None:
        self.steps.append(step)

    def close(self) -> None:
        pass


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Marks:
    made = Marks()
    monkeypatch.setattr(worker, "_recorder", made)
    return made


def test_of_several_optimizers_the_first_marks(marks: Marks) -> None:
    clock = OptimizerClock(lambda: None)
    first, second = Optimizer(), Optimizer()
    for _ in range(3):
        clock.stepped(first)
        clock.stepped(second)
    assert marks.steps == [0, 1, 2]


def test_when_the_first_is_gone_the_next_goes_on(marks: Marks) -> None:
    clock = OptimizerClock(lambda: None)
    first, second = Optimizer(), Optimizer()
    clock.stepped(first)
    del first
    clock.stepped(second)
    assert marks.steps == [0, 1]


def test_without_a_recorder_a_mark_is_nothing() -> None:
    worker.mark_step(3)


def test_a_module_that_is_there_is_not_waited_for() -> None:
    done: list[str] = []
    when_imported("sys", lambda: done.append("now"))
    assert done == ["now"]


def test_a_module_that_comes_later_is_complete_when_the_action_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comes_later.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = len(sys.meta_path)
    seen: list[int] = []
    when_imported("comes_later", lambda: seen.append(sys.modules["comes_later"].answer))
    assert seen == []
    import comes_later  # type: ignore[import-not-found]

    assert seen == [comes_later.answer] == [42]
    assert len(sys.meta_path) == finders
    del sys.modules["comes_later"]


def test_a_module_that_does_not_exist_stays_missing() -> None:
    when_imported("never_there", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="never_there"):
        import never_there  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_it_is_on_only_where_the_agent_says_so(value: str, on: bool) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "FTRAIN_NODE_DIR": "/x"}
    job = read_environment({**variables, "FTRAIN_GENERATION": "1", "FTRAIN_RECORDER": value}).job
    assert job is not None
    assert job.recorder is on
