"""A node is drained in the middle of a training with rare snapshots: no step is lost, and none is made twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Job, Outcome, holding, ranks_of
from snapshot_nodes import wait_until

from ftrain_snapshot.control import ControlPage, HaltMode

NODES, STEPS, EVERY = 3, 120, 7
BEFORE = 37
"""The ranks wait before this step until the drain is under way; it is not captured unless they are halted."""
CAPTURED = BEFORE // EVERY * EVERY - 1
"""The last step before that is captured, if the gate is open."""
FLAGS = ("--local-nodes", str(NODES), "--spares", "1", "--snapshot-every", str(EVERY))


def is_to_halt(node: Path) -> bool:
    """The ranks of this node know after which step they stay."""
    page = ControlPage(node)
    try:
        return page.halt()[0] is HaltMode.STAY
    finally:
        page.close()


def made(job: Job, rank: int) -> list[int]:
    """Each step that a rank made, in order, as it wrote it down itself."""
    return [json.loads(line)["step"] for line in (job.out / f"rank-{rank}.jsonl").read_text().splitlines()]


def test_a_drain_costs_no_step_however_rare_snapshots_are(
    tmp_path: Path, undisturbed: Callable[[int], Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path / "job", *FLAGS, arguments=(*ARGUMENTS, *holding(BEFORE)))
    try:
        job.wait_step(BEFORE - 1, NODES)
        drained = job.drain("node-1")
        job.go(BEFORE)
        said, _ = drained.communicate(timeout=TIMEOUT_SECONDS)
        assert (drained.returncode, said) == (0, b"node-1: holds no ranks; it may be switched off\n")
        assert job.wait() == 0, job.tail()
        assert job.ends() == undisturbed(NODES).ends()
        assert [made(job, rank) for rank in range(NODES)] == [list(range(STEPS))] * NODES
        [incident] = job.faults()
        assert (incident["kind"], incident["steps_lost"]) == ("drained", 0)
        assert (incident["resumed_from"] + 1) % EVERY, "it was captured because the ranks were halted"
        with capsys.disabled():
            print(f"\nhalted after step {incident['resumed_from']}; {incident['seconds']:.2f} s to the next step")
    finally:
        job.close()


def test_a_worker_killed_while_others_stand_halted_costs_what_a_fault_costs(
    tmp_path: Path, undisturbed: Callable[[int], Outcome]
) -> None:
    """Rank 1 has yet to come to the end of the step: what the others have captured of it is of no use."""
    job = Job(tmp_path / "job", *FLAGS, arguments=(*ARGUMENTS, *holding(CAPTURED, BEFORE), "--late-at", str(BEFORE)))

    def stand(status: dict[str, Any]) -> bool:
        ranks = ranks_of(status)
        return len(ranks) == NODES and all(ranks[rank]["state"] == "halted" for rank in (0, 2))

    drained = None
    try:
        job.capture(CAPTURED, ranks=NODES)
        job.wait_step(BEFORE - 1, NODES)
        drained = job.drain("node-1")
        wait_until(lambda: all(map(is_to_halt, job.arena.glob("node-[0-2]"))), TIMEOUT_SECONDS, "an agreed step")
        job.go(BEFORE)
        job.wait_for(stand, "two ranks that are halted")
        job.kill_rank(2)
        job.wait_for(lambda status: status["generation"] > 1, "the next generation")
        assert job.wait() == 0, job.tail()
        assert drained.wait(TIMEOUT_SECONDS) == 0, drained.stdout.read() if drained.stdout else ""
        assert job.ends() == undisturbed(NODES).ends()
        first = job.faults()[0]
        assert (first["kind"], first["resumed_from"]) == ("worker_exit", CAPTURED)
        again = list(range(first["resumed_from"] + 1, STEPS))
        for rank in range(NODES):
            assert made(job, rank) == [*range(BEFORE + 1), *again]
    finally:
        if drained is not None:
            drained.kill()
            drained.communicate()
        job.close()
