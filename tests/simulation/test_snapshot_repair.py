"""What a generation starts from becomes whole and protected again, whatever was lost and in whichever order all comes.

Seeded: real sessions on stores in shared memory, lines and clock made up (daemons.py). Nothing in here may wait for
luck: where no line is cut, all is done before the first timer that could save a wake-up that was lost.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from simulation.daemons import World
from snapshot_nodes import cluster_root

from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.words import SnapshotId

SCHEDULES = 25
PROMPT_SECONDS = 4.0
"""Longer than all rounds of a schedule take, shorter than any wait for who is silent."""
SILENT_SECONDS = 40.0
"""With a wait for who is silent, and one more."""
root = pytest.fixture(cluster_root)


Erased = Counter[tuple[int, int, int]]
"""How often a stripe has been harmed, by lane, rotation and number."""


def harm(world: World, snapshot: SnapshotId, lost: list[int], erased: Erased) -> None:
    """Flip bits, in no stripe more than parity makes up for."""
    places = [(p, place) for p in range(len(world.nodes)) if p not in lost for place in world.places(p, snapshot)]
    for position, place in world.random.sample(places, min(len(places), world.random.randint(0, 4))):
        if erased[place] + len(lost) < world.parity:
            erased[place] += 1
            world.flip(position, snapshot, *place)


def made(root, seed: int) -> World:
    random = Random(seed)
    nodes = random.randint(2, 4)
    return World(
        root, random, nodes, random.randint(1, min(2, nodes - 1)), random.randint(1, 2),
        random.choice((700, CHUNK_BYTES + 99, 2 * CHUNK_BYTES + 5000)),
    )  # fmt: skip


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_a_start_is_whole_again_however_its_messages_come(root, seed, number):
    root.mkdir()
    world = made(root, seed + number)
    with world.dialling():
        world.configure(None)
        world.reserve()
        snapshot = world.snapshot()
        for _ in range(3):
            lost = world.random.sample(range(len(world.nodes)), world.random.randint(0, world.parity))
            harm(world, snapshot, lost, Counter())
            for position in lost:
                world.lose(position)
            world.configure(snapshot)
            world.run(world.is_restored, PROMPT_SECONDS, f"restored without {lost}")
            world.run(lambda: world.is_protected(snapshot), PROMPT_SECONDS, f"protected without {lost}")
            world.check(snapshot)
        world.check(world.snapshot())
    world.close()


def is_over(world: World, snapshot: SnapshotId) -> bool:
    """Everything is back, and nothing is on its way."""
    return world.is_restored() and world.is_protected(snapshot) and not any(d.store.damaged for d in world.nodes)


@pytest.mark.parametrize("number", range(SCHEDULES))
def test_a_start_is_whole_again_in_spite_of_all_that_happens_meanwhile(root, seed, number):
    """Lines are cut, daemons killed and started again, bits flip after they were looked at, and people look."""
    root.mkdir()
    world = made(root, seed + 7 * number)
    with world.dialling():
        world.configure(None)
        world.reserve()
        snapshot = world.snapshot()
        lost = world.random.sample(range(len(world.nodes)), world.random.randint(0, world.parity))
        for position in lost:
            world.lose(position)
        world.configure(snapshot)
        erased: Erased = Counter()
        for _ in range(world.random.randint(1, 4)):
            world.rounds(world.random.randint(0, 150))
            happen(world, snapshot, lost, erased)
        world.run(lambda: is_over(world, snapshot), SILENT_SECONDS, "all is well again")
        world.verify()
        world.run(lambda: is_over(world, snapshot), SILENT_SECONDS, "all is well after a look at it")
        world.check(snapshot)
        world.check(world.snapshot())
    world.close()


def happen(world: World, snapshot: SnapshotId, lost: list[int], erased: Erased) -> None:
    random = world.random
    match random.choice(("cut", "restart", "flip", "verify")):
        case "cut":
            ends = [end for daemon in world.nodes for end in daemon.ends if not end.closed]
            for end in random.sample(ends, min(len(ends), 2)):
                end.cut()
        case "restart":
            world.restart(random.randrange(len(world.nodes)))
            world.configure(snapshot, resumed=True)
        case "flip":
            harm(world, snapshot, lost, erased)
        case "verify":
            daemon = random.choice(world.nodes)
            daemon.session.scrub.verify(lambda report: None)
