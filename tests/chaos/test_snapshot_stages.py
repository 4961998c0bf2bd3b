"""Daemons killed at every stage, bits flipped in their memory, more nodes lost than one: full jobs on emulated nodes.

Each test sees to it that its fault happens at the stage that it names, by what arena, daemon and log say at that
moment; and the job ends as one without a fault, to the last bit, or says honestly why it cannot.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from heavy_jobs import EVERY, EmulatedJob
from jobs import Job, assert_same, ranks_of
from small_disk import small_disk
from snapshot_nodes import wait_until
from stages import WAIT_SECONDS, NodeFolder, held_back, stop

NODES = 4
FLAGS = ("--local-nodes", str(NODES))
SLOW = ("--protect-bandwidth", "6M")
"""A node's 16 MiB take 2.5 s to be protected."""

Start = Callable[..., EmulatedJob]
Ends = Callable[[int], list[str]]


def kill_daemon(node: NodeFolder) -> None:
    """SIGKILL, and wait until another one has taken over."""
    pid = node.daemon_pid
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: node.daemon_pid not in (0, pid), WAIT_SECONDS, f"a new daemon in {node.folder.name}")


def kill_daemon_before(node: NodeFolder, words: str, too_late: str) -> None:
    """Kill it, if it has not logged these words: it stands still while that is looked at."""
    stop(node.daemon_pid)
    assert words not in node.log, too_late
    kill_daemon(node)


def pids_of(job: Job) -> dict[int, int]:
    return {rank: entry["pid"] for rank, entry in ranks_of(job.wait_for(lambda s: s, "a status")).items()}


@pytest.mark.alone  # a reservation must be seen within its milliseconds
def test_daemons_killed_at_every_stage_of_a_snapshot(emulated: Start, ends_without_a_fault: Ends) -> None:
    """Training goes on in the same processes, and what comes next is protected again."""
    job = emulated(*FLAGS, *SLOW, hold=(10, 20, 30, 40, 50), arguments=("--pause", "1", "29"))
    kill_while_reserving(job.node("node-1"))
    kill_while_the_first_parity_comes(job.node("node-2"))
    gate, pids = job.node("node-0"), pids_of(job)
    gate.wait_rest()
    job.go(10)
    gate.wait_protected(19)
    kill_while_all_is_protected(job.node("node-3"), gate)
    gate.wait_rest()
    job.go(20)
    kill_while_capturing(job.node("node-1"), job.out / "go-on")
    gate.wait_sealed(29)
    gate.wait_rest()
    job.go(30)
    assert (gate.wait_sealed(39).protected or 0) < 39
    kill_daemon_before(gate, "event=protected version=39 ", "its parity was complete")
    gate.wait_rest()
    job.go(40)
    gate.wait_protected(49)
    assert (job.wait_for(lambda s: s["generation"], "a status"), pids_of(job)) == (1, pids)
    job.go(50)

    assert_same(job, ends_without_a_fault(NODES))
    assert [i["kind"] for i in job.faults()] == ["daemon_exit"] * 5


def kill_while_reserving(node: NodeFolder) -> None:
    node.wait_logged("event=configure ")
    with held_back(node.daemon_pid):
        wait_until((node.folder / "slot0.lane0").exists, WAIT_SECONDS, "the first bytes of the arena")
        stop(node.daemon_pid)
    assert not list(node.folder.glob("slot2.parity0.*")), "all was reserved"
    kill_daemon(node)


def kill_while_the_first_parity_comes(node: NodeFolder) -> None:
    wait_until(node.parity_has_begun, WAIT_SECONDS, "parity")
    kill_daemon_before(node, "event=protected", "its parity was complete")


def kill_while_all_is_protected(node: NodeFolder, gate: NodeFolder) -> None:
    levels = gate.levels()
    assert levels.sealed == levels.protected is not None
    kill_daemon(node)
    wait_until(lambda: gate.levels() == levels, WAIT_SECONDS, "what was protected")


def kill_while_capturing(node: NodeFolder, marker: Path) -> None:
    """The worker stands still in the middle of it, and then completes it."""
    with node.regions() as regions:

        def capturing() -> bool:
            return any(map(node.is_capturing, regions))

        wait_until(capturing, WAIT_SECONDS, "a capture")
        kill_daemon(node)
        assert capturing(), "the capture was over"
        marker.touch()


def told(job: Job) -> list[dict[str, Any]]:
    """All faults but damage, which the controller only hears of if the generation outlives the next heartbeat: the
    daemon's log has it in any case."""
    return [i for i in job.faults() if i["kind"] != "chunks_damaged"]


def test_one_parity(emulated: Start, ends_without_a_fault: Ends) -> None:
    """A spare's daemon is killed while it rebuilds. Then a flipped bit and a lost node: that version is not used."""
    job = emulated(*FLAGS, "--spares", "1", hold=(10, 20))
    gate = job.node("node-0")
    gate.wait_protected(9)
    spare = job.node("node-4")
    wait_until(lambda: spare.daemon_pid > 0, WAIT_SECONDS, "a spare")
    with held_back(spare.daemon_pid):
        job.kill_nodes("node-1")
        spare.wait_logged("event=repair ")
        stop(spare.daemon_pid)
    kill_daemon_before(spare, "event=restored", "all was rebuilt")
    spare.wait_logged("event=restored version=9 ")
    gate.wait_protected(9)
    gate.wait_rest()
    job.go(10)

    gate.wait_protected(19)
    damaged = job.node("node-2")
    damaged.flip(19, 2)
    job.kill_nodes("node-3")
    job.go(20)

    assert_same(job, ends_without_a_fault(NODES))
    assert "event=chunk_damaged version=19 " in damaged.log
    lost, killed, *more = told(job)
    assert (lost["kind"], lost["resumed_from"], killed["kind"]) == ("node_lost", 9, "daemon_exit")
    assert (9, 1) in [(i["resumed_from"], i["steps_lost"]) for i in more]


