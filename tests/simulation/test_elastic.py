"""Jobs of MIN to MAX nodes under seeded schedules of losses, drains and newcomers; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import random

import msgspec
from simulation.cluster import Cluster
from simulation.elastic import ElasticCheckers
from simulation.faults import Fault, Plan

from ftrain_launcher.job.policy import EXIT_LOST, EXIT_NODES

SCHEDULES = 150
STEPS, UNDESCRIBED_STEPS = 400, 30
ONE = os.environ.get("FTRAIN_SEED")
LOSSES = ("kill node", "kill node", "kill node", "kill agent for long", "do not stop in time")
OTHERS = ("kill worker", "kill agent", "cut line", "kill store", "do not start store", "do not form", "kill daemon")
RESTARTS = ("kill controller", "kill controller between journal and sends")
OPERATORS = ("drain", "cordon now", "cordon", "uncordon by force", "do not start node", "lose spare")


def plan_of(seed: int) -> Plan:
    """Of three to five nodes, where two or three are enough."""
    dice = random.Random(seed)
    drawn = Plan.draw(dice)
    kinds = LOSSES + dice.choice(((), OTHERS, OTHERS + RESTARTS)) + dice.choice(((), OPERATORS))
    nodes, parity = dice.choice((3, 4, 4, 5)), dice.choice((1, 1, 1, 2))
    gentle = dice.random() < 0.5
    faults = [Fault(dice.uniform(2.0, 40.0), dice.choice(kinds), dice.random()) for _ in range(dice.choice((1, 3, 8)))]
    if not gentle and dice.random() < 0.3:
        faults.append(Fault(dice.uniform(3.0, 30.0), "kill two nodes", dice.random()))
    config = msgspec.structs.replace(
        drawn.config,
        work=msgspec.structs.replace(drawn.config.work, parity=parity, durable=None),
        nodes=nodes,
        nodes_min=dice.randint(1, nodes - 1),
        spares=dice.choice((0, 0, 1)),
        shrink_after_seconds=dice.choice((0.0, 0.0, 2.0)),
        preflight=False,
    )
    if dice.random() < 0.3:
        faults += [Fault(fault.at - 0.3, "flip", 0.0) for fault in faults if dice.random() < 0.5]
    return msgspec.structs.replace(
        drawn, config=config, steps=STEPS, faults=tuple(faults), gentle=gentle, program_error_step=None, domains=("",)
    )


def run(seed: int, *, undescribed_steps: int = 0) -> Cluster:
    cluster = Cluster(seed, msgspec.structs.replace(plan_of(seed), undescribed_steps=undescribed_steps))
    try:
        cluster.run()
    except Exception as error:
        error.add_note(f"replay with FTRAIN_SEED={seed}; {cluster.plan}; faults so far: {cluster.faults.done}")
        raise
    return cluster


def test_a_job_shrinks_and_grows_and_never_begins_anew() -> None:
    shrunk = grown = lost = resharded = refused = went_back = 0
    for seed in range(SCHEDULES) if ONE is None else [int(ONE)]:
        cluster = run(seed)
        checkers = cluster.checkers
        assert isinstance(checkers, ElasticCheckers)
        assert cluster.ended is not None
        flips = any(kind == "flip" for _, kind in cluster.faults.done)
        refused += any(i.cause is not None and i.cause.kind == "not_certified" for i in cluster.coordinator.incidents)
        expected = (0, EXIT_LOST, EXIT_NODES) if flips or not cluster.plan.gentle else (0,)
        assert cluster.ended[0] in expected, cluster.ended
        went_back += any(i.doubtful is not None for i in cluster.coordinator.incidents)
        changes = list(zip(checkers.sizes, checkers.sizes[1:], strict=False))
        shrunk += sum(after < before for before, after in changes)
        grown += sum(after > before for before, after in changes)
        resharded += sum(form.origin is not None for form in checkers.forms.values())
        lost += cluster.ended[0] == EXIT_LOST
    if ONE is None:
        assert shrunk > SCHEDULES / 4
        assert grown > SCHEDULES / 4
        assert resharded > SCHEDULES / 2
        assert lost < SCHEDULES / 4
        assert refused > SCHEDULES / 30
        assert went_back > SCHEDULES / 50


def test_a_job_that_no_other_number_of_ranks_can_resume_keeps_its_size() -> None:
    """From its first capture on: lost nodes are waited for, and nothing is ever re-sharded."""
    ended = kept = 0
    for seed in range(SCHEDULES // 2) if ONE is None else [int(ONE)]:
        cluster = run(seed, undescribed_steps=STEPS)
        checkers = cluster.checkers
        assert isinstance(checkers, ElasticCheckers)
        assert cluster.ended is not None
        assert cluster.ended[0] in ((0,) if cluster.plan.gentle else (0, EXIT_LOST, EXIT_NODES)), cluster.ended
        ended += cluster.ended[0] == 0
        resumed = [f for f in checkers.forms.values() if f.restore is not None and f.generation > 1]
        assert len({len(form.peers) for form in resumed}) <= 1, checkers.sizes
        kept += len(resumed)
    if ONE is None:
        assert ended > SCHEDULES / 4
        assert kept > SCHEDULES / 4


def test_a_job_that_others_can_resume_again_changes_its_size_again() -> None:
    """Where only its first snapshots are for as many ranks as there are; none of these is ever re-sharded."""
    resharded = 0
    for seed in range(SCHEDULES // 2) if ONE is None else [int(ONE)]:
        cluster = run(seed, undescribed_steps=UNDESCRIBED_STEPS)
        checkers = cluster.checkers
        assert isinstance(checkers, ElasticCheckers)
        assert cluster.ended is not None
        flips = any(kind == "flip" for _, kind in cluster.faults.done)
        expected = (0, EXIT_LOST, EXIT_NODES) if flips or not cluster.plan.gentle else (0,)
        assert cluster.ended[0] in expected, cluster.ended
        resharded += sum(form.origin is not None for form in checkers.forms.values())
    if ONE is None:
        assert resharded > SCHEDULES / 4
