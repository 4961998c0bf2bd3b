"""``ftrain snapshots --verify`` on a real job: bits flipped in its memory are found, named and repaired."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from heavy_jobs import EmulatedJob
from jobs import TIMEOUT_SECONDS

from ftrain_snapshot import arena
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES

HELD = 4
STEPS = 6


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EmulatedJob]:
    """Three nodes, three chunks and more each, that wait before step 4 with step 3 protected."""
    job = EmulatedJob(
        tmp_path / "job",
        *("--local-nodes", "3", "--snapshot-every", "1"),
        hold=tuple(range(1, HELD + 1)),
        arguments=("--steps", str(STEPS), "--mib", "3"),
    )
    try:
        gate = job.node("node-0")
        for step in range(1, HELD):
            gate.wait_protected(step - 1)
            gate.wait_gate_open()
            job.go(step)
        gate.wait_protected(HELD - 1)
        yield job
    finally:
        job.close()


def verify(job: EmulatedJob) -> tuple[int, dict[str, Any]]:
    code, text = command(job, "--json")
    return code, json.loads(text)


def command(job: EmulatedJob, *more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ftrain_launcher.cli", "snapshots", "--job", job.name, "--verify", *more],
        capture_output=True,
        text=True,
        env=job.environment,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def flip_data(folder: Path, version: int, chunk: int) -> None:
    lane = Lane(folder, 0)
    headers = [(region, region.header()[1]) for region in lane.regions]
    (region,) = [r for r, header in headers if header is not None and header.snapshot.version == version]
    home = region.home(chunk)
    lane.close()
    flip(arena.home_path(folder, home, 0), chunk * CHUNK_BYTES + 77)


def check_that_flipped_bits_are_named_and_repaired(job: EmulatedJob) -> None:
    code, report = verify(job)
    assert (code, report["sound"]) == (0, True), report
    assert [n["damaged"] for n in report["nodes"]] == [0, 0, 0]
    assert all(n["checked"] >= 6 for n in report["nodes"])

    flip_data(job.arena / "node-1", HELD - 1, 1)
    parity = [p for p in (job.arena / "node-2").glob("slot*.parity0.*") if p.stat().st_size > CHUNK_BYTES]
    for path in parity:  # whichever of them is in use; of another stripe than the chunk
        flip(path, CHUNK_BYTES + 5)
    assert parity

    code, report = verify(job)
    assert (code, report["sound"]) == (0, True), report
    by_node = {n["node"]: n for n in report["nodes"]}
    assert by_node["node-0"]["damaged"] == 0
    assert by_node["node-1"]["damaged"] == by_node["node-1"]["repaired"] >= 1
    assert by_node["node-2"]["damaged"] == by_node["node-2"]["repaired"] >= 1
    damage = {
        (node, lane["version"], lane["lane"], place["kind"], place["chunk"])
        for node, found in by_node.items()
        for lane in found["lanes"]
        for place in lane["damage"]
    }
    assert ("node-1", HELD - 1, 0, "data", 1) in damage
    assert {place[3] for place in damage if place[0] == "node-2"} == {"parity"}

    code, text = command(job)
    assert code == 0
    assert "chunks are sound\n" in text
    assert "repaired from parity" not in text
    job.wait_for(lambda s: s["incidents"] >= 2 and len(job.faults()) == 2, "the incidents")


def check_that_what_parity_cannot_bring_back_is_lost(job: EmulatedJob) -> None:
    stripe = arena_stripe_of_two(job)
    for node, chunk in stripe:
        flip_data(job.arena / node, HELD - 1, chunk)
    code, report = verify(job)
    assert (code, report["sound"]) == (1, False), report
    assert {n["node"] for n in report["nodes"] if n["damaged"] > n["repaired"]} == {node for node, _ in stripe}
    for number in range(3):
        job.node(f"node-{number}").wait_logged(f"event=snapshot_dropped version={HELD - 1} ")
    code, report = verify(job)
    assert code == 0, "the job has given that snapshot up, and has older ones"
    assert HELD - 1 not in {lane["version"] for n in report["nodes"] for lane in n["lanes"]}


def test_flipped_bits_are_named_and_repaired_or_their_snapshot_is_given_up(job: EmulatedJob) -> None:
    check_that_flipped_bits_are_named_and_repaired(job)
    check_that_what_parity_cannot_bring_back_is_lost(job)
    job.go(HELD)
    assert job.wait() == 0, job.tail()
    assert {i["kind"] for i in job.faults()} == {"chunks_damaged"}
    assert "node-1 found damaged chunks of its snapshots" in job.log.read_text()
    assert command(job) == (2, "")


def arena_stripe_of_two(job: EmulatedJob) -> list[tuple[str, int]]:
    """Two data chunks of one stripe: one more than parity 1 makes up for."""
    from ftrain_snapshot.placement import group_of

    group = group_of(0, 3, 1)
    first, second = group.data_members(0)
    return [(f"node-{p}", group.data_rotations(p).index(0)) for p in (first, second)]
