"""FSDP2 in all its kinds and tensor parallelism, in one job that loses a worker and a node: the end is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Job, Outcome, holding

RANKS = 4
FLAGS = ("--local-nodes", "2", "--nproc-per-node", "2")
STEPS = ("--steps", "12")


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[Outcome]:
    job = Job(tmp_path / "undisturbed", *FLAGS, program="sharded.py", arguments=STEPS)
    yield job
    job.close()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path / "broken", *FLAGS, program="sharded.py", arguments=(*STEPS, *holding(5, 9)))
    yield job
    job.close()


def test_sharded_state_survives_a_worker_and_a_node(undisturbed: Job, broken: Job) -> None:
    """The killed node's shards are decoded from the other's. One model accumulates: every second step is captured."""
    for step, break_it in ((5, lambda: broken.kill_rank(2)), (9, lambda: broken.kill_nodes("node-1"))):
        captured = step - 2
        broken.wait_for(lambda s, at=captured: (s["snapshots"]["protected"] or 0) >= at, f"step {captured} protected")
        broken.wait_step(step - 1)
        break_it()
        incidents = 1 if step == 5 else 2
        broken.wait_for(lambda s, n=incidents: s["incidents"] == n and s["state"] == "running", f"recovery {incidents}")
        broken.go(step)
    assert broken.wait() == 0, broken.tail()
    assert undisturbed.wait() == 0, undisturbed.tail()
    assert [each["resumed_from"] for each in broken.ask("incidents")["incidents"]] == [3, 7]
    assert len(broken.ends()) == RANKS
    assert broken.ends() == undisturbed.ends()
    for rank in range(RANKS):
        assert broken.steps(rank) == undisturbed.steps(rank)
