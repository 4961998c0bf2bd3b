"""A script that was written for torchrun, with torchrun's flags, under ``ftrain run``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from jobs import Job


def test_a_script_for_torchrun_is_restarted_and_its_error_is_told(tmp_path: Path) -> None:
    flags = ("--standalone", "--nproc_per_node=2", "--max_restarts=3", "--role=trainer", "--rdzv_id=run-7")
    flags += ("--log_dir", str(tmp_path / "logs"), "--redirects=2", "--tee=1:2", "--monitor_interval=0.1")
    job = Job(tmp_path / "job", *flags, program="torchrun_script.py")
    try:
        assert job.wait() == 0, job.tail()
        ends = [json.loads((job.out / f"end-{rank}").read_text()) for rank in range(2)]
        expected = {
            "total": 25.0,
            "restarts": 1,
            "ROLE_NAME": "trainer",
            "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_MAX_RESTARTS": "3",
            "TORCHELASTIC_RUN_ID": job.name,  # --name goes before --rdzv_id
        }
        assert ends == [expected, expected]
        shown = job.log.read_text()
        assert "[rank 0] to stdout 0" in shown
        assert "[rank 1] to stderr 1" in shown
        assert "[rank 0] to stderr 0" not in shown
        assert "to stderr 0" in (tmp_path / "logs" / "generation-1" / "rank-0.err").read_text()
        (incident,) = job.ask("incidents")["incidents"]
        assert "ValueError: rank one had a bad day" in json.dumps(incident)
    finally:
        job.close()


def test_a_program_that_is_not_python_runs_from_the_module(tmp_path: Path) -> None:
    flags = ["--no-python", "--nproc-per-node", "2", "--name", f"echo-{os.getpid()}", "--log-dir", str(tmp_path)]
    command = [
        sys.executable,
        "-m",
        "ftrain_launcher",
        "run",
        *flags,
        "sh",
        "-c",
        "echo rank $RANK of $WORLD_SIZE, ${local_rank} here",
    ]
    environment = {**os.environ, "FTRAIN_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"[rank {rank}] rank {rank} of 2, {rank} here" in done.stdout
