from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ftrain


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FTRAIN_NODE_DIR"):
        monkeypatch.delenv(name, raising=False)


def run(function: Any, *arguments: Any, **named: Any) -> Any:
    with pytest.warns(ftrain.NotProtected, match="ftrain run"):
        return function(*arguments, **named)


def test_alone_it_trains_with_arguments_and_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    @ftrain.resilient
    def train(ctx: ftrain.Context, total: int, *, scale: float) -> list[int]:
        assert (ctx.rank, ctx.local_rank, ctx.world_size, ctx.generation, ctx.start_step) == (0, 0, 1, 1, 0)
        assert ctx.device == torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        assert dist.get_world_size() == 1
        ctx.track(model=nn.Linear(2, 2))
        steps = []
        for step in ctx.steps(total):
            steps.append(step)
            ctx.log("on", loss=torch.tensor(0.1) * scale, n=step)
        assert ctx.start_step == total
        return steps

    assert run(train, 2, scale=1.0) == [0, 1]
    assert capsys.readouterr().out.splitlines() == ["step=0 loss=0.100000001 n=0 on", "step=1 loss=0.100000001 n=1 on"]
    assert not dist.is_initialized()


def test_the_decorator_may_be_called() -> None:
    @ftrain.resilient()
    def train(ctx: ftrain.Context) -> int:
        """Trains."""
        return ctx.rank

    assert train.__doc__ == "Trains."
    assert run(train) == 0


def test_what_is_kept_is_said_before_the_first_step() -> None:
    """Given a protected script that tracks nothing, or only once it trains, then it hears so at once."""
    session: Any = SimpleNamespace(
        track=lambda objects: None, rewind_generators=lambda: None, begin=lambda: None, commit=lambda *_, **__: None
    )
    environment: Any = SimpleNamespace(
        deterministic_reduction=False, job=SimpleNamespace(start=None, generation=1, snapshot_every=1)
    )
    ctx = ftrain.Context(environment, torch.device("cpu"), session)
    with pytest.raises(ftrain.StepOrder, match=r"nothing is tracked: call ctx.track\(model="):
        next(ctx.steps(2))
    with pytest.raises(ftrain.StepOrder, match="nothing is tracked"):
        ctx.commit(0)
    model = nn.Linear(2, 2)
    ctx.track(model=model)
    for _ in ctx.steps(2):
        ctx.track(model=model)
        with pytest.raises(ftrain.StepOrder, match=r"call ctx\.track before the first step"):
            ctx.track(other=nn.Linear(2, 2))


def test_a_script_without_state_says_so() -> None:
    session: Any = SimpleNamespace(track=lambda objects: None, rewind_generators=lambda: None, begin=lambda: None)
    environment: Any = SimpleNamespace(deterministic_reduction=False, job=SimpleNamespace(start=None, generation=1))
    ctx = ftrain.Context(environment, torch.device("cpu"), session)
    ctx.track()
    assert next(ctx.steps(2)) == 0


def test_generators_are_put_back_where_the_start_is_read_first_after_track() -> None:
    """Given a script that asks how far the run is before it tracks, when its loop begins, then they are put back."""
    said: list[str] = []
    session: Any = SimpleNamespace(
        track=lambda objects: said.append("track"), rewind_generators=lambda: said.append("back")
    )
    environment: Any = SimpleNamespace(job=None, deterministic_reduction=False)
    ctx = ftrain.Context(environment, torch.device("cpu"), session)
    assert ctx.start_step == 0
    ctx.track(model=nn.Linear(2, 2))
    assert [ctx.start_step, ctx.start_step] == [0, 0]
    assert said == ["track", "back"]


def test_steps_are_committed_once_each_in_order() -> None:
    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        for step in range(ctx.start_step, 3):
            ctx.commit(step)
        with pytest.raises(ftrain.StepOrder, match="the next one is 3"):
            ctx.commit(2)
        for step in ctx.steps(5):
            ctx.commit(step)  # by hand, inside: no second time
        assert ctx.start_step == 5

    run(train)


def test_a_step_left_early_is_not_committed() -> None:
    @ftrain.resilient
    def train(ctx: ftrain.Context) -> int:
        for step in ctx.steps(5):
            if step == 2:
                break
        return ctx.start_step

    assert run(train) == 2


def test_what_cannot_be_tracked_is_refused_at_track(tmp_path: Path) -> None:
    class Bad:
        def state_dict(self) -> dict[str, Any]:
            return {"log": {"file": tmp_path}}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        with pytest.raises(ftrain.NotTrackable, match=r"bad\.log\.file \(pathlib\.PosixPath\)"):
            ctx.track(bad=Bad())
        with pytest.raises(ftrain.NotTrackable, match="no state_dict"):
            ctx.track(number=3)
        ctx.track(model=nn.Linear(1, 1))
        with pytest.raises(ValueError, match="model is tracked already"):
            ctx.track(model=nn.Linear(1, 1))

    run(train)


def test_errors_pass_through_when_nothing_protects() -> None:
    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(train)
    dist.destroy_process_group()
