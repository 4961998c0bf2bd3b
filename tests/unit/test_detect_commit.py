"""The detector at the end of a step, where ranks wait for rank 0's word."""

from __future__ import annotations

import msgspec
import pytest
from unit.rank_reports import LONG, WORLD, beyond, called, committing, inside, rank, told

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
