"""A job of three to four nodes loses one, goes on with three, and takes in another when that is there."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, Outcome, holding, ranks_of

STEPS, BEFORE = 160, 10
"""The ranks wait before that step until the node is lost."""
ARGUMENTS = ("--steps", str(STEPS))
BATCH = 24
SLOW = ("slow", "communication_slow")
"""What a busy machine makes the detector say."""


def lines(job: Outcome) -> dict[int, list[dict[str, Any]]]:
    """By step: what the ranks of the newest generation that made it wrote down."""
    made = [job.steps(int(path.stem[5:])) for path in sorted(job.out.glob("rank-*.jsonl"))]
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for step in range(STEPS):
        by_rank = [steps[step] for steps in made if step in steps]
        newest = max(line["generation"] for line in by_rank)
        found[step] = [line for line in by_rank if line["generation"] == newest]
    return found


def losses(steps: dict[int, list[dict[str, Any]]]) -> list[float]:
    return [float.fromhex(steps[step][0]["loss"]) for step in range(STEPS)]


def assert_each_sample_is_seen_once(steps: dict[int, list[dict[str, Any]]]) -> None:
    for step, ranks in steps.items():
        seen = Counter(index for line in ranks for index in line["seen"])
        assert len(seen) == BATCH, f"step {step}: {seen}"
        assert set(seen.values()) == {1}, f"step {step}: {seen}"
        assert len({line["loss"] for line in ranks}) == 1


def wait_before(job: Job, step: int, ranks: int) -> None:
    def waits(status: dict[str, Any]) -> bool:
        found = ranks_of(status).values()
        return len(found) == ranks and all(rank["step"] == step - 1 and rank["pid"] for rank in found)

    job.wait_for(waits, f"rest before step {step}")


def test_a_lost_node_is_done_without_and_another_one_is_taken_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last bit. Without ``--deterministic-reduction`` it is near enough: scripts/bench/reshard.py."""
    exact = "--deterministic-reduction"
    alone = Job(tmp_path / "alone", "--local-nodes", "4", exact, program="elastic.py", arguments=ARGUMENTS)
    paced = (*ARGUMENTS, "--pace", "0.2", *holding(BEFORE))
    job = Job(tmp_path / "job", "--local-nodes", "3:4", exact, program="elastic.py", arguments=paced)
    try:
        wait_before(job, BEFORE, 4)
        job.kill_nodes("node-1")
        job.wait_for(lambda s: s["size"]["nodes"] == 3 and len(ranks_of(s)) == 3, "three nodes")
        job.go(BEFORE)
        job.wait_for(lambda s: s["size"]["nodes"] == 4 and len(ranks_of(s)) == 4, "four nodes again")
        (job.out / "quick").touch()
        assert job.wait() == 0, job.tail()
        assert alone.wait() == 0, alone.tail()
        lost, grown = [i for i in job.ask("incidents")["incidents"] if i["kind"] not in SLOW]
        assert (lost["kind"], grown["kind"]) == ("node_lost", "grown")
        assert (lost["steps_lost"], grown["steps_lost"]) == (0, 0)
        assert BEFORE - 2 <= lost["resumed_from"] < BEFORE < grown["resumed_from"] < STEPS - 1
        steps, expected = lines(job), lines(alone)
        assert_each_sample_is_seen_once(steps)
        sizes = Counter(len(ranks) for ranks in steps.values())
        assert sizes[3] == grown["resumed_from"] - lost["resumed_from"]
        assert losses(steps) == losses(expected)
        assert set(job.ends()) == set(alone.ends())
        with capsys.disabled():
            print(f"\n4 -> 3 in {lost['seconds']:.2f} s, 3 -> 4 in {grown['seconds']:.2f} s; {sizes[3]} steps on three")
    finally:
        alone.close()
        job.close()
