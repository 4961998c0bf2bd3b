"""A rank that waits for a processor is not slow; one that is slow by itself is, also when it waits a little."""

from __future__ import annotations

import pytest

from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.quotas import Quotas
from ftrain_launcher.detect.records import (
    Collectives,
    CollectivesStep,
    Communicator,
    NodeReport,
    Op,
    Operation,
    RankRecord,
    RankStep,
)
from ftrain_launcher.detect.slow import STEPS_SKIPPED
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.rings.step_log import spread, spread_helpers, spread_throttled

WORLD = Communicator("world", (0, 1, 2, 3))
STEP_SECONDS = 0.02


def judged(
    own: float, starved: float = 0.0, steps: int = 60, peers_starved: float = 0.0, *, uses_processor: bool = False
) -> list[Verdict]:
    """Rank 1's own time and what it was starved, in steps in which its peers take 20 ms each."""
    pace, found = Pace(1, dict.fromkeys(range(4), "node0")), []
    entered = Collectives(0, 1, 1, (), Operation(1, Op.ALL_REDUCE, 4, 6, 1, -1, 0.0, 0.0))
    for number in range(steps):
        done = []
        for rank in range(4):
            outside = own if rank == 1 else STEP_SECONDS
            inside = max(own, STEP_SECONDS) - outside + 0.001
            used = (CollectivesStep(0, 1, 1 << 20, inside, inside),)
            waited = starved if rank == 1 else peers_starved
            processor = outside - waited if uses_processor else 0.0
            done.append(RankStep(rank, number, outside + inside, outside, used, processor, waited))
        records = tuple(RankRecord(rank, number, 0.0, (entered,)) for rank in range(4))
        one = NodeReport(node="node0", generation=1, communicators=(WORLD,), ranks=records, steps=tuple(done))
        pace.take(one, number * 0.05)
        found += pace.verdicts(number * 0.05)
    return found


@pytest.mark.parametrize("own", [0.03, 0.06, 0.2])
def test_a_starved_rank_is_not_named(own: float) -> None:
    assert judged(own, own - STEP_SECONDS) == []


def test_nor_one_most_of_whose_excess_is_starvation() -> None:
    assert judged(0.042, 0.021) == []


@pytest.mark.parametrize("own", [0.024, 0.03, 0.06])
def test_where_the_kernel_does_not_tell_it_is(own: float) -> None:
    assert [verdict.ranks for verdict in judged(own)] == [(1,)]


def test_a_slow_rank_is_named_though_all_are_starved() -> None:
    """Ranks that share too few processors take them from each other; that is nobody's excess."""
    (verdict,) = judged(0.033, 0.010, steps=25, peers_starved=0.010, uses_processor=True)
    assert verdict.ranks == (1,)
    assert verdict.details["ratio"] == "1.650"
    assert verdict.details["own_seconds"] == "0.033000"


@pytest.mark.parametrize(("seconds", "named"), [(0.4, False), (1.4, False), (1.7, True)])
def test_where_ranks_crowd_one_that_is_behind_and_does_not_compute_must_be_so_for_long(
    seconds: float, *, named: bool
) -> None:
    """It may wait for a helper that waits for a processor: seen for 0.2 s, in twenty steps of some milliseconds."""
    steps = STEPS_SKIPPED + round(seconds / 0.034)
    assert bool(judged(0.033, 0.010, steps, peers_starved=0.010)) == named


@pytest.mark.parametrize(("steps", "named"), [(14, False), (20, False), (40, True)])
def test_where_ranks_crowd_one_that_computes_a_little_longer_must_do_so_until_that_adds_up(
    steps: int, *, named: bool
) -> None:
    """Beside others that take its cache a rank needed 3 ms more of 10 in fourteen steps, and was named for that."""
    assert bool(judged(0.0228, 0.010, STEPS_SKIPPED + steps, peers_starved=0.010, uses_processor=True)) == named
    if not named:  # on a machine of its own it is told as soon as it shows
        assert judged(0.026, 0.0, STEPS_SKIPPED + steps, uses_processor=True)


