"""A signal while `ftrain run` only starts: it is handled once the launcher can, and nothing is left of the job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import environment
from snapshot_nodes import wait_until

WAIT_SECONDS = 60.0


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher that has been stopped just after it made its folder in shared memory."""
    script = tmp_path / "never.py"
    script.write_text("raise SystemExit('a worker has started')\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "ftrain_launcher", "run", "--local-nodes", "2", "--arena-dir", tmp_path, script],
        env=environment(FTRAIN_HOME=str(tmp_path / "home")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: list(tmp_path.glob("ftrain-*")) != [], WAIT_SECONDS, "the job's folder")
    process.send_signal(signal.SIGSTOP)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_it_ends_the_job_and_nothing_is_left(
    launcher: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    begun = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(number)
    launcher.send_signal(signal.SIGCONT)
    said, _ = launcher.communicate(timeout=WAIT_SECONDS)
    assert launcher.returncode == 128 + number, said
    assert f"error: stopped by {number.name}" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("ftrain-*"))
    assert not [process for process in begun if process.is_running()]
