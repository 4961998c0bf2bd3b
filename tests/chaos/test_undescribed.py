"""Hosts whose state no other number of ranks can resume: the job waits for a lost one, and ends as if none was lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hosts import Lab
from hosts.job import TIMEOUTS, HostJob
from jobs import Job, holding

STEPS, HOSTS = 12, 3
CAPTURED, BROKEN = 4, 5
"""The ranks wait before these steps: so that there is a snapshot of the former, and for the fault."""
DRIFT = ("--steps", str(STEPS), "--drift")
WHY = "no other number of ranks can resume the job's state"


def test_a_host_that_comes_later_takes_the_lost_ones_place(make_lab: Callable[..., Lab], tmp_path: Path) -> None:
    """Its bytes are decoded from the others' parity; no step is lost, and all ranks end bit for bit as undisturbed."""
    whole = Job(tmp_path / "whole", "--local-nodes", str(HOSTS), program="masters.py", arguments=DRIFT)
    try:
        assert whole.wait() == 0, whole.tail()
    finally:
        whole.close()
    lab = make_lab(HOSTS)
    arguments = (*DRIFT, *holding(CAPTURED, BROKEN))
    job = HostJob(lab, tmp_path / "job", "--nnodes", "2:3", *TIMEOUTS, program="masters.py", arguments=arguments)
    try:
        job.start_all(*range(1, HOSTS + 1), nodes=HOSTS)
        job.wait_step(CAPTURED - 1, HOSTS)
        gate = job.folder_on(1)
        gate.wait_rest()
        job.go(CAPTURED)
        job.wait_step(BROKEN - 1, HOSTS)
        gate.wait_protected(BROKEN - 1)
        lab.crash(2)
        lab.run(2, ["sh", "-c", "rm -r /dev/shm/ftrain-*"])  # its memory
        job.wait_for(lambda _: f"waiting for a host: 1 of 3 are missing ({WHY})" in job.tail(), "word of it")
        assert job.ask("nodes")["size"]["nodes"] == HOSTS - 1
        assert job.ask("nodes")["size"]["reason"] == WHY
        lab.heal()
        job.start(2)
        job.go(BROKEN)
        assert job.wait_all(1, 2, 3) == {1: 0, 2: 0, 3: 0}, job.tail()
        [lost] = job.faults()
        assert (lost["kind"], lost["resumed_from"], lost["steps_lost"]) == ("node_lost", BROKEN - 1, 0)
        assert job.ends() == whole.ends()
    finally:
        job.close()
