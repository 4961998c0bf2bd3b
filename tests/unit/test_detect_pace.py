"""Steps put side by side, roles, and transfers that grow."""

from __future__ import annotations

from ftrain_launcher.detect.aligned import PATIENCE_SECONDS, Aligned, Step
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
from ftrain_launcher.detect.slow_links import ASK_AGAIN_STEPS, SlowLinks

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


def asked(least: list[float], ranks: tuple[int, ...] = WORLD.members) -> list[int]:
    """The steps at which probes are wanted, of transfers that take so long."""
    aligned, found = Aligned(len(ranks)), []
    links = SlowLinks(aligned.communicators)
    for number, seconds in enumerate(least):
        one = report(ranks, number, least=seconds)
        steps: list[Step] = list(aligned.take(one, aligned.numbers(one), 0.0))
        found += [slowed.step for step in steps for slowed in links.take(step)]
    return found


def test_transfers_that_stay_longer_ask_for_probes_now_and_later() -> None:
    first, second = asked([0.004] * 40 + [0.02] * (ASK_AGAIN_STEPS + 20))
    assert 40 < first < 55
    assert second == first + ASK_AGAIN_STEPS


def test_single_long_transfers_short_ones_and_incomplete_groups_do_not() -> None:
    assert asked([0.004] * 40 + [0.5, 0.004, 0.004] * 30) == []
    assert asked([0.0001] * 40 + [0.001] * 60) == []
    assert asked([0.004] * 40 + [0.02] * 60, ranks=(0, 1, 2)) == []


def test_a_rank_that_stays_slow_is_told_of_again_until_it_recovers() -> None:
    pace = Pace(1, {rank: f"node{rank}" for rank in range(4)})

    def steps(first: int, count: int, slow_seconds: float) -> None:
        for step in range(first, first + count):
            done = tuple(
                RankStep(
                    rank, step, 0.1, slow_seconds if rank == 2 else 0.04, (CollectivesStep(0, 1, 64, 0.01, 0.001),)
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
    assert pace.recovered() == [2]
    assert pace.verdicts(200.0) == []
