"""The judge of pace over made-up jobs with noisy machines; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import time
from collections import defaultdict

import pytest
from simulation.made_up_shapes import Shape, data_parallel, paced, with_pipeline, with_tensor_parallel
from simulation.made_up_steps import Faults, Noise, Player

from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.records import CollectivesStep, Communicator, NodeReport, RankStep
from ftrain_launcher.detect.slow import STEPS_SKIPPED
from ftrain_launcher.detect.slow_links import Slowed

ONE = os.environ.get("FTRAIN_SEED")
SEEDS = range(10) if ONE is None else [int(ONE)]
SHAPES = {
    "dp": data_parallel(4),
    "dp of two": data_parallel(2),
    "dp, many operations": data_parallel(4, 10),
    "ddp": data_parallel(4, 10, beside=True),
    "ddp x tp": with_tensor_parallel(2, 2, layers=2, beside=True),
    "dp x tp": with_tensor_parallel(2, 2, layers=2),
    "dp x pp": with_pipeline(2, (0.03, 0.06), microbatches=2),
    "pp": with_pipeline(1, (0.03, 0.06, 0.05), microbatches=2),
}
LARGE = {"dp of 64": data_parallel(64), "dp x tp of 16": with_tensor_parallel(4, 4, layers=2)}
SIZES = ((8, "tp"), (40, "cp"), (400, "dp"))
CALM = {"pp": 45}
"""Quiet steps before the fault; a stage without replicas has to be known first."""
Named = dict[int, list[int]]
"""Steps at which a rank was named."""


def watch(shape: Shape, seed: int, steps: int, faults: Faults, noise: Noise | None = None) -> tuple[Named, Named, int]:
    """Ranks named, ranks recovered, and how often probes were asked for."""
    pace = Pace(1, shape.nodes)
    named, gone, asked = defaultdict(list), defaultdict(list), 0
    for step, reports in enumerate(Player(shape, seed, noise, faults).steps(steps)):
        for report in reports:
            pace.take(report, step * 0.1)
        for verdict in pace.verdicts(step * 0.1):
            named[verdict.ranks[0]].append(step)
        for rank, _ in pace.quick_again():
            gone[rank].append(step)
        asked += len(pace.doubts())
    return named, gone, asked


def latencies(shape: Shape, factor: float, steps: int, calm: int, noise: Noise | None = None) -> list[int]:
    """From the beginning of the fault to the verdict, seed by seed; nobody else is ever named."""
    found = []
    for seed in SEEDS:
        culprit = seed % len(shape.programs)
        faults = Faults(slow={culprit: factor}, slow_from=calm)
        named, _, _ = watch(shape, seed, calm + steps, faults, noise)
        assert set(named) <= {culprit}, f"seed {seed}: named {dict(named)}, slow was {culprit}"
        found.append(named[culprit][0] - calm + 1 if culprit in named else steps + 1)
        assert found[-1] > 0, f"seed {seed}: named before it was slow"
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_rank_slower_by_half_is_named_within_20_steps(name: str) -> None:
    late = [
        seed
        for seed, steps in zip(SEEDS, latencies(SHAPES[name], 1.5, 20, CALM.get(name, 16)), strict=True)
        if steps > 20
    ]
    assert not late, f"seeds {late}"


@pytest.mark.parametrize("name", SHAPES)
def test_a_rank_slower_by_a_fifth_is_named_within_50_steps(name: str) -> None:
    found = latencies(SHAPES[name], 1.2, 50, CALM.get(name, 16))
    assert sum(steps <= 50 for steps in found) >= 0.9 * len(found), found


@pytest.mark.parametrize("name", ["dp", "dp x tp", "dp x pp"])
def test_and_within_40_where_what_it_computes_is_little_and_all_wake_late(name: str) -> None:
    """As in the campaign: ranks mostly sleep, more of them than there are processors."""
    noise = Noise(asleep=0.85, crowded=0.008, spread=0.05, tail=0.1)
    found = latencies(SHAPES[name], 1.2, 40, 16, noise)
    assert sum(steps <= 40 for steps in found) >= 0.9 * len(found), found


@pytest.mark.parametrize("name", LARGE)
def test_it_is_found_among_many(name: str) -> None:
    shape = LARGE[name]
    named, _, _ = watch(shape, 5, 40, Faults(slow={9: 1.5}, slow_from=16))
    assert set(named) == {9}
    assert named[9][0] <= 36


def test_two_slow_ranks_are_both_named() -> None:
    named, _, _ = watch(data_parallel(8), 3, 70, Faults(slow={2: 1.5, 5: 1.3}, slow_from=16))
    assert set(named) == {2, 5}


def test_a_rank_that_is_slow_from_the_beginning_is_named() -> None:
    named, _, _ = watch(SHAPES["ddp"], 4, 25, Faults(slow={1: 1.5}))
    assert set(named) == {1}


def test_named_and_recovered_are_told_once() -> None:
    named, gone, _ = watch(data_parallel(4), 6, 300, Faults(slow={3: 1.5}, slow_from=20, slow_until=160))
    assert [len(named[3]), len(gone[3])] == [1, 1]
    assert 160 < gone[3][0] < 220


def test_over_10000_quiet_steps_nobody_is_named() -> None:
    """With stalls, busy neighbours, drifts, a slow first step, evaluation by rank 0, checkpoints by all."""
    shape = data_parallel(4)
    everybody = range(len(shape.programs))
    extra = {step: {0: 1.0} for step in range(99, 10_000, 100)}
    extra |= {step: dict.fromkeys(everybody, 3.0) for step in range(499, 10_000, 500)}
    extra[0] = {rank: 5.0 + rank for rank in everybody}
    named, _, asked = watch(shape, 7, 10_000, Faults(extra=extra))
    assert not named
    assert asked == 0


@pytest.mark.parametrize("name", SHAPES)
def test_noise_of_a_loaded_machine_names_nobody(name: str) -> None:
    noise = Noise(spread=0.1, tail=0.1, stall=0.01, node=0.02)
    named, _, _ = watch(SHAPES[name], 8, 250, Faults(), noise)
    assert not named


@pytest.mark.parametrize("name", ["dp of two", "dp x tp", "pp"])
def test_neighbours_that_share_one_ranks_core_for_seconds_and_take_a_tenth_of_it_name_nobody(name: str) -> None:
    """It computes for longer, and nothing tells why; another rank does a moment later."""
    named, _, _ = watch(SHAPES[name], 8, 1000, Faults(), Noise(sharing=0.1))
    assert not named


@pytest.mark.parametrize("name", SHAPES)
def test_a_rank_that_neighbours_starve_for_long_is_not_slow(name: str) -> None:
    named, _, _ = watch(SHAPES[name], 8, 200, Faults(), Noise(starving=0.05))
    assert not named


def test_it_would_be_if_the_kernel_did_not_tell_of_the_neighbours() -> None:
    named, _, _ = watch(SHAPES["dp"], 8, 300, Faults(), Noise(starving=0.05, told=False))
    assert named


def test_a_slow_rank_is_named_though_all_are_starved_now_and_then() -> None:
    faults = Faults(slow={1: 1.5}, slow_from=20)
    named, _, _ = watch(SHAPES["dp"], 8, 60, faults, Noise(starving=0.005))
    assert set(named) == {1}
    assert named[1][0] >= 20


@pytest.mark.parametrize("name", SHAPES)
def test_a_slow_rank_is_named_where_ranks_share_too_few_processors(name: str) -> None:
    crowded = Noise(crowded=0.01)
    named, _, _ = watch(SHAPES[name], 8, 80, Faults(slow={1: 1.5}, slow_from=45), crowded)
    assert set(named) == {1}
    named, _, _ = watch(SHAPES[name], 8, 150, Faults(), crowded)
    assert not named


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("late_at", [3, 10, 60])
def test_who_came_late_once_where_ranks_sleep_for_what_is_left_of_a_step_is_not_slow(ranks: int, late_at: int) -> None:
    """It comes as late in each step from then on, and the others wait for it, and sleep for that much less."""
    for seed in SEEDS[:3]:
        named, _, _ = watch(paced(ranks, 0.2), seed, late_at + 60, Faults(extra={late_at: {1: 0.034}}))
        assert not named, f"seed {seed}: {dict(named)}"


@pytest.mark.parametrize(
    "noise", [Noise(), Noise(crowded=0.01), Noise(starving=0.05)], ids=["calm", "crowded", "starving"]
)
def test_nor_are_others_that_came_late_before_and_after_it(noise: Noise) -> None:
    lates = {30: {3: 0.03}, 60: {1: 0.05}, 90: {2: 0.04}, 120: {3: 0.06}, 150: {0: 0.03}, 180: {1: 0.04}}
    named, _, _ = watch(paced(4, 0.2), 1, 220, Faults(extra=lates), noise)
    assert not named


@pytest.mark.parametrize("first", [0, 20])
def test_a_rank_that_takes_longer_without_computing_makes_steps_longer_and_is_named(first: int) -> None:
    """It waits for a disk, say. From its first step on, or later."""
    for seed in SEEDS[:3]:
        faults = Faults(slow={1: 1.5}, slow_from=first)
        named, _, _ = watch(data_parallel(4), seed, first + 25, faults, Noise(asleep=0.85))
        assert set(named) == {1}, f"seed {seed}: {dict(named)}"
        assert first < named[1][0] <= first + 20 + STEPS_SKIPPED


QUOTAS = {"steps of 10 ms": (0.01, 0.4), "steps of 25 ms": (0.025, 0.6), "steps of 60 ms": (0.06, 0.6)}


@pytest.mark.parametrize("name", QUOTAS)
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_a_rank_under_a_quota_is_named_within_20_steps_though_it_is_held_back_in_bursts(name: str, seed: int) -> None:
    """A tenth of a second at a time: most short steps are as quick as ever."""
    seconds, share = QUOTAS[name]
    shape = data_parallel(4, seconds=seconds)
    faults = Faults(quota={1: share}, slow_from=20)
    named, _, _ = watch(shape, seed, 60, faults)
    assert set(named) == {1}
    assert 20 <= named[1][0] < 40


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_quota_that_hardly_binds_makes_nobody_slow(seed: int) -> None:
    """Nine tenths of a processor, of which the steps need a little more: they take a twentieth longer, now and then."""
    shape = data_parallel(4, seconds=0.06)
    named, _, _ = watch(shape, seed, 400, Faults(quota={1: 0.9}))
    assert not named


def test_where_all_are_under_the_same_quota_nobody_is_slow() -> None:
    shape = data_parallel(4, seconds=0.025)
    named, _, asked = watch(shape, 8, 400, Faults(quota=dict.fromkeys(range(4), 0.6)))
    assert not named
    assert asked == 0


def test_bursts_of_which_the_kernel_does_not_tell_are_stalls_that_may_happen_to_anybody() -> None:
    shape = data_parallel(4, seconds=0.01)
    named, _, _ = watch(shape, 8, 80, Faults(quota={1: 0.5}, slow_from=20), Noise(told=False))
    assert not named


def test_a_rank_that_prints_between_buckets_is_not_slow() -> None:
    """Three hundredths more, seen in each of twenty buckets, are not sixty."""
    named, _, _ = watch(data_parallel(4, 20, beside=True), 9, 200, Faults(slow={0: 1.03}))
    assert not named


@pytest.mark.parametrize("name", ["dp", "ddp", "dp x tp"])
def test_slow_links_are_told_from_slow_ranks(name: str) -> None:
    """A network that became slow asks for probes, and names no rank."""
    shape = SHAPES[name]
    group = next(iter(shape.groups))
    asked_for = 0
    for seed in SEEDS[:3]:
        calm, slow = Faults(), Faults(slow_transfer={group: 20.0})
        player, pace = Player(shape, seed, None, calm), Pace(1, shape.nodes)
        for step, reports in enumerate(player.steps(100)):
            player.faults = calm if step < 50 else slow
            for report in reports:
                pace.take(report, step * 0.1)
        assert pace.verdicts(0.0) == []
        doubts = pace.doubts()
        asked_for += [one.communicator.name for one in doubts if isinstance(one, Slowed)] == [group]
    assert asked_for == len(SEEDS[:3])


@pytest.mark.parametrize("name", ["dp", "ddp", "dp x tp"])
def test_a_slow_rank_asks_for_no_probes(name: str) -> None:
    _, _, asked = watch(SHAPES[name], 10, 100, Faults(slow={1: 1.5}, slow_from=50))
    assert asked == 0


def test_steps_of_10000_ranks_with_four_communicators_take_well_under_a_second_each() -> None:
    ranks, per_node = 10_000, 8
    world = Communicator("world", tuple(range(ranks)))
    pace = Pace(1, {rank: f"node{rank // per_node}" for rank in range(ranks)})
    groups = {}
    for size, name in SIZES:
        for first in range(0, ranks, size):
            groups[name, first // size] = Communicator(name, tuple(range(first, first + size)))

    used = tuple(CollectivesStep(index, 6, 1 << 20, 0.01, 0.001) for index in (0, 1, 2, 3))

    def report(node: int, step: int) -> NodeReport:
        mine = range(node * per_node, (node + 1) * per_node)
        named = tuple(groups[name, mine[0] // size] for size, name in SIZES)
        steps = tuple(RankStep(rank, step, 0.1, 0.06, used) for rank in mine)
        return NodeReport(node=f"node{node}", generation=1, communicators=(world, *named), ranks=(), steps=steps)

    seconds = []
    for step in range(STEPS_SKIPPED + 2):
        reports = [report(node, step) for node in range(ranks // per_node)]
        begun = time.process_time()
        for one in reports:
            pace.take(one, float(step))
        seconds.append(time.process_time() - begun)
    assert seconds[-1] < 0.7, seconds