def test_two_parities(emulated: Start, ends_without_a_fault: Ends, tmp_path: Path) -> None:
    """Bits flipped in two nodes and a third one lost; two nodes lost at once; three, for which storage is needed."""
    durable = ("--durable", str(tmp_path / "durable"), "--durable-every", str(2 * EVERY))
    job = emulated(*FLAGS, *durable, "--spares", "2", "--parity", "2", hold=(10, 20, 30))
    gate = job.node("node-0")
    gate.wait_protected(9)
    lose_one_of_three_that_are_harmed(job)
    gate.wait_protected(9)
    gate.wait_rest()
    job.go(10)

    job.wait_for(lambda s: s["snapshots"]["durable"] == 19, "a durable checkpoint")
    generation = job.wait_for(lambda s: s["generation"], "a status")
    job.kill_nodes("node-2", "node-3")
    gate.wait_logged(f"event=configure generation={generation + 1} ")
    gate.wait_protected(19)
    gate.wait_rest()
    job.go(20)

    gate.wait_protected(29)
    assert "after step 19, from " not in job.tail(), "memory was enough"
    nodes = job.wait_for(lambda s: s["nodes"] if s["state"] == "running" else None, "the nodes")
    job.kill_nodes(*(n["name"] for n in nodes if n["position"] and n["state"] == "active"))
    job.go(30)

    assert_same(job, ends_without_a_fault(NODES))
    lost = [(i["resumed_from"], i["steps_lost"]) for i in told(job) if i["kind"] == "node_lost"]
    assert list(dict.fromkeys(lost)) == [(9, 0), (19, 0), (19, 10)]  # Nodes lost at once may be two incidents.
    assert "after step 19, from " in job.tail()


def lose_one_of_three_that_are_harmed(job: EmulatedJob) -> None:
    """One flipped bit is found by a check on request, the other when the job resumes."""
    checked, restored = job.node("node-3"), job.node("node-2")
    checked.flip(9, 0)
    report = checked.verify()
    assert sum(lane.damaged for lane in report.lanes) == sum(lane.repaired for lane in report.lanes) == 1, report
    restored.flip(9, 3)
    job.kill_nodes("node-1")
    restored.wait_logged("event=chunk_repaired version=9 ")
    assert "event=chunk_damaged version=9 " in restored.log
    assert "event=chunk_repaired version=9 " in checked.log


def test_three_nodes_lost_at_once_with_two_parities_end_the_job_honestly(emulated: Start) -> None:
    job = emulated(*FLAGS, "--spares", "1", "--parity", "2", hold=(10,))
    job.node("node-0").wait_protected(9)
    job.kill_nodes("node-1", "node-2", "node-3")
    assert job.wait() == 3
    last = job.tail(1)
    assert "error: the job's state is lost" in last
    assert "Lost: node-1 (position 1), node-2 (position 2), node-3 (position 3)." in last
    assert "parity 2 replaces at most 2 lost nodes of a group" in last
    assert "It would be complete with position 1, 2 or 3 back." in last
    assert not job.ends()
    assert max(job.steps(0)) == 9


def test_labels_that_make_the_protection_impossible_are_refused(emulated: Start) -> None:
    job = emulated(*FLAGS, "--no-zygote", "--failure-domain", "a,a,a,b")
    assert job.wait() == 2
    last = job.tail(1)
    assert "parity 1 cannot make up for the loss of failure domain 'a': it has 3 of 4 nodes" in last
    assert "use --parity" in last
    assert not list(job.out.iterdir())


def test_a_state_that_outgrows_its_memory_is_said_and_training_goes_on(emulated: Start, tmp_path: Path) -> None:
    """There was enough at the start; then a tensor of 64 MiB is added, and the arena cannot grow. A rank that is lost
    after that comes back from the last snapshot that did fit."""
    with small_disk(tmp_path / "arena", "232m") as arena:
        flags = ("--local-nodes", "2", "--arena-dir", str(arena))
        job = emulated(*flags, arguments=("--grow-at", "15"), hold=(10, 30))
        job.capture(10, ranks=2)
        job.wait_step(29)
        job.wait_shown("warning: too little shared memory")
        job.kill_rank(1)
        job.go(30)
        assert job.wait() == 0, job.tail()
        said = (
            r"warning: too little shared memory on node-\d: the snapshots need \d+ MiB, \d+ MiB are free; make /dev/shm"
        )
        assert re.search(said, job.log.read_text())
        (lost,) = job.faults()
        assert lost["resumed_from"] == 9
        for name in ("node-0", "node-1"):
            assert "Traceback" not in job.node(name).log
        assert len(job.ends()) == 2
