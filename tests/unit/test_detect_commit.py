"""The detector at the end of a step, where ranks wait for rank 0's word."""

from __future__ import annotations

import msgspec
import pytest
from unit.rank_reports import LONG, PAIR, WORLD, beyond, called, committing, inside, rank, told

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import NodeReport, ProcessState, RankRecord
from ftrain_launcher.detect.verdict import Kind


@pytest.mark.parametrize(("letter", "seconds"), [("T", 0.6), ("S", 61.0)])
def test_rank_0_is_named_where_the_others_wait_for_it_at_the_end_of_a_step(letter: str, seconds: float) -> None:
    others = [committing(number, seconds) for number in (1, 2, 3)]
    hung = rank(0, beyond(called(7, seconds + 0.3)), letter=letter, idle=seconds + 0.3)
    (verdict,) = told(*others, hung)
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (0,))
    assert "rank 0 on node-0 has not entered commit #11 of the world group" in verdict.sentence
    earlier = [committing(number, 0.7 * seconds) for number in (1, 2, 3)]
    assert told(*earlier, rank(0, beyond(called(7, 0.7 * seconds)), letter=letter, idle=0.7 * seconds)) == []


def test_rank_0_may_have_ended_before_the_others_have_read_its_last_word() -> None:
    """They were given no processor meanwhile, say."""
    others = [committing(number, 3.0) for number in (1, 2, 3)]
    ended = msgspec.structs.replace(rank(0, beyond(called(7, 3.3)), letter="Z", idle=0.2), ended=True)
    assert told(*others, ended) == []
    others = [committing(number, 61.0) for number in (1, 2, 3)]
    ended = msgspec.structs.replace(rank(0, beyond(called(7, 61.3)), letter="", idle=61.3), ended=True)
    (verdict,) = told(*others, ended)
    assert verdict.ranks == (0,)


def test_who_waits_for_memory_at_the_end_of_a_step_is_waited_for_as_long_as_a_first_step() -> None:
    """Given a node that came in later, and whose daemon is slower than the others' were."""
    others = [rank(number, inside(called(8, LONG))) for number in (0, 1, 2)]
    at_end = rank(3, beyond(called(7, LONG + 0.1)))
    assert [verdict.ranks for verdict in told(*others, at_end)] == [(3,)]
    assert told(*others, msgspec.structs.replace(at_end, holds_seconds=LONG)) == []
    others = [rank(number, inside(called(8, 61.0))) for number in (0, 1, 2)]
    at_end = rank(3, beyond(called(7, 61.0)), idle=61.0)
    assert [v.ranks for v in told(*others, msgspec.structs.replace(at_end, holds_seconds=61.0))] == [(3,)]


def test_rank_0_may_write_a_checkpoint_of_its_own_before_the_others_go_on() -> None:
    detector = Detector(1, {})
    for seconds, now in ((0.3, 100.0), (100.0, 199.7)):
        used = ProcessState("S", 0.1 * now, "S")
        writes = RankRecord(0, 10, seconds, (beyond(called(7, seconds)),), process=used, idle_seconds=seconds)
        others = (committing(number, seconds - 0.3) for number in (1, 2, 3))
        detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=(writes, *others)), now)
        assert detector.verdicts(now) == []


@pytest.mark.parametrize(
    ("letter", "seconds", "named"), [("T", 0.6, (1,)), ("T", 61.0, (1,)), ("S", 61.0, (0, 1)), ("S", 59.0, ())]
)
def test_rank_0_may_wait_in_the_store_for_a_rank_that_has_not_done_the_step_either(
    letter: str, seconds: float, named: tuple[int, ...]
) -> None:
    """Or for a file of its: that is no operation. A rank that is stopped is why; of two that sleep nobody can tell."""
    last = beyond(called(7, seconds + 0.3))
    others = [committing(number, seconds) for number in (2, 3)]
    verdicts = told(*others, rank(0, last, idle=seconds + 0.3), rank(1, last, letter=letter, idle=seconds + 0.3))
    assert [verdict.ranks for verdict in verdicts] == ([named] if named else [])
    for verdict in verdicts:
        first = f"rank {named[0]} on node-{named[0]} has not entered commit #11 of the world group for {seconds:.1f} s"
        assert verdict.sentence.startswith(f"{first}; ranks 2, 3 wait for it; ")


def test_who_has_done_the_step_or_is_in_an_operation_is_not_waited_for_with_rank_0() -> None:
    last = beyond(called(7, 61.3))
    done = msgspec.structs.replace(rank(1, last, idle=61.3), step=11)
    others = [committing(2, 61.0), rank(3, last, inside(called(8, 61.0), 1), idle=61.3)]
    (verdict,) = told(*others, rank(0, last, idle=61.3), done)
    assert verdict.ranks == (0,)


@pytest.mark.parametrize(("busy", "named"), [(1, (1,)), (0, ())])
def test_of_those_who_have_not_done_the_step_the_one_that_computes_is_waited_for(
    busy: int, named: tuple[int, ...]
) -> None:
    """Rank 0 may do so for ten minutes."""
    detector = Detector(1, {})
    for seconds, now in ((0.3, 100.0), (61.0, 160.7)):
        both = []
        for number in (0, 1):
            used = ProcessState("S", now if number == busy else 1.0, "S")
            last = (beyond(called(7, seconds)),)
            both.append(RankRecord(number, 10, seconds, last, process=used, idle_seconds=seconds))
        others = (committing(number, seconds - 0.3) for number in (2, 3))
        detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=(*both, *others)), now)
        verdicts = detector.verdicts(now)
    assert [verdict.ranks for verdict in verdicts] == ([named] if named else [])


def test_who_sleeps_beside_a_rank_that_is_stopped_may_wait_for_it_and_one_that_computes_does_not() -> None:
    """In scripts whose steps do not end together, too."""
    others = [rank(number, inside(called(8, LONG))) for number in (2, 3)]
    late = rank(0, beyond(called(7, LONG + 0.1)), letter="R")
    stopped = rank(1, beyond(called(7, LONG + 0.1)), letter="T")
    (verdict,) = told(*others, late, stopped)
    assert verdict.ranks == (1,)
    detector = Detector(1, {})
    for used, now in ((0.5, 100.0), (1.0, 100.5)):
        computes = msgspec.structs.replace(late, process=ProcessState("R", used, "R"), idle_seconds=now - 99.0)
        ranks = (*others, computes, stopped)
        detector.take(NodeReport(node="a", generation=1, communicators=(WORLD, PAIR), ranks=ranks), now)
    (verdict,) = detector.verdicts(100.5)
    assert verdict.ranks == (1, 0)


@pytest.mark.parametrize(("letter", "state"), [("Z", "its process is dead (Z)"), ("", "its process is gone")])
def test_of_a_rank_that_is_dead_the_sentence_says_so_first(letter: str, state: str) -> None:
    others = [rank(number, inside(called(8, LONG))) for number in (0, 2, 3)]
    (verdict,) = told(*others, rank(1, beyond(called(7, LONG + 0.1)), letter=letter))
    begins = "rank 1 on node-1 is dead, and has not entered all_reduce #8 of 'world' (ranks 0-3) for 1.0 s; "
    assert verdict.sentence == f"{begins}ranks 0, 2, 3 wait for it; {state}"
