"""When memory is gone, and when there was nothing yet."""

from __future__ import annotations

import pytest
from unit.coordinator_job import snapshot

from ftrain_launcher.job.formation import Past, Start, choose_start
from ftrain_launcher.job.worlds import Held, Holdings, World
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.status import Levels


def held(position: int) -> list[Holding]:
    return [Holding(snapshot(9), position, data=True, parity=True)]


def start(
    holdings: Holdings,
    survivors: set[int],
    groups: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3),),
    sealed: tuple[int, ...] = (),
) -> Start:
    nodes = [f"node-{p}" for group in groups for p in group]
    past = Past(
        generation=1,
        restore=None,
        levels=Levels(),  # the controller had not heard of any yet
        protected=False,
        nodes=nodes,
        survivors=frozenset(survivors),
        sealed=sealed,
    )
    return choose_start(past, [Held(World(first=1, nodes=len(nodes), parity=2, groups=groups), holdings)])


def test_nodes_that_are_back_with_empty_hands_do_not_hide_what_was_protected() -> None:
    assert "state is lost" in start({0: held(0), 1: [], 2: [], 3: []}, {0, 1, 3}).lost
    assert "state is lost" in start({0: held(0), 1: [], 2: [], 3: []}, {0, 1, 2, 3}).lost


@pytest.mark.parametrize("survivors", [{0, 1, 2}, {0, 1, 2, 3}])
def test_where_nobody_holds_anything_there_was_nothing(survivors: set[int]) -> None:
    found = start({0: [], 1: [], 2: [], 3: []}, survivors)
    assert (found.restore, found.lost) == (None, "")


def test_a_group_that_had_not_sealed_yet_makes_the_first_snapshot_no_promise() -> None:
    groups = ((0, 1, 2, 3), (4, 5, 6, 7))
    holdings = {p: held(p) if p < 4 else [] for p in range(8)}
    assert start(holdings, set(range(7)), groups).lost == ""


@pytest.mark.parametrize(
    ("sealed", "lost"),
    [
        ((10, 10, 10, 10), 1),
        ((10, 10, 10, 9), 0),  # the lost node had not sealed it yet: it was a step in flight
        ((), 1),  # the gate was lost: nobody knows
    ],
)
def test_a_step_that_the_lost_node_had_not_sealed_is_not_a_sealed_step(sealed: tuple[int, ...], lost: int) -> None:
    newer = {p: [*held(p), Holding(snapshot(10), p, data=True, parity=False)] for p in range(3)}
    found = start(newer, {0, 1, 2}, sealed=sealed)
    assert found.restore == snapshot(9)
    assert found.steps_lost == lost
