"""Scripts that were written for torchrun, unchanged: what they train is the same, under torchrun and after a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PROGRAMS, TIMEOUT_SECONDS, Job, Outcome, holding

FLAGS = ("--standalone", "--nproc_per_node=2", "--max_restarts=3")


@pytest.mark.parametrize(
    ("program", "held", "marker"),
    [
        ("nanogpt_ddp.py", 5, "ckpt.pt"),
        ("titan_fsdp2.py", 5, "step-4/.metadata"),
        ("loader_ddp.py", 1, "epoch.pt"),
    ],
)
def test_a_script_of_torchrun_trains_the_same_although_a_worker_is_killed(
    tmp_path: Path, program: str, held: int, marker: str
) -> None:
    job = Job(tmp_path / "job", *FLAGS, program=program, arguments=holding(held))
    try:
        job.wait_for(lambda _: (job.out / marker).exists(), "the first checkpoint")
        pid = job.kill_rank(1)
        job.wait_for(lambda status: status["generation"] == 2, "another generation")
        job.go(held)
        assert job.wait() == 0, job.tail()
    finally:
        job.close()
    (incident,) = job.faults()
    assert incident["kind"] == "worker_exit"
    assert {"rank": 1, "node": "node-0", "pid": pid} in incident["suspects"]

    under_torchrun = Outcome(tmp_path / "torchrun")
    under_torchrun.out.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", *FLAGS, str(PROGRAMS / program)]
    command += ["--out", str(under_torchrun.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(job.ends()) == 2
    assert job.ends() == under_torchrun.ends()
