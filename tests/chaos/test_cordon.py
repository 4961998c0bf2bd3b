"""Ranks that are moved to another node while they train, and back: nothing is lost, nothing comes out differently."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import ARGUMENTS, TIMEOUT_SECONDS, Job, Outcome, holding, ranks_of

NODES = 2
FIRST, SECOND = 40, 80
"""The ranks wait before these steps: the newest snapshot is protected then."""


def operate(job: Job, *words: str) -> Any:
    """The JSON of an operators' command."""
    command = [sys.executable, "-m", "ftrain_launcher.cli", *words, "--job", job.name, "--json"]
    done = subprocess.run(command, capture_output=True, env=job.environment, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(job: Job, *words: str) -> str:
    """What an operators' command that cannot be obeyed says."""
    command = [sys.executable, "-m", "ftrain_launcher.cli", *words, "--job", job.name]
    done = subprocess.run(
        command, capture_output=True, env=job.environment, timeout=TIMEOUT_SECONDS, text=True, check=False
    )
    assert done.returncode == 2
    return done.stderr


def wait_held(job: Job, step: int) -> int:
    """Wait until all ranks wait before a step, and what they have sealed is protected; the version."""

    def held(status: dict) -> int | None:
        sealed, protected = status["snapshots"]["sealed"], status["snapshots"]["protected"]
        ranks = ranks_of(status).values()
        waits = len(ranks) == NODES and all(r["step"] == step - 1 for r in ranks)
        return protected if waits and sealed == protected else None

    return job.wait_for(held, f"rest before step {step}")


def wait_moved(job: Job, position: int, name: str, generation: int) -> None:
    def moved(status: dict) -> bool:
        holders = {n["position"]: n["name"] for n in status["nodes"] if n["state"] == "active"}
        return status["generation"] == generation and len(holders) == NODES and holders[position] == name

    job.wait_for(moved, f"{name} at position {position}")


def test_a_drained_node_gives_its_ranks_to_the_spare_and_gets_them_back(
    tmp_path: Path, undisturbed: Callable[[int], Outcome]
) -> None:
    """Position 0, with the store and the gate. What the node still holds when it comes back is of an older time."""
    flags = ("--local-nodes", str(NODES), "--spares", "1")
    job = Job(tmp_path / "job", *flags, arguments=(*ARGUMENTS, *holding(FIRST, SECOND)))
    try:
        first = wait_held(job, FIRST)
        drain = job.drain("node-0", "--reason", "its fan is loud")
        job.go(FIRST)
        said, _ = drain.communicate(timeout=TIMEOUT_SECONDS)
        assert (drain.returncode, said) == (0, b"node-0: holds no ranks; it may be switched off\n")
        wait_moved(job, 0, "node-2", 2)
        assert "no node node-9: nodes are node-0, node-1, node-2" in refused(job, "drain", "node-9")
        assert "node-1 is not cordoned" in refused(job, "uncordon", "node-1")

        second = wait_held(job, SECOND)
        shown = {n["name"]: n for n in operate(job, "nodes")["nodes"]}
        assert (shown["node-0"]["state"], shown["node-0"]["ranks"]) == ("cordoned", [])
        assert shown["node-0"]["cordon"]["reason"] == "its fan is loud"
        assert operate(job, "uncordon", "node-0", "--force")["cordon"] is None
        operate(job, "cordon", "node-2", "--now")
        wait_moved(job, 0, "node-0", 3)
        job.go(SECOND)

        assert job.wait() == 0, job.tail()
        assert job.ends() == undisturbed(NODES).ends()
        incidents = job.faults()
        assert [(i["kind"], i["steps_lost"]) for i in incidents] == [("drained", 0), ("drained", 0)]
        assert first < incidents[0]["resumed_from"] < SECOND
        assert second <= incidents[1]["resumed_from"] < SECOND
    finally:
        job.close()
