"""A rank at a planned stop, and its node's part; what they are together is in ``simulation/test_halt.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftrain.halt import HOLD_SECONDS_MAX, STAY_SECONDS_MAX, Halt
from ftrain.link import Halted
from ftrain_launcher.node.halt import NodeHalt
from ftrain_launcher.to_agent import GoOn, HaltAfter, Hold
from ftrain_snapshot.control import ControlPage, HaltMode

FORM: Any = SimpleNamespace(work=SimpleNamespace(nproc_per_node=2))


class Rank:
    """One whose waiting is what happens next, on a clock of its own."""

    def __init__(self, folder: Path, lane: int) -> None:
        self.page = ControlPage(folder)
        self.now = 0.0
        self.said: list[Halted] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.halt = Halt(self.page, lane, self.said.append, clock=lambda: self.now, pause=self.pause)

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    page = ControlPage(tmp_path, create=True)
    yield tmp_path
    page.close()


@pytest.fixture
def node(folder: Path) -> Iterator[NodeHalt]:
    node = NodeHalt("node-0", folder)
    yield node
    node.close()


@pytest.fixture
def ranks(folder: Path) -> Iterator[list[Rank]]:
    ranks = [Rank(folder, lane) for lane in range(2)]
    yield ranks
    for rank in ranks:
        rank.page.close()


def hold(node: NodeHalt, attempt: int = 1) -> int | None:
    held = asyncio.run(node.hold(Hold(1, attempt), FORM))
    return None if held is None else held.step


def test_a_rank_that_is_not_to_halt_goes_on_at_once(ranks: list[Rank]) -> None:
    assert not ranks[0].halt.arrive(0)
    assert ranks[0].now == 0.0


def test_ranks_wait_until_the_step_is_agreed_on_and_stay_after_it(node: NodeHalt, ranks: list[Rank]) -> None:
    first, second = ranks
    first.halt.arrive(3)
    second.halt.arrive(7)
    assert hold(node) == 7
    first.meanwhile = lambda: node.halt_after(HaltAfter(1, 8))
    assert not first.halt.arrive(4)
    assert first.now > 0.0
    assert second.halt.arrive(8)
    second.halt.stay(8, sealed=True)
    assert [(said.step, said.sealed) for said in second.said] == [(8, True), (8, False)]
    assert second.now >= STAY_SECONDS_MAX


def test_a_rank_that_stays_goes_on_when_the_halt_is_given_up(node: NodeHalt, ranks: list[Rank]) -> None:
    node.halt_after(HaltAfter(1, 8))
    assert node.stays(8)
    assert ranks[0].halt.arrive(8)
    ranks[0].meanwhile = lambda: node.go_on(GoOn(1))
    ranks[0].halt.stay(8, sealed=True)
    assert len(ranks[0].said) == 1
    assert ranks[1].halt.arrive(8), "who comes later captures the step as the others did"
    assert not ranks[1].halt.arrive(9)


def test_a_rank_that_could_not_capture_goes_on(node: NodeHalt, ranks: list[Rank]) -> None:
    node.halt_after(HaltAfter(1, 8))
    ranks[0].halt.stay(8, sealed=False)
    assert [said.sealed for said in ranks[0].said] == [False]
    assert ranks[0].now == 0.0


def test_a_rank_is_not_held_for_ever(node: NodeHalt, ranks: list[Rank]) -> None:
    ranks[0].halt.arrive(0)
    ranks[1].halt.arrive(0)
    hold(node)
    assert not ranks[0].halt.arrive(1)
    assert ranks[0].now >= HOLD_SECONDS_MAX
    assert [(said.step, said.sealed) for said in ranks[0].said] == [(1, False)]


def test_no_second_halt_begins_before_all_are_past_the_first(node: NodeHalt, ranks: list[Rank]) -> None:
    node.halt_after(HaltAfter(1, 8))
    node.go_on(GoOn(1))
    ranks[0].halt.arrive(9)
    ranks[1].halt.arrive(8)
    assert hold(node, attempt=2) is None
    ranks[1].halt.arrive(9)
    assert hold(node, attempt=2) == 9


def test_what_was_agreed_ends_with_the_generation(node: NodeHalt, ranks: list[Rank]) -> None:
    node.halt_after(HaltAfter(1, 8))
    node.clear()
    assert ranks[0].page.halt() == (HaltMode.GO_ON, -1)
    assert not ranks[0].halt.arrive(8)
