"""The production coordinator under thousands of seeded schedules of faults; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os

import pytest
from simulation.cluster import Cluster

SCHEDULES = 2000
CHUNKS = 8
ONE = os.environ.get("FTRAIN_SEED")


def run(seed: int) -> Cluster:
    cluster = Cluster(seed)
    try:
        cluster.run()
    except Exception as error:
        error.add_note(f"replay with FTRAIN_SEED={seed}; {cluster.plan}; faults: {cluster.faults.done}")
        raise
    return cluster


@pytest.mark.parametrize("chunk", range(CHUNKS) if ONE is None else ["one"])
def test_every_schedule_ends_as_its_faults_call_for(chunk: int) -> None:
    for seed in range(chunk, SCHEDULES, CHUNKS) if ONE is None else [int(ONE)]:
        run(seed)


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in range(20):
        traces = []
        for _ in range(2):
            cluster = Cluster(seed)
            cluster.checkers.trace = []
            cluster.run()
            traces.append(cluster.checkers.trace)
        assert traces[0] == traces[1]
