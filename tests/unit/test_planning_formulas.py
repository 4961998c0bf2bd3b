"""The formulas of a plan: numbers worked out by hand or printed in the papers, and what must hold for any input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_launcher.planning import formulas, rates

HOUR = 3600.0
costs = st.floats(1e-3, 600)
mtbfs = st.floats(HOUR, 1e7)
restarts = st.floats(0, 600)
repairs = st.floats(1, 4 * HOUR)
failures = st.floats(1e-9, 1e-6)  # one in thirty years to one in eleven days
parities = st.integers(1, 4)


@pytest.mark.parametrize(("mtbf_hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_daly_s_interval_is_what_his_figures_3_to_5_say(mtbf_hours: float, minutes: float) -> None:
    found = formulas.daly_seconds(5 * 60, mtbf_hours * HOUR) / 60
    assert found == pytest.approx(minutes, rel=0.006)


def test_young_s_interval_by_hand() -> None:
    assert formulas.young_seconds(50, 10_000) == pytest.approx(1000)


def test_where_a_snapshot_costs_more_than_two_failures_apart_daly_says_one_mtbf() -> None:
    assert formulas.daly_seconds(201, 100) == 100


def test_goodput_by_hand() -> None:
    # (τ + δ) / M = ln 2, R / M = ln 2: 600 / (1000 * 2 * (2 - 1))
    mtbf = 1000.0
    cost = mtbf * math.log(2) - 600
    assert formulas.goodput(600, cost, mtbf, mtbf * math.log(2)) == pytest.approx(0.3)


def test_goodput_is_nothing_where_no_segment_is_ever_finished() -> None:
    assert formulas.goodput(1e6, 1, 1, 1e300) == 0


def test_the_rate_of_losing_a_group_by_hand() -> None:
    # x = λ W = 0.1: one of three is exposed, and no more are, for 3 x / (1 + 3 x) of the time; then two may fail
    assert formulas.group_losses_per_second(3, 1, 0.001, 100) == pytest.approx(2 * 0.001 * 0.3 / 1.3)
    # x = 1/2: 15/4 of 1 + 6/2 + 15/4
    assert formulas.group_losses_per_second(6, 2, 0.001, 500) == pytest.approx(4 * 0.001 * 3.75 / 7.75)


def test_where_members_fail_faster_than_they_are_repaired_a_group_does_not_last() -> None:
    # Nearly always two are exposed at least, and the third fails after a second.
    assert formulas.group_losses_per_second(3, 2, 1.0, 1e9) == pytest.approx(1.0)
    assert formulas.group_losses_per_second(100, 99, 1e6, 1e9) == pytest.approx(1e6)


def test_without_parity_the_first_failure_of_the_group_is_the_loss() -> None:
    assert formulas.group_losses_per_second(4, 0, 1e-6, 1) == pytest.approx(4e-6, rel=1e-5)


def test_published_rates_give_what_their_papers_say() -> None:
    def mtbf_hours(name: str) -> float:
        return 24 / (2048 * rates.PUBLISHED[name].per_node_day)

    assert mtbf_hours("llama3") == pytest.approx(54 * 24 / 419)
    assert mtbf_hours("rsc-1") == pytest.approx(1.8, rel=0.01)  # projected there for 16,384 GPUs


@given(costs, mtbfs, restarts)
def test_no_other_interval_is_better_than_daly_s_by_more_than_a_thousandth(
    cost: float, mtbf: float, restart: float
) -> None:
    best = formulas.daly_seconds(cost, mtbf)
    reached = formulas.goodput(best, cost, mtbf, restart)
    for factor in (0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2, 4):
        assert formulas.goodput(factor * best, cost, mtbf, restart) <= reached * 1.001


@given(costs, mtbfs, restarts)
def test_goodput_is_a_share_and_falls_with_cost_failures_and_restarts(cost: float, mtbf: float, restart: float) -> None:
    found = formulas.goodput(HOUR, cost, mtbf, restart)
    assert 0 <= found < 1
    assert formulas.goodput(HOUR, 2 * cost, mtbf, restart) < found
    assert formulas.goodput(HOUR, cost, mtbf / 2, restart) < found
    assert formulas.goodput(HOUR, cost, mtbf, restart + 60) < found


@given(failures, repairs, parities)
def test_losses_grow_with_failures_repairs_and_members_and_fall_with_parity(
    failures: float, repair: float, parity: int
) -> None:
    def losses(members: int = 8, parity: int = parity, failures: float = failures, repair: float = repair) -> float:
        return formulas.group_losses_per_second(members, parity, failures, repair)

    assert losses(failures=2 * failures) > losses()
    assert losses(repair=2 * repair) > losses()
    assert losses(members=9) > losses()
    assert losses(parity=parity + 1) < losses()
    assert 0 < formulas.survival(losses(), 30 * 86400) <= 1
