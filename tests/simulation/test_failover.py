"""Controllers in a network that falls apart: never two generations at once; ``FTRAIN_SEED=n`` replays one schedule."""

from __future__ import annotations

import os
import random

import pytest
from simulation.failover import Cluster

SCHEDULES = 400
CHUNKS = 4
ONE = os.environ.get("FTRAIN_SEED")
FAULTS_UNTIL_SECONDS = 120.0
SETTLED_SECONDS = 90.0


def break_things(cluster: Cluster, dice: random.Random) -> None:
    """Partitions, killed controllers, and (only while the network is whole, and long enough) lost hosts."""
    begin, whole_since = cluster.world.now, cluster.world.now
    # Of two nodes, the second cannot tell the loss of the first from a cut.
    may_lose = len(cluster.groups) - cluster.config.nodes if cluster.config.nodes > 2 else 0
    at = 8.0
    while at < FAULTS_UNTIL_SECONDS:
        what = dice.choice(("split", "split", "split", "heal", "heal", "kill", "kill", "host"))
        when = begin + at
        match what:
            case "split":
                cluster.world.at(when, cluster.split, dice)
                whole_since = float("inf")
            case "heal":
                cluster.world.at(when, cluster.heal)
                whole_since = min(whole_since, when)
            case "kill":
                victim = cluster.candidates[dice.randrange(len(cluster.candidates))]
                cluster.world.at(when, victim.crash, dice.uniform(0.2, 6.0))
            case "host" if may_lose and when - whole_since > 30.0:
                may_lose -= 1
                cluster.world.at(when, cluster.kill_host, dice.randrange(len(cluster.groups)))
        at += dice.uniform(0.3, 12.0)
    cluster.world.at(begin + FAULTS_UNTIL_SECONDS, cluster.heal)


def run(seed: int) -> Cluster:
    dice = random.Random(seed)
    nodes, spares, candidates = dice.choice(((2, 1, 2), (3, 0, 2), (3, 2, 3), (4, 1, 3), (5, 2, 3), (4, 4, 2)))
    cluster = Cluster(seed, nodes=nodes, spares=spares, candidates=candidates)
    break_things(cluster, dice)
    try:
        end = cluster.world.now + FAULTS_UNTIL_SECONDS
        cluster.world.run(end, lambda: cluster.ended)
        cluster.world.run(end + SETTLED_SECONDS, lambda: cluster.ended or cluster.trains())
        who = [(c.up, c.leads, c.term) for c in cluster.candidates]
        assert cluster.is_over() or cluster.trains(), f"it does not train again: {who}"
    except Exception as error:
        error.add_note(f"replay with FTRAIN_SEED={seed}: {nodes} nodes, {spares} spares, {candidates} candidates")
        raise
    return cluster


@pytest.mark.parametrize("chunk", range(CHUNKS) if ONE is None else [0])
def test_no_partition_makes_two_generations_train_at_once_and_once_healed_the_job_goes_on(chunk: int) -> None:
    takeovers = generations = given_up = recalled = 0
    for seed in range(chunk, SCHEDULES, CHUNKS) if ONE is None else [int(ONE)]:
        cluster = run(seed)
        takeovers += sum(c.takeovers for c in cluster.candidates)
        generations += len(cluster.truth.trained)
        given_up += not cluster.trains()
        recalled += cluster.recalled
    if ONE is None:
        assert takeovers > SCHEDULES / CHUNKS / 2
        assert generations > SCHEDULES / CHUNKS * 2
        assert given_up < SCHEDULES / CHUNKS / 5
    print(f"{takeovers} takeovers ({recalled} by what the agents told), {generations} generations, {given_up} given up")


def test_the_loss_of_the_controllers_host_alone_costs_one_takeover() -> None:
    for seed in range(50):
        cluster = Cluster(seed, nodes=3, spares=1, candidates=2)
        cluster.world.run(cluster.world.now + 20, lambda: False)
        assert cluster.trains()
        cluster.kill_host(0)
        cluster.world.run(cluster.world.now + 30, lambda: False)
        assert cluster.trains(), seed
        assert [c.takeovers for c in cluster.candidates] == [0, 1]


@pytest.mark.parametrize("copy", ["none", "old"])
def test_a_candidate_without_the_journal_learns_from_the_agents_what_was_formed_last(copy: str) -> None:
    """It was away when the newest generation was formed, and the one that knew is lost with its host."""
    for seed in range(30):
        cluster = Cluster(seed, nodes=5, spares=2, candidates=2)
        first, second = cluster.candidates
        if copy == "none":
            cluster.world.after(0.1, second.crash, 40.0)
        cluster.world.run(cluster.world.now + 20, lambda: False)
        if copy == "old":
            second.crash(20.0)
            victim = next(h for h, agent in cluster.agents.items() if h > 1 and agent.form is not None)
            cluster.kill_host(victim)
            cluster.world.run(cluster.world.now + 15, lambda: False)
        known = first.coordinator.formed
        assert cluster.trains()
        assert known == (1 if copy == "none" else 2)
        spare = cluster.agents[0].form is None
        cluster.kill_host(0)
        cluster.world.run(cluster.world.now + 70, lambda: False)
        assert cluster.trains(), seed
        assert (second.takeovers, cluster.recalled) == (1, 1)
        may_go_on = copy == "old" and spare  # Nobody is missed; in the other case all had ended their workers.
        assert second.coordinator.formed > known or may_go_on
        assert cluster.truth.trained == sorted(set(cluster.truth.trained))
