"""The scripts under scripts/ops, on a job of emulated nodes that trains all the while, and is flushed in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Job

OPS = Path(__file__).resolve().parents[2] / "scripts" / "ops"
STEPS = ("--steps", "100000")
SECONDS = 300


class OpsJob(Job):
    """Two nodes and a spare, with storage that only a flush writes to."""

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "storage"
        self.shell_secret = "hunter2hunter2"
        flags = (
            "--local-nodes",
            "2",
            "--spares",
            "1",
            "--durable",
            str(self.storage),
            "--durable-every",
            "1000000",
            "--detect",
            "off",
        )
        super().__init__(folder, *flags, arguments=STEPS)
        self.wait_step(2)

    def run(self, script: str, *words: str, seconds: float = SECONDS) -> tuple[int, str, str]:
        """A script about this job: exit code, stdout, stderr."""
        command = [sys.executable, str(OPS / f"{script}.py"), *words, "--job", self.name]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=seconds, check=False
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpsJob]:
    started = OpsJob(tmp_path_factory.mktemp("ops") / "job")
    yield started
    started.close()


def test_a_bundle_has_what_is_needed_and_no_secret(job: OpsJob, tmp_path: Path) -> None:
    folder = job.folder / "home" / "jobs" / job.name
    secret = (folder / "secret").read_text().strip()
    log = next((folder / "logs").glob("agent-*.log"))
    with log.open("a") as file:
        file.write(f"secret {secret}\npassword=hunter2 url=s3://me:hunter3@host/x --api-key hunter4\n")
    out = tmp_path / "bundle.tar.gz"
    code, said, wrong = job.run("debug_bundle", "--out", str(out))
    assert (code, wrong) == (0, ""), wrong
    assert said.startswith(f"{out}: ")
    with tarfile.open(out) as bundle:
        texts = {m.name.partition("/")[2]: bundle.extractfile(m).read().decode() for m in bundle.getmembers()}  # type: ignore[union-attr]
    assert {"status.json", "incidents.json", "nodes.json", "snapshots.json", "doctor.json"} <= texts.keys()
    assert {"journal.jsonl", "versions.json", "environment.json", f"logs/{log.name}"} <= texts.keys()
    assert json.loads(texts["status.json"])["job"] == job.name
    assert json.loads(texts["journal.jsonl"].splitlines()[0])["event"]["type"] == "job_started"
    assert texts["missing.txt"].strip() == ""
    whole = "\n".join(texts.values())
    assert [word for word in (secret, "hunter2", "hunter3", "hunter4") if word in whole] == []
    assert "password=<removed>" in texts[f"logs/{log.name}"]


def test_a_bundle_that_cannot_be_written_is_one_line(job: OpsJob, tmp_path: Path) -> None:
    code, _, wrong = job.run("debug_bundle", "--out", str(tmp_path / "none" / "b.tar.gz"))
    assert (code, len(wrong.splitlines())) == (2, 1)
    assert "No such file or directory" in wrong


def test_a_rolling_drain_frees_each_node_in_turn_and_loses_no_step(job: OpsJob, tmp_path: Path) -> None:
    members = [node["name"] for node in job.ask("nodes")["nodes"] if node["position"] is not None]
    freed = tmp_path / "freed"
    code, said, wrong = job.run(
        "rolling_drain", *members, "--no-check", "--command", f'echo "$NODE $HOST" >> {freed}', seconds=400
    )
    assert (code, wrong) == (0, ""), said + wrong
    assert [line.split() for line in freed.read_text().splitlines()] == [[n, os.uname().nodename] for n in members]
    incidents = job.faults()
    assert [(i["kind"], i["steps_lost"]) for i in incidents] == [("drained", 0)] * len(members)
    assert all(node["cordon"] is None for node in job.ask("nodes")["nodes"])


def test_a_command_that_fails_ends_the_drain_with_the_node_cordoned(job: OpsJob) -> None:
    spare = next(node["name"] for node in job.ask("nodes")["nodes"] if node["position"] is None)
    code, _, wrong = job.run("rolling_drain", spare, "--command", "exit 3")
    assert (code, wrong) == (1, f"rolling_drain.py: error: the command for {spare} ended with 3\n")
    assert [n["name"] for n in job.ask("nodes")["nodes"] if n["cordon"] is not None] == [spare]


def test_a_node_is_replaced_by_another_one(job: OpsJob) -> None:
    node = next(node["name"] for node in job.ask("nodes")["nodes"] if node["position"] == 1)
    code, said, wrong = job.run("replace_node", node, seconds=400)
    assert (code, wrong) == (0, ""), said + wrong
    [holder] = [n["name"] for n in job.ask("nodes")["nodes"] if n["position"] == 1]
    assert holder != node
    assert said.endswith(f"{node} is replaced; {holder} has its ranks\n")


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("replace_node", ("node-99",), "no node node-99: nodes are "),
        ("flush_before", ("+10",), "+10 is less than --margin-seconds 120 away"),
        ("flush_before", ("tomorrow",), "tomorrow: give HH:MM"),
    ],
)
def test_bad_input_is_one_line(job: OpsJob, script: str, words: tuple[str, ...], says: str) -> None:
    code, _, wrong = job.run(script, *words)
    assert (code, len(wrong.splitlines())) == (2, 1)
    assert says in wrong


def test_before_the_window_ends_the_job_is_flushed(job: OpsJob) -> None:
    """The last test: the job has ended after it, of which a script that waits for its nodes hears."""
    began = time.monotonic()
    code, said, wrong = job.run("flush_before", "+63", "--margin-seconds", "60", seconds=300)
    assert (code, wrong) == (0, ""), said + wrong + job.tail()
    assert 3.0 <= time.monotonic() - began < 63.0
    assert job.wait() == 0
    [written] = job.storage.glob("step-*/.metadata")
    step = int(written.parent.name.removeprefix("step-"))
    assert said.endswith(f"{job.name}: flushed at step {step}: on storage in {job.storage}\n")
    made = [json.loads(line)["step"] for line in (job.out / "rank-0.jsonl").read_text().splitlines()]
    assert made == list(range(step + 1)), "no step was lost, and none made twice, from the first drain to the flush"
    code, _, wrong = job.run("rolling_drain")
    assert (code, wrong) == (2, f"rolling_drain.py: error: job {job.name} has ended: it has no nodes any more\n")
