"""Hosts whose state no other number of ranks can resume: the job waits for a lost one, and ends as if none was lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from hosts import Lab
from hosts.job import TIMEOUTS, HostJob
from jobs import Job, Jobs, holding

STEPS, HOSTS = 12, 3
CAPTURED, BROKEN = 4, 5
"""The ranks wait before these steps: so that there is a snapshot of the former, and for the fault."""
ROWS = 12
"""That all ranks of ``odd_state.py`` train together, half less at each step."""
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


def test_once_its_state_is_described_again_the_job_goes_on_with_fewer_nodes(jobs: Jobs) -> None:
    """Given an optimizer that held for some steps what no layout is for, and a restart from a snapshot of these."""
    odd, again = CAPTURED + 1, CAPTURED + 4
    arguments = ("--steps", str(STEPS), "--odd", str(odd), *holding(CAPTURED, odd, again))

    def start(folder: Path) -> Job:
        return Job(folder, "--local-nodes", "2:3", program="odd_state.py", arguments=arguments)

    job = jobs.start(start)
    job.capture(CAPTURED, ranks=HOSTS)
    job.wait_step(odd - 1, HOSTS)
    job.node("node-0").wait_protected(odd - 1)
    assert job.ask("nodes")["size"]["reason"] == WHY
    job.kill_rank(1)
    job.wait_for(lambda s: s["generation"] == 2 and s["snapshots"]["protected"] == odd - 1, "three ranks again")
    job.go(odd)
    job.wait_step(again - 1, HOSTS)
    job.wait_for(lambda _: job.ask("nodes")["size"]["reason"] is None, "word that its size may change")
    assert "the job may change its number of nodes again: since step" in job.tail()
    job.kill_nodes("node-1")
    job.go(again)
    assert job.wait() == 0, job.tail()
    lost = job.faults()[-1]
    assert (lost["kind"], lost["steps_lost"]) == ("node_lost", 0)
    formed = re.search(r"2 nodes, 2 ranks, after step (\d+), re-sharded", job.log.read_text())
    assert formed is not None
    assert odd <= int(formed[1]) < again  # not each step has a snapshot
    rows = [row for each in job.ends() for row in json.loads(each)]
    assert rows == [[3.0 * row + column - STEPS / 2 for column in range(3)] for row in range(len(rows))]
    assert len(rows) == ROWS
