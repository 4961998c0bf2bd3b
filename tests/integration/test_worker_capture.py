"""Models with awkward state, captured at every step while they train on, and compared bit by bit."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
from integration import capture_modules, capture_optimizers
from integration.capture_case import Case
from integration.worker_lane import Rank
from integration.worker_states import assert_same
from torch import nn

from ftrain import flight, plan, restore, samples
from ftrain.capture import SnapshotDropped
from ftrain.errors import GenerationEnded
from ftrain.state import parameters_of, state_of
from ftrain_snapshot import arena, lane, manifest

STEPS = 7
CASES = {**capture_optimizers.CASES, **capture_modules.CASES}


def copied(objects: dict[str, Any]) -> dict[str, Any]:
    states = {name: copy.deepcopy(state_of(tracked)) for name, tracked in objects.items()}
    for name, tracked in objects.items():
        if isinstance(tracked, torch.optim.Optimizer):
            states[name]["params"] = [parameter.detach().clone() for parameter in parameters_of(tracked)]
            states[name]["alone"] = alone(tracked, objects)
    return states


def alone(optimizer: torch.optim.Optimizer, objects: dict[str, Any]) -> list[int]:
    """The numbers of the parameters that no module has."""
    modules = [tracked for tracked in objects.values() if isinstance(tracked, nn.Module)]
    held = {id(parameter) for module in modules for parameter in module.parameters()}
    return [number for number, parameter in enumerate(parameters_of(optimizer)) if id(parameter) not in held]


def fresh_like(make: Callable[[], Case], rank: Rank, states: dict[str, Any]) -> dict[str, Any]:
    """New objects of the same structure, or copies where a run has changed it."""
    try:
        objects = make().objects
        for name, state in states.items():
            probe = copy.deepcopy(objects[name])
            probe.load_state_dict(copy.deepcopy(state["state"]))
            if "alone" in state and state["alone"] != alone(objects[name], objects):
                raise ValueError("a parameter has been replaced")
        return make().objects
    except (RuntimeError, ValueError, KeyError, IndexError):
        objects = copy.deepcopy(rank.objects)
        for path, value in states["model"]["state"].items():
            owner, _, leaf = path.rpartition(".")
            buffers = objects["model"].get_submodule(owner)._buffers
            if leaf in buffers and buffers[leaf].shape != value.shape:
                buffers[leaf] = torch.empty_like(value)
        return objects


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and buffers so small that what counts for large models counts for small ones."""
    for module in (arena, lane, manifest, plan, flight, samples, restore):
        monkeypatch.setattr(module, "CHUNK_BYTES", 512)
    monkeypatch.setattr(plan, "SMALL_BYTES", 1 << 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", CASES)
def test_every_snapshot_is_the_state_at_its_commit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = CASES[name]()
    states: dict[int, dict[str, Any]] = {}
    sealed = []
    with warnings.catch_warnings(record=True) as caught, Rank(tmp_path, made.objects, room=3.0) as rank:
        warnings.simplefilter("always")
        for index in range(STEPS):
            made.step(index)  # while the last capture is under way
            rank.finish()
            for snapshot in rank.line.seals[len(sealed) :]:
                sealed.append(snapshot)
                objects = fresh_like(CASES[name], rank, states[snapshot.version])
                rank.read(snapshot, objects)
                assert_same(states[snapshot.version], copied(objects), f"{name}@{snapshot.version}")
            states[index] = copied(made.objects)
            rank.commit(index)
    drops = [str(warning.message) for warning in caught if warning.category is SnapshotDropped]
    for path in made.dropped:
        assert any(path in text for text in drops), drops
    assert bool(drops) == bool(made.dropped), drops
    assert len(rank.line.skips) == len(drops) <= 1
    assert len(rank.line.seals) == STEPS - len(drops)


def test_what_does_not_change_is_not_copied_again(tmp_path: Path) -> None:
    """Given a large frozen part, when it is captured again, then only what steps change is copied."""
    model = nn.Sequential(nn.Linear(1024, 4096), nn.Linear(4096, 16))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        for index in range(4):
            model(torch.randn(2, 1024)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            snapshot = rank.commit(index)
            rank.finish()
            header = rank.region(snapshot).header()[1]
            assert header is not None
            if index == 0:
                assert rank.region(snapshot).copied_bytes == header.unit_bytes
            if index > 1:
                assert rank.region(snapshot).copied_bytes <= 3 << 20
                assert header.reference == rank.line.seals[-2]
        assert header.data_bytes > 16 << 20


@pytest.mark.parametrize("way", ["counted", "by_data"])
def test_a_write_between_commit_and_copy_drops_the_snapshot_and_is_told(tmp_path: Path, way: str) -> None:
    """Given a write to a parameter after commit, when the copy is compared, then no snapshot is made of it."""
    model = nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(model.parameters())
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        for index in range(3):
            model(torch.randn(2, 512)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            state = copied(rank.objects)
            if index == 1:  # hold the thread back: the write comes before the copy
                rank.capturer._crew.take = lambda flight: None  # type: ignore[method-assign]
            snapshot = rank.commit(index)
            if index == 1:
                with torch.no_grad():
                    (model.weight.data if way == "by_data" else model.weight).mul_(0.5)
                del rank.capturer._crew.take
                assert rank.capturer._flight is not None
                rank.capturer._crew.take(rank.capturer._flight)
                with pytest.warns(SnapshotDropped, match=r"step 1 was dropped: model\.weight changed"):
                    rank.finish()
                assert rank.line.skips == [snapshot]
        rank.finish()
        assert [snapshot.version for snapshot in rank.line.seals] == [0, 2]
        objects = {"model": (fresh := nn.Linear(512, 512)), "optimizer": torch.optim.AdamW(fresh.parameters())}
        rank.read(rank.line.seals[-1], objects)
        assert_same(state, copied(objects), "")


@pytest.mark.parametrize("error", [GenerationEnded, SystemExit])
def test_a_signal_while_the_training_thread_copies_loses_no_chunk(tmp_path: Path, error: type[BaseException]) -> None:
    """Given a signal that ends the generation while the optimizer waits for the copy, when the capture is finished,
    then it is sealed, and at once."""
    model = nn.Linear(1024, 2048)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        rank.capturer._crew.take = lambda flight: None  # type: ignore[method-assign]
        snapshot = rank.commit(0)
        del rank.capturer._crew.take
        under_way = rank.capturer._flight
        assert under_way is not None
        copy_chunk, copied_by_training = under_way._copy, []

        def interrupted(chunk: int) -> None:
            if threading.current_thread() is threading.main_thread():
                copied_by_training.append(chunk)
                if chunk == 3:
                    raise error
            copy_chunk(chunk)

        under_way._copy = interrupted  # type: ignore[method-assign]
        model(torch.randn(2, 1024)).sum().backward()
        with pytest.raises(error):
            optimizer.step()
        assert copied_by_training == [0, 1, 2, 3]
        rank.capturer._crew.take(under_way)
        rank.finish()
        assert rank.line.seals == [snapshot]
        state = copied(rank.objects)
        objects = {"model": (fresh := nn.Linear(1024, 2048)), "optimizer": torch.optim.SGD(fresh.parameters(), lr=0.1)}
        rank.read(snapshot, objects)
        assert_same(state, copied(objects), "")