@pytest.mark.parametrize(("starved", "named"), [(0.004, True), (0.010, False)])
def test_the_more_ranks_crowd_the_more_must_one_be_behind(starved: float, *, named: bool) -> None:
    """In steps of 2 ms, for most of which ranks waited for processors, one was behind by 0.11 for a hundred steps."""
    assert bool(judged(0.0222, starved, 300, peers_starved=starved, uses_processor=True)) == named


def test_who_uses_a_processor_for_longer_waits_for_one_for_longer() -> None:
    assert judged(0.030, 0.018, peers_starved=0.008) == []
    assert judged(0.030, 0.012, peers_starved=0.008, uses_processor=True)[0].ranks == (1,)
    assert judged(0.030, 0.018, peers_starved=0.008, uses_processor=True) == []


def test_no_peer_of_a_starved_rank_is_slow() -> None:
    assert judged(0.02, 0.02) == []


def test_what_a_report_tells_is_spread_over_the_steps_that_were_on_no_processor() -> None:
    steps = [RankStep(0, number, 0.1, 0.08, (), processor) for number, processor in enumerate((0.06, 0.02))]
    assert [step.starved_seconds for step in spread(steps, 0.04)] == pytest.approx([0.01, 0.03])
    assert [step.starved_seconds for step in spread(steps, 1.0)] == pytest.approx([0.02, 0.06])
    assert [step.starved_seconds for step in spread(steps, 0.0)] == [0.0, 0.0]
    assert spread([], 1.0) == []


def test_what_a_starved_helper_may_have_kept_it_waiting_is_of_what_it_neither_ran_nor_was_starved() -> None:
    steps = [RankStep(0, number, 0.1, 0.08, (), 0.02, starved) for number, starved in enumerate((0.0, 0.04, 0.07))]
    assert [step.helpers_starved_seconds for step in spread_helpers(steps, 0.5)] == pytest.approx([0.03, 0.01, 0.0])
    assert spread_helpers(steps, 0.0) == steps


def test_a_quota_held_back_the_longest_steps_the_most() -> None:
    steps = [RankStep(0, number, 0.1, own) for number, own in enumerate((0.02, 0.03, 0.07))]
    told = {
        0.03: [0.0, 0.005, 0.025],
        0.06: [0.0, 0.01, 0.05],
        0.09: [0.01, 0.02, 0.06],
        9.0: [0.02, 0.03, 0.07],
    }
    for seconds, held_back in told.items():
        assert [step.throttled_seconds for step in spread_throttled(steps, seconds)] == pytest.approx(held_back)
    assert spread_throttled(steps, 0.0) == steps
    assert spread_throttled(steps[:1], 0.01)[0].throttled_seconds == 0.01
    assert spread_throttled([], 1.0) == []


def levelled(*throttled: float, steps: int = 60) -> list[float]:
    """What ranks' own times count at last, that take 20 ms and are held back for so long in every fourth step."""
    quotas = Quotas()
    for number in range(steps):
        bursts = [seconds if number % 4 == 3 else 0.0 for seconds in throttled]
        taken = {
            rank: RankStep(rank, number, 0.1, 0.02 + burst, throttled_seconds=burst)
            for rank, burst in enumerate(bursts)
        }
        found, _ = quotas.level(taken)
    return list(found.values())


def test_what_a_quota_holds_back_in_bursts_counts_evenly_where_the_others_are_not_held_back() -> None:
    assert levelled(0.0, 0.04, 0.0) == [0.02, pytest.approx(0.03, rel=0.1), 0.02]
    assert levelled(0.0, 0.04) == [0.02, pytest.approx(0.03, rel=0.1)]
    assert levelled(0.04, 0.04, 0.04, 0.06) == [0.06, 0.06, 0.06, 0.08]
    assert levelled(0.0, 0.0) == [0.02, 0.02]
