"""Flushes and hosts that leave, amid other faults, in the production coordinator; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import random

import msgspec
from simulation.cluster import Cluster
from simulation.faults import DURABLE, FLUSH_SECONDS, Fault, Plan

from ftrain_launcher.job.policy import EXIT_NOT_FLUSHED

SCHEDULES = 300
ONE = os.environ.get("FTRAIN_SEED")
BESIDE = ("kill worker", "kill node", "kill agent", "cut line", "kill daemon", "kill writer", "hang writer", "drain")
CONTROLLER = ("kill controller", "kill controller between journal and sends")


def plan_of(seed: int, last: str, *, beside: int) -> Plan:
    """A long job over four nodes with a spare; when ``last`` comes, other faults are just behind."""
    dice = random.Random(seed)
    drawn = Plan.draw(dice)
    durable = dice.choice((None, DURABLE))
    work = msgspec.structs.replace(drawn.config.work, nproc_per_node=1, parity=1, durable=durable)
    config = msgspec.structs.replace(drawn.config, work=work, nodes=4, spares=1, preflight=False)
    begins = dice.uniform(4.0, 12.0)
    others = [Fault(begins + dice.uniform(-2.0, 3.0), dice.choice(BESIDE + CONTROLLER), dice.random())
              for _ in range(beside)]  # fmt: skip
    faults = (Fault(begins, last, dice.random()), *others)
    return msgspec.structs.replace(
        drawn, config=config, steps=2000, faults=faults, gentle=True, program_error_step=None, domains=("",),
        while_forming=0.0, recovery_seconds_max=FLUSH_SECONDS + 30.0,
    )  # fmt: skip


def test_a_flush_ends_in_time_and_what_it_says_is_kept_is_kept() -> None:
    flushed = asked = 0
    for seed in range(SCHEDULES) if ONE is None else [int(ONE)]:
        cluster = Cluster(seed, plan_of(seed, "flush", beside=seed % 4))
        code, message = cluster.run()
        if "flush" not in [kind for _, kind in cluster.faults.done]:
            continue
        asked += 1
        flushed += message.startswith("flushed at")
        assert code in (0, EXIT_NOT_FLUSHED), f"{seed}: {message}"
        began = next(time for time, kind in cluster.faults.done if kind == "flush")
        assert cluster.world.now - began <= FLUSH_SECONDS + 1.0, f"{seed}: {cluster.world.now - began:.1f} s"
    assert ONE is not None or flushed > 0.8 * asked > 0.5 * SCHEDULES, f"{flushed} of {asked}"
