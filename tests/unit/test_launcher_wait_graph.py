"""The graph of waits in text: readable at 8 ranks and at 1,000."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from ftrain_launcher.control.wait_graph import LINES_MAX, draw
from ftrain_launcher.detect.verdict import Wait
from ftrain_launcher.detect.wording import name_ranks


def wait(
    waiter: int, for_: Iterable[int], communicator: str = "dp", op: str = "all_reduce", seconds: float = 0.8
) -> Wait:
    return Wait(waiter, tuple(for_), communicator, op, 1042 if communicator == "dp" else 7, seconds)


def test_ranks_that_wait_in_one_operation_are_one_line() -> None:
    waits = [wait(rank, [3], seconds=0.1 * rank) for rank in (7, 6, 5, 4, 2, 1, 0)]
    assert draw(waits) == ["ranks 0-2,4-7 --all_reduce #1042 'dp' 0.7 s--> rank 3"]


def test_a_group_goes_by_its_description_and_groups_that_share_it_are_told_together() -> None:
    waits = [Wait(rank, (rank + 1,), str(rank), "all_reduce", 7, 0.8, "mesh_tp") for rank in (0, 2)]
    assert draw(waits) == ["ranks 0,2 --all_reduce #7 'mesh_tp' 0.8 s--> ranks 1,3 (2 groups)"]
    assert draw([Wait(0, (1,), "0", "barrier", 7, 0.8, "default_pg")]) == [
        "rank 0 --barrier #7 the world group 0.8 s--> rank 1"
    ]


def test_who_waits_for_waiters_stands_below_them() -> None:
    waits = [wait(rank, [3], "tp") for rank in (0, 1, 2)]
    waits += [wait(7, [3], seconds=0.7), *(wait(rank, [7], "tp", seconds=0.6) for rank in (4, 5, 6))]
    assert draw(waits) == [
        "ranks 0-2 --all_reduce #7 'tp' 0.8 s--> rank 3",
        "rank 7 --all_reduce #1042 'dp' 0.7 s--> rank 3",
        "  ranks 4-6 --all_reduce #7 'tp' 0.6 s--> rank 7",
    ]


def test_a_pipeline_is_a_chain() -> None:
    lines = draw(wait(rank, [rank + 1], "pp", "receive", 1 - rank / 10) for rank in range(4))
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6]
    assert lines[0].endswith("--> rank 4")
    assert lines[-1] == "      rank 0 --receive #7 'pp' 1.0 s--> rank 1"


def test_a_circle_is_drawn_once_and_said() -> None:
    lines = draw([wait(0, [1]), wait(1, [0], "tp"), wait(2, [0], "x")])
    assert lines[:2] == [
        "rank 0 --all_reduce #1042 'dp' 0.8 s--> rank 1",
        "  rank 1 --all_reduce #7 'tp' 0.8 s--> rank 0",
    ]
    assert len(lines) == 4
    assert "circle" in lines[-1]


def test_that_all_have_entered_is_said() -> None:
    assert draw(wait(rank, []) for rank in range(8)) == [
        "ranks 0-7 --all_reduce #1042 'dp' 0.8 s--> nobody: all have entered"
    ]


def test_those_who_wait_for_waiters_and_for_others_have_a_line_of_their_own() -> None:
    assert draw([wait(0, [1, 2]), wait(1, [3], "tp")]) == [
        "rank 0 --all_reduce #1042 'dp' 0.8 s--> ranks 1-2",
        "rank 1 --all_reduce #7 'tp' 0.8 s--> rank 3",
    ]


def tensor_parallel(groups: int, name: str) -> list[Wait]:
    """Rank 3 stands still; its column of the mesh waits for it in ``dp``, and the other rows for their members."""
    waits = [wait(rank, [3]) for rank in range(11, 8 * groups, 8)]
    for group in range(groups):
        column = 8 * group + 3
        row = [rank for rank in range(8 * group, 8 * group + 8) if rank != column]
        waits += [wait(rank, [column], name.format(group), seconds=0.6) for rank in row]
    return waits


def test_a_thousand_ranks_are_three_lines() -> None:
    assert draw(tensor_parallel(125, "tp")) == [
        "ranks 11,19,..,995 --all_reduce #1042 'dp' 0.8 s--> rank 3",
        "  868 ranks (8-10,12-18,20-26,28-34,..) --all_reduce #7 'tp' 0.6 s--> ranks 11,19,..,995 (124 groups)",
        "ranks 0-2,4-7 --all_reduce #7 'tp' 0.6 s--> rank 3",
    ]


def test_groups_of_names_of_their_own_are_merged_only_where_they_are_many() -> None:
    few, many = draw(tensor_parallel(3, "tp{}")), draw(tensor_parallel(125, "tp{}"))
    assert len(few) == 4
    assert "'tp2'" in few[2]
    assert len(many) == 3
    assert "'tp1' and 123 like it" in many[1]


def test_lines_are_bounded() -> None:
    waits = [Wait(rank, (1000 + rank,), "dp", "send", rank, 1.0) for rank in range(100)]
    lines = draw(waits)
    assert len(lines) == LINES_MAX + 1
    assert lines[-1] == f"... and {100 - LINES_MAX} more"


def test_every_waiter_is_told_of_whatever_the_graph(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(50):
        waits = [wait(rank, dice.sample(range(12), 2), dice.choice("abc")) for rank in range(8)]
        lines = draw(waits)
        assert set().union(*(ranks_of(line.split(" --")[0]) for line in lines if " --" in line)) == set(range(8))
        assert lines == draw(reversed(waits))


def ranks_of(name: str) -> set[int]:
    runs = [part.split("-") for part in name.split()[-1].split(",")]
    return {rank for run in runs for rank in range(int(run[0]), int(run[-1]) + 1)}


def test_no_waits_draw_nothing() -> None:
    assert draw([]) == []


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([3], "rank 3"),
        ([3, 2], "ranks 2-3"),
        ([0, 1, 2, 4, 5], "ranks 0-2,4-5"),
        ([0, 8, 16], "ranks 0,8,16"),
        ([0, 8, 16, 24], "ranks 0,8,..,24"),
        ([1, 3, 4, 5], "ranks 1,3-5"),
        (range(10_000), "ranks 0-9999"),
        ([n * n for n in range(20)], "20 ranks (0-1,4,9,16,..)"),
    ],
)
def test_names_of_ranks(ranks: Iterable[int], named: str) -> None:
    assert name_ranks(ranks) == named
