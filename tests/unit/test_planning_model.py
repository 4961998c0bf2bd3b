"""What a plan says of a job: bytes, times and probabilities worked out by hand, and what must hold for any job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain_launcher.planning import model, table
from ftrain_launcher.planning.model import Job, disk, ours, outcome, replicas

GB = 1e9
JOB = Job(
    state_bytes=96 * GB,
    nodes=8,
    nproc_per_node=4,
    parity=2,
    group_size=8,
    failures_per_node_day=0.01,
    step_seconds=5,
    restart_seconds=30,
    repair_seconds=None,
    stall_seconds=None,
    copy_bytes_per_second=10 * GB,
    protect_bytes_per_second=2 * GB,
    storage_bytes_per_second=1 * GB,
)
jobs = st.builds(
    lambda nodes, parity, gb, rate, step: replace(
        JOB,
        nodes=nodes,
        parity=min(parity, nodes - 1),
        group_size=min(8, nodes),
        state_bytes=gb * GB,
        failures_per_node_day=rate,
        step_seconds=step,
    ),
    st.integers(2, 300),
    st.integers(1, 4),
    st.floats(0.1, 1e4),
    st.floats(1e-5, 0.1),
    st.floats(0.1, 60),
)


def test_ours_by_hand() -> None:
    # 12 GB a node; 6 + 2: a third of parity; three homes. Sent twice at 2 GB/s. A rank's 3 GB are copied in 0.3 s.
    found = outcome(JOB, ours(JOB))
    assert found.name == "ftrain 6+2"
    assert found.memory_bytes_per_node == pytest.approx(48 * GB)
    assert found.sent_bytes_per_node == pytest.approx(24 * GB)
    assert found.cost_seconds == pytest.approx(0.15)
    assert found.lag_seconds == pytest.approx(12)
    assert found.restart_seconds == pytest.approx(30 + 6)
    assert found.exposed_seconds == pytest.approx(30 + 8)
    # M = 86400 / 0.08 = 1,080,000 s: sqrt(2 * 0.15 * M) = 569.2 s, 114 steps.
    assert found.young_seconds == pytest.approx(569.2, abs=0.1)
    assert (found.every_steps, found.interval_seconds, found.limited_by) == (114, 570, "cost")
    assert found.sent_bytes_per_node_second == pytest.approx(24 * GB / 570.15)
    assert found.redone_seconds == pytest.approx(285 + 12)


def test_copies_in_memory_by_hand() -> None:
    # Four pairs; each is lost if a node fails within 30 + 12 s of its peer.
    found = outcome(JOB, replicas(JOB))
    assert found.memory_bytes_per_node == pytest.approx(48 * GB)
    assert found.sent_bytes_per_node == pytest.approx(12 * GB)
    assert found.exposed_seconds == pytest.approx(42)
    per_second = 0.01 / 86400
    assert found.losses_per_month == pytest.approx(4 * 2 * per_second**2 * 42 * 30 * 86400, rel=1e-4)


def test_disk_by_hand() -> None:
    found = outcome(JOB, disk(JOB, 1800))
    assert (found.interval_seconds, found.every_steps, found.limited_by) == (1800, 360, "fixed")
    assert found.cost_seconds == pytest.approx(3.5 * 0.3)
    assert found.lag_seconds == pytest.approx(12)
    assert found.redone_seconds == pytest.approx(912)
    assert (found.losses_per_month, found.survival_per_month) == (0, 1)


def test_an_interval_is_never_shorter_than_sending_takes() -> None:
    slow = replace(JOB, protect_bytes_per_second=GB / 100)
    found = outcome(slow, ours(slow))
    assert found.lag_seconds == pytest.approx(2400)
    assert (found.interval_seconds, found.limited_by) == (2400, "sending")


def test_a_cheap_snapshot_is_taken_at_every_step() -> None:
    cheap = replace(JOB, stall_seconds=1e-6, protect_bytes_per_second=1000 * GB)
    found = outcome(cheap, ours(cheap))
    assert (found.every_steps, found.limited_by) == (1, "step")


def test_a_given_repair_time_is_everybody_s() -> None:
    waiting = replace(JOB, repair_seconds=7200)
    assert {o.exposed_seconds for o in model.outcomes(waiting)} == {7200, 0}


def test_uneven_groups_are_named_and_the_smallest_counts_for_memory() -> None:
    # Eleven nodes: groups of 6 and 5, so 3 + 2 has parity of two thirds.
    found = outcome(replace(JOB, nodes=11), ours(replace(JOB, nodes=11)))
    assert found.name == "ftrain 4+2, 3+2"
    assert found.memory_bytes_per_node == pytest.approx(3 * (1 + 2 / 3) * 96 * GB / 11)


def test_one_node_has_no_peer_and_its_loss_is_the_loss_of_all() -> None:
    alone = replace(JOB, nodes=1, parity=0, group_size=1)
    found = model.outcomes(alone)
    assert [o.name for o in found] == ["ftrain 1+0", "disk, every 30 min", "disk, best interval"]
    assert found[0].losses_per_month == pytest.approx(0.3, rel=1e-3)


@given(jobs)
def test_more_parity_costs_memory_and_traffic_and_survives_more(job: Job) -> None:
    less, more = outcome(job, ours(job)), None
    if job.parity + 1 < min(ours(job).group_sizes):
        higher = replace(job, parity=job.parity + 1, repair_seconds=less.exposed_seconds)
        more = outcome(higher, ours(higher))
        assert more.memory_bytes_per_node > less.memory_bytes_per_node
        assert more.sent_bytes_per_node > less.sent_bytes_per_node
        assert more.losses_per_month < less.losses_per_month


@given(jobs)
def test_more_failures_mean_less_survival_and_less_goodput_for_all(job: Job) -> None:
    worse = replace(job, failures_per_node_day=3 * job.failures_per_node_day)
    for before, after in zip(model.outcomes(job), model.outcomes(worse), strict=True):
        assert after.goodput <= before.goodput
        assert after.survival_per_month <= before.survival_per_month


@given(jobs)
def test_every_figure_can_be_printed_and_shares_are_shares(job: Job) -> None:
    found = model.outcomes(job)
    for one in found:
        assert 0 <= one.survival_per_month <= 1
        assert 0 <= one.goodput <= 1
        assert one.interval_seconds >= one.lag_seconds - 1e-6
    assert {len(row) for row in table.rows(found)} == {len(table.heads(found))}


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (table.size(4.86e12), "4.86 TB"),
        (table.size(12.5), "12.5 B"),
        (table.size(3.2e18), "3,200 PB"),
        (table.duration(0.0185), "18.5 ms"),
        (table.duration(0), "0 s"),
        (table.duration(119), "119 s"),
        (table.duration(1800), "30 min"),
        (table.duration(11_124), "3.09 h"),
        (table.share(0.99999996), "99.999996%"),
        (table.share(0.5), "50.00%"),
        (table.share(1.0), "100%"),
        (table.chance(1 - 1e-4, 1e-4), "1 in 10,000"),
        (table.chance(0.0, 40.0), "40 times"),
        (table.chance(1.0, 0.0), "-"),
    ],
)
def test_figures_are_shown_in_units_that_suit_them(shown: str, text: str) -> None:
    assert shown == text
