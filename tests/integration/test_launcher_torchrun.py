"""A script that was written for torchrun, with torchrun's flags, under ``ftrain run``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PROGRAMS, TIMEOUT_SECONDS, Job, free_port


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
        (incident,) = job.faults()
        assert "ValueError: rank one had a bad day" in json.dumps(incident)
    finally:
        job.close()


def started(tmp_path: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """`ftrain run` as a user starts it, with its stdout and stderr apart."""
    command = [sys.executable, "-m", "ftrain_launcher", "run", *words]
    environment = {**os.environ, "FTRAIN_HOME": str(tmp_path / "home"), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it said."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def test_a_program_that_is_not_python_runs_from_the_module(tmp_path: Path) -> None:
    flags = ("--no-python", "--nproc-per-node", "2", "--log-dir", str(tmp_path))
    program = ("sh", "-c", "echo rank $RANK of $WORLD_SIZE, ${local_rank} $local_rank here")
    (tmp_path / "generation-1").mkdir()
    (tmp_path / "generation-1" / "rank-0.log").write_text("an older job's\n")
    code, out, err = ended(started(tmp_path, *flags, *program))
    assert code == 0, out + err
    assert sorted(out.splitlines()) == [f"[rank {rank}] rank {rank} of 2, {rank} {rank} here" for rank in range(2)]


def test_stdout_and_stderr_stay_apart_and_filters_and_a_prefix_are_taken(tmp_path: Path) -> None:
    flags = ("--standalone", "--no_python", "--nproc=2", "--redirect=3", "--tee=3", "--virtual-local-rank")
    flags += ("--log_dir", str(tmp_path / "logs"), "--duplicate-stdout-filters=loss", "--role=trainer")
    program = ("sh", "-c", "echo loss of $RANK, $LOCAL_RANK: $CUDA_VISIBLE_DEVICES; echo noise; echo bad >&2")
    template = "[${role_name}${local_rank}]:"
    variables = {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": template, "CUDA_VISIBLE_DEVICES": "4, 6"}
    code, out, err = ended(started(tmp_path, *flags, *program, **variables))
    assert code == 0, out + err
    losses = ["[trainer0]:loss of 0, 0: 4", "[trainer1]:loss of 1, 0: 6"]
    assert sorted(out.splitlines()) == sorted([*losses, "[trainer0]:noise", "[trainer1]:noise"])
    said = [line for line in err.splitlines() if not line.startswith("ftrain: ")]
    assert sorted(said) == ["[trainer0]:bad", "[trainer1]:bad"]
    folder = tmp_path / "logs" / "generation-1"
    assert sorted((folder / "filtered_stdout.log").read_text().splitlines()) == losses
    assert not (folder / "filtered_stderr.log").exists()
    assert (folder / "rank-1.err").read_text() == "bad\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR2"])
def test_the_signal_that_ends_the_job_is_handed_on(tmp_path: Path, name: str) -> None:
    program = ("sh", "-c", f"trap 'echo told; exit 0' {name[3:]}; echo ready; while :; do sleep 0.1; done")
    process = started(tmp_path, "--no-python", "--nproc-per-node=1", f"--signals-to-handle={name}", *program)
    assert process.stdout is not None
    assert process.stdout.readline() == "[rank 0] ready\n"
    process.send_signal(signal.Signals[name])
    code, out, err = ended(process)
    assert (code, out) == (128 + signal.Signals[name], "[rank 0] told\n"), err


def test_a_store_at_the_master_port_is_there_again_after_restarts(tmp_path: Path) -> None:
    port = free_port()
    flags = ("--nnodes=1", "--node_rank=0", "--master_addr=localhost", f"--master_port={port}", "--nproc_per_node=2")
    script = (str(PROGRAMS / "torchrun_init.py"), "--out", str(tmp_path), f"--init-method=tcp://localhost:{port}")
    code, out, err = ended(started(tmp_path, *flags, "--max-restarts=3", "--run-path", *script, "--fail=2"))
    assert code == 0, out + err
    assert [(tmp_path / f"end-{rank}").read_text() for rank in range(2)] == ["True 2", "True 2"]
    assert "incident 2: rank" in err  # the same failure again is no end: so many restarts were asked for


def test_the_first_error_is_left_for_who_started_the_launcher(tmp_path: Path) -> None:
    reply = tmp_path / "reply.json"
    script = (str(PROGRAMS / "torchrun_init.py"), "--out", str(tmp_path), "--fail=1")
    flags = ("--nproc-per-node=2", "--max-restarts=0")
    code, out, err = ended(started(tmp_path, *flags, *script, TORCHELASTIC_ERROR_FILE=str(reply)))
    assert code == 1, out + err
    message = json.loads(reply.read_text())["message"]
    assert message["message"] == "ValueError: rank one had a bad day"
    assert message["errorCode"] == 1
    assert "Traceback" in message["extraInfo"]["py_callstack"]


def test_two_launchers_meet_at_an_endpoint(tmp_path: Path) -> None:
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=meeting/7")
    flags = ("--nnodes=1:2", "--nproc-per-node=1", *rendezvous, "--rdzv_conf='timeout=60,last_call_timeout=60'")
    script = (str(PROGRAMS / "torchrun_init.py"), "--out", str(tmp_path))
    both = [started(tmp_path, *flags, *script) for _ in range(2)]
    for code, out, err in map(ended, both):
        assert code == 0, out + err
        assert "job meeting-7" in err
    assert [(tmp_path / f"end-{rank}").read_text() for rank in range(2)] == ["True 2", "True 2"]


def test_what_is_no_folder_for_output_is_refused(tmp_path: Path) -> None:
    code, _, err = ended(started(tmp_path, "--log-dir=/dev/null", str(PROGRAMS / "torchrun_init.py")))
    assert code == 2
    assert err.startswith("ftrain: error: --log-dir /dev/null: is no folder")
    assert err.count("\n") == 1
