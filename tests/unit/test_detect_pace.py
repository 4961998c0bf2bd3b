"""Steps put side by side, roles, and transfers that grow."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ftrain_launcher.detect.aligned import PATIENCE_SECONDS, Aligned, Step
from ftrain_launcher.detect.asking import ASK_AGAIN_SECONDS, ASK_AGAIN_SECONDS_MAX
from ftrain_launcher.detect.pace import REPEAT_SECONDS, Pace
from ftrain_launcher.detect.records import (
    Channel,
    Collectives,
    CollectivesStep,
    Communicator,
    NodeReport,
    Op,
    Operation,
    RankRecord,
    RankStep,
)
from ftrain_launcher.detect.roles import Roles
from ftrain_launcher.detect.slow_links import SlowLinks

WORLD = Communicator("world", (0, 1, 2, 3))


def report(ranks: tuple[int, ...], *steps: int, least: float = 0.001, unrecorded: tuple[int, ...] = ()) -> NodeReport:
    done = tuple(
        RankStep(rank, step, 0.1, 0.09, (CollectivesStep(0, 1, 1 << 20, 0.01, least + 0.01 * rank),))
        for step in steps
        for rank in ranks
    )
    return NodeReport(
        node=f"node{ranks[0]}", generation=1, communicators=(WORLD,), ranks=(), steps=done, unrecorded=unrecorded
    )


def take(aligned: Aligned, one: NodeReport, now: float = 0.0) -> list[tuple[int, list[int]]]:
    return [(step.number, sorted(step.shares)) for step in aligned.take(one, aligned.numbers(one), now)]


def test_a_step_is_given_out_when_all_ranks_have_reported_it() -> None:
    aligned = Aligned(4)
    assert take(aligned, report((0, 1), 5, 6, 7)) == []
    assert take(aligned, report((2, 3), 5)) == [(5, [0, 1, 2, 3])]
    assert take(aligned, report((2, 3), 6, 7)) == [(6, [0, 1, 2, 3]), (7, [0, 1, 2, 3])]


def test_a_silent_node_is_not_waited_for_for_ever() -> None:
    aligned = Aligned(4)
    assert take(aligned, report((0, 1), 5)) == []
    assert take(aligned, report((0, 1), 6), PATIENCE_SECONDS) == [(5, [0, 1])]
    assert take(aligned, report((2, 3), 5, 6), PATIENCE_SECONDS) == [(6, [0, 1, 2, 3])]


def test_ranks_without_a_recorder_are_not_waited_for() -> None:
    aligned = Aligned(4)
    assert take(aligned, report((2,), 1, unrecorded=(3,))) == []
    assert take(aligned, report((0, 1), 1)) == [(1, [0, 1, 2])]


def roles_of(ranks: dict[int, tuple[list[tuple[Communicator, Op]], list[int]]]) -> list[list[int]]:
    """By rank: the operations that it has used, and the ranks with which it exchanges messages."""
    communicators: list[Communicator] = []
    roles = Roles(communicators)
    for rank, (used, peers) in ranks.items():
        for communicator, _ in used:
            if communicator not in communicators:
                communicators.append(communicator)
        record = RankRecord(
            rank,
            0,
            0.0,
            tuple(Collectives(i, 1, 1, (), Operation(1, op, 8, 6, 2, -1, 0.0, 0.0)) for i, (_, op) in enumerate(used)),
            tuple(Channel(0, peer, 1, 1, 1, 1) for peer in peers),
        )
        numbers = [communicators.index(communicator) for communicator, _ in used]
        roles.take(
            NodeReport(node="n", generation=1, communicators=tuple(c for c, _ in used), ranks=(record,)), numbers
        )
    return roles.groups()


def test_replicas_and_parts_of_a_layer_do_the_same() -> None:
    pairs = {name: Communicator(name, members) for name, members in {"a": (0, 1), "b": (2, 3), "c": (0, 2)}.items()}
    a, b, c = ((pairs[name], Op.ALL_REDUCE) for name in "abc")
    assert roles_of({0: ([a, c], []), 1: ([a], []), 2: ([b, c], []), 3: ([b], [])}) == [[0, 1, 2, 3]]


def test_stages_of_a_pipeline_do_not_though_they_share_the_loss() -> None:
    loss = (WORLD, Op.ALL_REDUCE)
    first, second = ((Communicator(name, members), Op.ALL_REDUCE) for name, members in (("s", (0, 2)), ("t", (1, 3))))
    ranks = {0: ([loss, first], [1]), 1: ([loss, second], [0]), 2: ([loss, first], [3]), 3: ([loss, second], [2])}
    assert roles_of(ranks) == [[0, 2], [1, 3]]


def test_a_group_that_only_broadcasts_does_not() -> None:
    pair = Communicator("pair", (0, 1))
    assert roles_of({0: ([(pair, Op.BROADCAST)], []), 1: ([(pair, Op.BARRIER)], [])}) == []


STEP_SECONDS = 0.1

RECORDED = {
    "quiet": """
        15 10 25 10 21 15 18 17 30 29 26 13 19 14 14 12 11 24 15 18 19 22 21 20 20 18 12 20 20 16 13 24 19 12 13
        16 15 11 13 11 13 18 35 22 19 25 14 13 27 20 17 22 20 22 18 17 20 22 21 19 16 15 12 16 16 19 24 21 18 18
        20 26 18 26 18 19 19 16 21 26 17 17 16 26 24 22 20 20 17 24 24 14 23 16 17 21 9 12 11 32 17 23 12 10 13
        17 21 21 8 16 14 18 15 26 20 17 18 24 25 18 20 20 13 22 22 16 22 15 20 24 22 17 20 19 17 16 17 15 14 21
        23 19 24 17 15 17 27 17 17 15 9 12 13 11 14 11 12 10 17 24 23 20 7 27 14 25 33 25 23 21 13 18 23 17 21
        17 18 19 10 10 18 26 16 10 52 39 20 26 24 24 30 37 26 27 33 38 29 25 38 32 29 19 31 26 36 22 18 18 17 23
        21 12 17 11 23 10 8 22 10 15 13 15 15 15 13 14 14 27 14 10 14 16 15 26 29 14 15 12 17 22 21 27 13 38 10
        22 15 26 21 10 55 41 18 24 13 27 21 12 12 18 16 8 15 18 11 12 15 13 11 10 15 19 17 22 12 13 12 20 21 15
        17 10 21 15 19 20 12 13 18 18 24 19 21 25 17 24 11 11 15 21
    """,
    "loss": """
        17 12 17 13 10 19 15 18 16 16 14 15 16 13 14 16 15 16 18 24 11 10 11 13 15 20 18 23 13 22 13 14 18 22 18
        16 13 16 14 11 11 14 11 11 11 10 11 12 10 12 12 10 217 14 12 14 13 15 16 17 15 13 9 13 9 8 11 17 14 15
        11 15 14 10 13 18 22 47 21 19 16 23 7 25 220 447 78 21 16 20 20 29 27 20 19 16 238 23 12 22 15 33 20 31
        21 27 31 35 18 26 20 12 16 234 20 37 21 60 14 13 13 21 26 222 32 18 38 53 35 19 23 22 10
    """,
}


def asked(least: list[float], ranks: tuple[int, ...] = WORLD.members) -> list[int]:
    """The steps at which probes are wanted, of transfers that take so long."""
    aligned, found = Aligned(len(ranks)), []
    links = SlowLinks(aligned.communicators)
    for number, seconds in enumerate(least):
        one, now = report(ranks, number, least=seconds), number * STEP_SECONDS
        steps: list[Step] = list(aligned.take(one, aligned.numbers(one), now))
        found += [slowed.step for step in steps for slowed in links.take(step, now)]
    return found


def test_transfers_that_stay_longer_ask_for_probes_now_and_ever_more_seldom() -> None:
    first, *later = asked([0.004] * 40 + [0.02] * 2000)
    assert 40 < first < 55
    apart = [(b - a) * STEP_SECONDS for a, b in pairwise([first, *later])]
    assert apart[:3] == pytest.approx([ASK_AGAIN_SECONDS, 2 * ASK_AGAIN_SECONDS, 4 * ASK_AGAIN_SECONDS], abs=0.2)
    assert apart[-1] == pytest.approx(ASK_AGAIN_SECONDS_MAX, abs=0.2)


def test_after_a_long_calm_it_is_asked_as_at_first() -> None:
    slow, calm = [0.02] * 30, [0.004] * 200
    first, second, third = asked([0.004] * 40 + slow + calm + slow + calm + slow)
    assert second - first == pytest.approx(230, abs=2)
    assert third - second == pytest.approx(230, abs=2)


def test_some_transfers_that_take_much_longer_ask_too() -> None:
    """What a link that loses segments does: TCP waits 200 ms and more before it sends again; the median stays."""
    (first, *_) = asked([0.02] * 40 + [0.25, *[0.02] * 4] * 10)
    assert 40 < first < 70
    (first, *_) = asked([0.02] * 40 + [0.22, *[0.02] * 70] * 10)
    assert 100 < first < 120


@pytest.mark.parametrize(
    "least",
    [
        [0.5] + [0.004] * 120,
        [0.12, *[0.004] * 24] * 5,
        [0.006, 0.004, 0.008, 0.003] * 20,
    ],
    ids=["a stall now and then", "short stalls", "noise"],
)
def test_stalls_and_noise_do_not(least: list[float]) -> None:
    assert asked([0.004] * 40 + least * 3) == []


def test_short_transfers_and_incomplete_groups_do_not() -> None:
    assert asked([0.0001] * 40 + [0.001] * 60) == []
    assert asked([0.004] * 40 + [0.02] * 60, ranks=(0, 1, 2)) == []


@pytest.mark.parametrize(("recorded", "asks"), [("quiet", False), ("loss", True)])
def test_what_real_jobs_showed(recorded: str, asks: bool) -> None:
    """Transfers in milliseconds of four hosts that train on two busy cores; of the first, nothing is wrong; of the
    second, a link loses 5 % of its frames from the 110th step on."""
    assert bool(asked([float(milliseconds) / 1e3 for milliseconds in RECORDED[recorded].split()])) == asks


def test_a_rank_that_stays_slow_is_told_of_again_until_it_recovers() -> None:
    pace = Pace(1, {rank: f"node{rank}" for rank in range(4)})

    def steps(first: int, count: int, slow_seconds: float) -> None:
        for step in range(first, first + count):
            done = tuple(
                RankStep(
                    rank,
                    step,
                    slow_seconds + 0.06,
                    slow_seconds if rank == 2 else 0.04,
                    (CollectivesStep(0, 1, 64, 0.01, 0.001),),
                )
                for rank in range(4)
            )
            pace.take(NodeReport(node="node0", generation=1, communicators=(WORLD,), ranks=(), steps=done), float(step))

    steps(0, 40, 0.04)
    assert pace.verdicts(40.0) == []
    steps(40, 30, 0.08)
    (named,) = pace.verdicts(70.0)
    assert named.ranks == (2,)
    assert pace.verdicts(70.0 + REPEAT_SECONDS - 1) == []
    assert pace.verdicts(70.0 + REPEAT_SECONDS) == [named]
    steps(70, 60, 0.04)
    assert [rank for rank, _ in pace.quick_again()] == [2]
    assert pace.verdicts(200.0) == []
