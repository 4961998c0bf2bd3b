"""Pure: the best interval between snapshots, the share of time that is training, and the rate of losing a group.

Failures of the job are a Poisson process of mean distance M (``mtbf_seconds``). A snapshot costs training δ
(``cost_seconds``), and is taken whenever τ (``interval_seconds``) of training have been done since the last one; a
failure costs what was not in a snapshot, and R (``restart_seconds``). All derivations, and what was checked against a
simulation: docs/planning.md.

Young: A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974, doi 10.1145/361147.361115.
Daly: A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3), 2006,
doi 10.1016/j.future.2004.11.016.
"""

from __future__ import annotations

import math

DAY_SECONDS = 86_400.0


def young_seconds(cost_seconds: float, mtbf_seconds: float) -> float:
    """Young's best interval: sqrt(2 δ M)."""
    return math.sqrt(2 * cost_seconds * mtbf_seconds)


def daly_seconds(cost_seconds: float, mtbf_seconds: float) -> float:
    """Daly's best interval (his equation 37): Young's, two terms further, and M where snapshots cost 2 M or more."""
    if cost_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    share = cost_seconds / (2 * mtbf_seconds)
    return young_seconds(cost_seconds, mtbf_seconds) * (1 + math.sqrt(share) / 3 + share / 9) - cost_seconds


def goodput(interval_seconds: float, cost_seconds: float, mtbf_seconds: float, restart_seconds: float) -> float:
    """The share of time that is training which stays done: τ / (M e^(R/M) (e^((τ+δ)/M) - 1)).

    Daly's cost function, per segment: failures during snapshots and restarts count. 0 where they come too fast for any
    progress.
    """
    segments = (interval_seconds + cost_seconds) / mtbf_seconds
    restarts = restart_seconds / mtbf_seconds
    if segments + restarts > 700:  # e^709 is the largest float
        return 0.0
    return interval_seconds / (mtbf_seconds * math.exp(restarts) * math.expm1(segments))


def group_losses_per_second(members: int, parity: int, failures_per_second: float, repair_seconds: float) -> float:
    """How often a group that has lost nothing comes to have more than ``parity`` members exposed at once.

    A member fails at the given rate, is *exposed* for the repair time, and is then as new; members do so independently.
    Of a group in which at most m are exposed the share of time with m is Engset's C(n, m) x^m / Σ C(n, k) x^k over
    k <= m, with x = λW, whatever the distribution of repair times with this mean; then n - m may fail, at λ each.
    """
    exposed = failures_per_second * repair_seconds
    share = 1.0
    for number in range(1, parity + 1):
        entering = (members - number + 1) * exposed * share
        share = entering / (number + entering)
    return (members - parity) * failures_per_second * share


def survival(losses_per_second: float, seconds: float) -> float:
    """The probability of no loss in that time: losses are rare, hence nearly Poisson."""
    return math.exp(-losses_per_second * seconds)
