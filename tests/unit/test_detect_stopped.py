"""Ranks that stand still before their first step are named: no operation tells that others wait for them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ftrain_launcher.detect.records import Collectives, NodeReport, Op, Operation, ProcessState, RankRecord
from ftrain_launcher.detect.stopped import STILL_SECONDS, STOPPED_SECONDS, Stopped
from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.rings.reader import CommReader

NODES = {0: "a", 1: "a", 2: "b"}


def report(node: str, *records: RankRecord, generation: int = 1, stopped: tuple[int, ...] = ()) -> NodeReport:
    return NodeReport(
        node=node, generation=generation, communicators=(), ranks=records, unrecorded=stopped, stopped=stopped
    )


def rank(number: int, letter: str, step: int = -1) -> RankRecord:
    return RankRecord(number, step, 1.0, (), process=ProcessState(letter, 1.0, letter))


def test_a_rank_that_is_stopped_before_its_first_step_is_named_once() -> None:
    judge = Stopped(1, NODES)
    judge.take(report("a", rank(0, "S"), rank(1, "T")), 10.0)
    judge.take(report("b", stopped=(2,)), 10.0)
    assert judge.verdicts(10.0 + STOPPED_SECONDS / 2) == []
    (verdict,) = judge.verdicts(10.0 + STOPPED_SECONDS)
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (1, 2))
    assert verdict.sentence == "ranks 1 on a, 2 on b have been stopped (T) for 1.0 s, before the first step"
    judge.take(report("b", stopped=(2,)), 11.2)
    assert judge.verdicts(11.2) == []


def test_who_went_on_has_trained_or_is_of_another_generation_is_not_named() -> None:
    judge = Stopped(1, NODES)
    judge.take(report("a", rank(0, "T"), rank(1, "T", step=4)), 10.0)
    judge.take(report("b", generation=2, stopped=(2,)), 10.0)
    judge.take(report("a", rank(0, "S"), rank(1, "T", step=4)), 10.5)
    judge.take(report("a", rank(0, "T"), rank(1, "T", step=4)), 11.0)
    assert judge.verdicts(11.5) == []


def test_who_had_ended_before_it_was_first_heard_of_has_ended() -> None:
    """The controller was started again: nodes without workers say so again."""
    judge = Stopped(1, NODES)
    judge.take(report("b"), 12.0)
    judge.take(report("a", rank(0, "S", step=7), rank(1, "T", step=7)), 12.0)
    judge.take(report("a", rank(1, "T", step=7)), 12.5)
    (verdict,) = judge.verdicts(13.0)
    assert verdict.ranks == (1,)


def still(number: int, seconds: float, letter: str = "S", *pending: Operation) -> RankRecord:
    """It has done a step, and nothing for so long."""
    place = Collectives(0, 1, 1 - len(pending), pending)
    return RankRecord(number, 7, seconds, (place,), process=ProcessState(letter, 1.0, letter), idle_seconds=seconds)


ALL_REDUCE = Operation(1, Op.ALL_REDUCE, 4, 6, 1, -1, 9.0, 0.0)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda age: [still(2, age)], True),
        (lambda age: [still(2, min(age, 2.0))], False),
        (lambda age: [still(2, age, "R")], False),
        (lambda age: [still(2, age, "S", ALL_REDUCE)], False),
        (lambda age: [], False),
        (None, False),
    ],
    ids=["nobody goes on", "one goes on", "one runs", "one is in an operation", "one is not seen", "one is not heard"],
)
def test_a_rank_that_is_stopped_is_named_where_nobody_goes_on(
    other: Callable[[float], list[RankRecord]] | None, *, named: bool
) -> None:
    """The others may wait for it in the store, of which no operation tells."""
    judge = Stopped(1, NODES)
    for age in range(7):
        judge.take(report("a", still(0, age), still(1, age, "T")), 10.0 + age)
        if other is not None:
            judge.take(replace(report("b", *other(age)), unrecorded=() if other(age) else (2,)), 10.0 + age)
        found = judge.verdicts(10.0 + age)
        assert [verdict.ranks for verdict in found] == ([(1,)] if named and age == STILL_SECONDS else [])
        assert all(one.sentence == "rank 1 on a has been stopped (T) for 5.0 s, and no rank goes on" for one in found)


class Counted(dict[int, str]):
    """Where each rank is; counts how often it is asked."""

    asked = 0

    def get(self, *one: Any) -> Any:
        self.asked += 1
        return super().get(*one)

    def __iter__(self) -> Iterator[int]:
        self.asked += len(self)
        return super().__iter__()


def test_a_nodes_report_costs_what_its_own_ranks_cost_however_many_others_there_are() -> None:
    nodes = Counted({number: f"node-{number}" for number in range(300)})
    judge = Stopped(1, nodes)
    for number in range(300):
        judge.take(report(f"node-{number}", rank(number, "S", step=7)), 10.0)
        assert judge.verdicts(10.0) == []
    assert nodes.asked <= len(nodes)


def test_a_rank_that_is_stopped_when_all_others_have_ended_is_named() -> None:
    """Its job would wait for it for ever. Those of a node that says nothing may go on."""
    judge = Stopped(1, NODES)
    judge.take(report("a", rank(0, "S", step=7), rank(1, "T", step=7)), 10.0)
    judge.take(report("b", rank(2, "R", step=7)), 10.0)
    judge.take(report("a", rank(1, "T", step=7)), 11.0)
    assert judge.verdicts(12.0) == []
    judge.take(report("b"), 12.0)
    (verdict,) = judge.verdicts(12.0)
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (1,))
    assert verdict.sentence == "rank 1 on a has been stopped (T) for 2.0 s, when all others had ended"


def test_who_is_about_to_end_is_not_named_nor_where_another_one_has_not_begun() -> None:
    judge = Stopped(1, NODES)
    ending = replace(rank(0, "S", step=7), ended=True)
    judge.take(report("a", ending, rank(1, "T", step=7)), 10.0)
    assert judge.verdicts(12.0) == []
    judge.take(report("b", replace(rank(2, "T", step=7), ended=True)), 12.0)
    judge.take(report("a", ending, rank(1, "S", step=7)), 12.0)
    assert judge.verdicts(14.0) == []


def test_a_worker_without_a_ring_is_told_to_be_stopped(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    try:
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        found = CommReader("a").read(1, [(0, 0, child), (1, 1, os.getpid())], tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (found.unrecorded, found.stopped) == ((0, 1), (0,))
