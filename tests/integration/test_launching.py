"""scripts/launch/ssh and slurm.sbatch, run for real, with an `ssh` and a Slurm that run what they are given here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PROGRAMS, TIMEOUT_SECONDS, free_port

LAUNCH = Path(__file__).resolve().parents[2] / "scripts" / "launch"
FTRAIN = Path(sys.executable).with_name("ftrain")
SSH = """#!/usr/bin/env bash
while [[ $1 == -o ]]; do shift 2; done
echo "$1" >>{folder}/hosts
mkdir -p {folder}/tmp-$1
# Both are this machine: whoever comes first has the controller's address.
while [[ $1 == h2 && ! -e $(echo {folder}/home-h1/jobs/*/controller.json) ]]; do sleep 0.1; done
FTRAIN_HOME={folder}/home-$1 exec bash -c "${{2//\\/tmp\\/.ftrain/{folder}/tmp-$1/.ftrain}}"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '127.0.0.1\\n127.0.0.2\\n'; else echo "$*" >>{folder}/scontrol; fi
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for _ in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & tasks+=($!); done
code=0
for task in "${{tasks[@]}}"; do wait "$task" || code=$?; done
exit "$code"
"""


class Bench:
    """A folder with programs of the test's own first on PATH, and what was started with it."""

    def __init__(self, folder: Path, programs: dict[str, str]) -> None:
        self.folder, self.out, self.log = folder, folder / "out", folder / "terminal.log"
        self.storage = folder / "storage"
        for path in (self.out, folder / "bin"):
            path.mkdir()
        for name, text in programs.items():
            program = folder / "bin" / name
            program.write_text(text.format(folder=folder))
            program.chmod(0o755)
        (folder / "bin" / "ftrain").symlink_to(FTRAIN)
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FTRAIN_HOME": str(folder / "home"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "FTRAIN_RECORDER": "0",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment | environment,
                start_new_session=True,
            )
        return self.process

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not is_so():
            assert self.process is not None
            assert self.process.poll() is None, f"it ended before {what}\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.log.read_text()}"
            time.sleep(0.1)

    def trains(self) -> bool:
        """Both ranks have made a step."""
        return all((self.out / f"rank-{rank}.jsonl").exists() for rank in range(2))

    def close(self) -> None:
        """End what is left of it, by its session."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Bench]]:
    made: list[Bench] = []

    def make(programs: dict[str, str]) -> Bench:
        made.append(Bench(tmp_path, programs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def train(bench: Bench) -> list[str]:
    return [str(PROGRAMS / "train.py"), "--out", str(bench.out), "--steps", "100000"]


def test_over_ssh_a_signal_flushes_the_job_and_no_secret_is_left(bench: Callable[[dict[str, str]], Bench]) -> None:
    here = bench({"ssh": SSH})
    options = ["--address", "127.0.0.1", "--port", str(free_port())]
    started = here.start(
        [str(LAUNCH / "ssh"), *options, "h1", "h2", "--", "--durable", str(here.storage), *train(here)]
    )
    here.wait_for(here.trains, "the first steps")
    [name] = {path.name for path in here.folder.glob("home-h1/jobs/*")}
    secrets = list(here.folder.glob(f"tmp-h?/.ftrain-{name}*"))
    assert len(secrets) == 4, "each host has the secret, and a pid"
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets if path.suffix != ".pid")
    own = here.folder / "out"
    written = (own / "rank-0.jsonl").stat().st_mode & 0o077
    assert written == own.stat().st_mode & 0o066, "the user's own umask holds for what training writes"
    started.send_signal(signal.SIGUSR1)
    assert started.wait(TIMEOUT_SECONDS) == 0, here.log.read_text()
    said = here.log.read_text()
    assert said.count("flushed at step ") == 2, said
    assert len(list(here.storage.glob("step-*/.metadata"))) == 1
    assert not list(here.folder.glob(f"tmp-h?/.ftrain-{name}*"))
    assert {"h1", "h2"} == set((here.folder / "hosts").read_text().split())


def test_on_slurm_the_allocation_s_end_flushes_the_job_and_submits_it_again(
    bench: Callable[[dict[str, str]], Bench],
) -> None:
    here = bench({"scontrol": SCONTROL, "srun": SRUN})
    started = here.start(
        ["bash", str(LAUNCH / "slurm.sbatch"), *train(here)],
        SLURM_JOB_ID="4711",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="n[1-2]",
        FTRAIN_NODES="2",
        FTRAIN_NPROC_PER_NODE="1",
        FTRAIN_PORT=str(free_port()),
        FTRAIN_DURABLE=str(here.storage),
        FTRAIN_FLUSH_SECONDS="60",
    )
    here.wait_for(here.trains, "the first steps")
    secret = here.folder / ".ftrain" / "slurm-4711.secret"
    assert secret.stat().st_mode & 0o077 == 0
    started.send_signal(signal.SIGUSR1)
    assert started.wait(TIMEOUT_SECONDS) == 0, here.log.read_text()
    said = here.log.read_text()
    assert "slurm-4711: flushed at step " in said
    assert len(list(here.storage.glob("step-*/.metadata"))) == 1
    assert (here.folder / "scontrol").read_text() == "requeue 4711\n"
    assert not secret.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["h1", "--"], "give the training script after --"),
        (["--", "train.py"], "give the hosts"),
        (["h1", "--nodes", "2", "--", "train.py"], "--nodes 2: there are 1 hosts"),
        (["--shell", "h1", "--", "train.py"], "there is no --shell"),
    ],
)
def test_bad_input_is_one_line(words: list[str], says: str) -> None:
    done = subprocess.run(
        [str(LAUNCH / "ssh"), *words], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert says in done.stderr


def test_a_dry_run_says_what_each_host_would_run_and_runs_nothing(bench: Callable[[dict[str, str]], Bench]) -> None:
    here = bench({"ssh": SSH})
    words = ["--dry-run", "--nodes", "1", "me@h1", "h2", "--", "train.py", "a b"]
    done = subprocess.run(
        [str(LAUNCH / "ssh"), *words],
        capture_output=True,
        text=True,
        env=here.environment,
        timeout=TIMEOUT_SECONDS,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("me@h1: (umask 077; set -C; cat >")
    assert "--controller h1:29400 --nnodes 1" in first
    assert first.endswith("--node-rank 0 train.py a\\ b")
    assert "--node-rank" not in second, "a spare"
    assert not (here.folder / "hosts").exists()
