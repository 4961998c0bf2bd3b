"""FSDP2 in all its kinds and tensor parallelism, in one job that loses a worker and a node: the end is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Job, Outcome, holding

RANKS = 4
FLAGS = ("--local-nodes", "2", "--nproc-per-node", "2")
STEPS = ("--steps", "12")
CAPTURED, BROKEN = (3, 7), (5, 9)
"""The ranks wait before these steps: that there is a snapshot of the former, and that it is the newest one then."""


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[Outcome]:
    job = Job(tmp_path / "undisturbed", *FLAGS, program="sharded.py", arguments=STEPS)
    yield job
    job.close()


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Job]:
    arguments = (*STEPS, *holding(*CAPTURED, *BROKEN))
    job = Job(tmp_path / "broken", *FLAGS, "--in-process", program="sharded.py", arguments=arguments)
    yield job
    job.close()


def test_sharded_state_survives_a_worker_and_a_node(undisturbed: Job, broken: Job) -> None:
    """The killed node's shards are decoded from the other's. One model accumulates: every second step is captured.

    Survivors keep its tensors, for it has not stepped since; those of all others have changed, and are read.
    """
    faults = (lambda: broken.kill_rank(2), lambda: broken.kill_nodes("node-1"))
    for generation, (captured, step, break_it) in enumerate(zip(CAPTURED, BROKEN, faults, strict=True), start=2):
        broken.capture(captured, ranks=RANKS)
        broken.wait_step(step - 1, RANKS)
        broken.node("node-0").wait_protected(captured)
        break_it()
        broken.wait_for(lambda s, g=generation: s["generation"] == g and s["state"] == "running", "a recovery")
        broken.go(step)
    assert broken.wait() == 0, broken.tail()
    assert undisturbed.wait() == 0, undisturbed.tail()
    assert [(each["resumed_from"], each["ranks_kept"]) for each in broken.faults()] == [(3, RANKS - 1), (7, 2)]
    assert len(broken.ends()) == RANKS
    assert broken.ends() == undisturbed.ends()
    for rank in range(RANKS):
        assert broken.steps(rank) == undisturbed.steps(rank)
