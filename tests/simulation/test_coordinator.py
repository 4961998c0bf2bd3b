"""The production coordinator under thousands of seeded schedules of faults; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence

import msgspec
import pytest
from simulation.cluster import Cluster
from simulation.faults import DURABLE, Fault, Plan

from ftrain_launcher.job.policy import EXIT_LOST, EXIT_NODES
from ftrain_launcher.work import Durable

SCHEDULES = 2000
STORAGE_SCHEDULES = 200
WATCHED_SCHEDULES = 100
CHUNKS = 8
ONE = os.environ.get("FTRAIN_SEED")
SECONDS_MAX_1000_NODES = 15.0


def run(seed: int) -> Cluster:
    cluster = Cluster(seed)
    try:
        cluster.run()
    except Exception as error:
        error.add_note(f"replay with FTRAIN_SEED={seed}; {cluster.plan}; faults so far: {cluster.faults.done}")
        raise
    return cluster


def plain(drawn: Plan, faults: Sequence[Fault], *, steps: int = 60, gentle: bool = True, **config: object) -> Plan:
    """A drawn plan without what may end the job by itself, with these faults; ``config`` as a `JobConfig` has it."""
    return msgspec.structs.replace(
        drawn,
        config=msgspec.structs.replace(drawn.config, preflight=False, **config),
        steps=steps,
        faults=tuple(faults),
        gentle=gentle,
        program_error_step=None,
        domains=("",),
    )


def four_nodes(
    seed: int,
    kinds: Sequence[str],
    *,
    faults: int,
    spares: int,
    durable: Durable | None = None,
    gentle: bool = True,
) -> Plan:
    """So many faults of these kinds, all while the job trains."""
    dice = random.Random(seed)
    drawn = Plan.draw(dice)
    work = msgspec.structs.replace(drawn.config.work, nproc_per_node=1, parity=1, durable=durable)
    chosen = [Fault(dice.uniform(3.0, 25.0), dice.choice(kinds), dice.random()) for _ in range(faults)]
    return plain(drawn, chosen, gentle=gentle, work=work, nodes=4, spares=spares)


@pytest.mark.parametrize("chunk", range(CHUNKS) if ONE is None else [0])
def test_every_schedule_ends_as_its_faults_call_for(chunk: int) -> None:
    for seed in range(chunk, SCHEDULES, CHUNKS) if ONE is None else [int(ONE)]:
        run(seed)


def test_when_more_is_lost_than_parity_covers_the_job_goes_on_from_storage() -> None:
    """Two of four nodes at once, again and again, among other faults, while checkpoints are written."""
    kinds = ("kill two nodes", "kill writer", "hang writer", "kill agent", "kill daemon", "cut line")
    from_storage = 0
    for seed in range(STORAGE_SCHEDULES):
        cluster = Cluster(seed, four_nodes(seed, kinds, faults=6, spares=1, durable=DURABLE, gentle=False))
        code, message = cluster.run()
        assert code in (0, EXIT_LOST, EXIT_NODES), f"{seed}: {message}"
        from_storage += cluster.checkers.from_storage
    assert from_storage > STORAGE_SCHEDULES / 5


def test_ranks_are_moved_while_other_things_break_and_nodes_that_hang_again_are_taken_out() -> None:
    """Wherever the detector and operators interfere, the job ends well, and no node too many is taken out."""
    kinds = ("drain", "cordon", "uncordon", "hang", "hang", "communication hang", "kill worker", "kill controller")
    moved = taken_out = 0
    for seed in range(WATCHED_SCHEDULES):
        cluster = Cluster(seed, four_nodes(seed, kinds, faults=8, spares=2))
        assert cluster.run()[0] == 0, seed
        moved += cluster.checkers.moved
        taken_out += cluster.coordinator.quarantine.isolations(cluster.world.now)
    assert moved > WATCHED_SCHEDULES / 2
    assert taken_out > WATCHED_SCHEDULES / 2


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in range(20):
        traces = []
        for _ in range(2):
            cluster = Cluster(seed)
            cluster.checkers.trace = []
            cluster.run()
            traces.append(cluster.checkers.trace)
        assert traces[0] == traces[1]


@pytest.mark.alone
def test_a_thousand_nodes_fit_in_one_process() -> None:
    plan = Plan.draw(random.Random(0))
    work = msgspec.structs.replace(plan.config.work, nproc_per_node=1, parity=1)
    faults = (Fault(3.0, "kill worker", 0.3), Fault(5.0, "kill node", 0.6), Fault(7.0, "kill controller", 0.0))
    plan = plain(plan, faults, steps=30, work=work, nodes=1000, spares=2, hosts=False)
    plan = msgspec.structs.replace(plan, while_forming=0.0)
    began = time.process_time()
    cluster = Cluster(0, plan)
    assert cluster.run() == (0, "training finished")
    assert time.process_time() - began < SECONDS_MAX_1000_NODES
    assert [kind for _, kind in cluster.faults.done] == ["kill worker", "kill node", "kill controller"]
    assert [i.steps_lost for i in cluster.coordinator.incidents] in ([0, 0], [0, 1])
