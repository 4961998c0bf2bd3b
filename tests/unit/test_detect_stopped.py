"""Ranks that stand still before their first step are named: no operation tells that others wait for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from msgspec.structs import replace

from ftrain_launcher.detect.records import NodeReport, ProcessState, RankRecord
from ftrain_launcher.detect.stopped import STOPPED_SECONDS, Stopped
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
