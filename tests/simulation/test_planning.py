"""The formulas of a plan against what happens to seeded nodes and jobs, failure by failure.

The model's assumptions are the simulation's rules (docs/planning.md); what is tested is that the formulas follow from
them, and that the answer does not depend on how repair times are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heapreplace
from random import Random

import pytest

from ftrain_launcher.planning import formulas, model
from ftrain_launcher.planning.model import Job, ours

DAY = formulas.DAY_SECONDS
HOUR = 3600.0
Draw = Callable[[Random, float], float]


def constant(_: Random, mean: float) -> float:
    return mean


def exponential(random: Random, mean: float) -> float:
    return random.expovariate(1 / mean)


def losses(
    random: Random,
    members: int,
    parity: int,
    failures_per_second: float,
    repair_seconds: float,
    until: float,
    draw: Draw,
) -> list[float]:
    """When a group comes to have more than ``parity`` members exposed; it goes on as if nothing had been lost."""
    # Each member's next event: a failure while it is healthy, the end of its repair while it is exposed.
    events = [(random.expovariate(failures_per_second), False) for _ in range(members)]
    heapify(events)
    exposed, found = 0, []
    while (now := events[0][0]) < until:
        if events[0][1]:
            exposed -= 1
            heapreplace(events, (now + random.expovariate(failures_per_second), False))
        else:
            exposed += 1
            if exposed == parity + 1:
                found.append(now)
            heapreplace(events, (now + draw(random, repair_seconds), True))
    return found


@pytest.mark.parametrize("draw", [constant, exponential])
@pytest.mark.parametrize(("members", "parity"), [(2, 1), (4, 1), (8, 2)])
def test_groups_are_lost_as_often_as_the_formula_says(members: int, parity: int, draw: Draw) -> None:
    failures, repair = 0.2 / DAY, 2 * HOUR
    rate = formulas.group_losses_per_second(members, parity, failures, repair)
    wanted = 1500
    found = len(losses(Random(members), members, parity, failures, repair, wanted / rate, draw))
    assert found == pytest.approx(wanted, abs=4 * math.sqrt(wanted))


JOB = Job(
    state_bytes=1e12,
    nodes=22,  # groups of 8, 7 and 7
    nproc_per_node=8,
    parity=2,
    group_size=8,
    failures_per_node_day=0.15,
    step_seconds=5,
    restart_seconds=60,
    repair_seconds=2 * HOUR,
    stall_seconds=None,
    copy_bytes_per_second=8e9,
    protect_bytes_per_second=1e9,
    storage_bytes_per_second=1e9,
)


def test_a_job_survives_a_month_as_often_as_planned() -> None:
    random, months = Random(1), 2000
    failures = JOB.failures_per_node_day / DAY

    def survives() -> bool:
        return not any(
            losses(random, size, JOB.parity, failures, 2 * HOUR, model.MONTH_SECONDS, constant)
            for size in ours(JOB).group_sizes
        )

    survived = sum(survives() for _ in range(months)) / months
    planned = model.outcome(JOB, ours(JOB)).survival_per_month
    assert 0.6 < planned < 0.9  # else a tolerance of a few hundredths would say little
    # Losses come in clumps of slightly more than one, so the plan is a little on the safe side.
    assert survived == pytest.approx(planned, abs=4 * math.sqrt(planned * (1 - planned) / months))


def trained_share(
    random: Random, interval: float, cost: float, mtbf: float, restart: float, lag: float, failures: int
) -> float:
    """Training that stayed done over all time, from failure to failure; a snapshot counts ``lag`` after its capture."""
    kept = whole = 0.0
    for _ in range(failures):
        up = random.expovariate(1 / mtbf)
        whole += up
        kept += interval * max(0, math.floor((up - restart - lag) / (interval + cost)))
    return kept / whole


@pytest.mark.parametrize("every_steps", [1, 20, 360])
def test_goodput_is_as_planned_lag_and_failing_restarts_included(every_steps: int) -> None:
    scheme = ours(JOB)
    interval = every_steps * JOB.step_seconds
    mtbf, failures = JOB.mtbf_seconds, 40_000
    lag, restart = model.lag_seconds(JOB, scheme), model.restart_seconds(JOB, scheme)
    found = trained_share(Random(every_steps), interval, scheme.cost_seconds, mtbf, restart, lag, failures)
    assert found == pytest.approx(model.goodput(JOB, scheme, interval), rel=0.005)
