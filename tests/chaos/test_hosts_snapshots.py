"""What networks, power failures and full memory do to snapshots, on hosts of namespaces.

Each test sees to it that its fault happens at the stage that it names, by what daemon and log say at that moment;
and the job ends as one without a fault, to the last bit, or says honestly why it cannot.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from heavy_jobs import HeavyHostJob
from hosts import Lab
from hosts.job import SHORT_SECONDS, TIMEOUTS
from snapshot_nodes import wait_until
from stages import WAIT_SECONDS, NodeFolder

NODES = 4
MIB = 2**20
FLAGS = ("--nnodes", str(NODES), *TIMEOUTS)
PAIR_FLAGS = ("--nnodes", "2", *TIMEOUTS)
FLIPPED_EVERY_FRAMES = 150
"""About one in ten chunks of 1 MiB: of what is asked for again, hardly any is harmed again."""

MakeLab = Callable[..., Lab]
Start = Callable[..., HeavyHostJob]
Ends = Callable[[int], list[str]]


def cut_for_a_moment(lab: Lab, host: int, node: NodeFolder, words: str) -> None:
    """For less than the heartbeat timeout, and before ``node``, which needs that host for it, has logged these words.

    That is looked at while it is cut: what is not over by then was not over before, and may be right afterwards.
    """
    lab.cut(host)
    time.sleep(SHORT_SECONDS)  # the fault's own length
    is_over = words in node.log
    lab.heal(host)
    assert not is_over, "the cut came too late"


def fill(lab: Lab, host: int, size_bytes: int | None = None) -> None:
    """Have somebody else take so much of a host's shared memory; None: to the last byte."""
    count = [] if size_bytes is None else [f"count={size_bytes // MIB}"]
    lab.run(host, ["dd", "if=/dev/zero", "of=/dev/shm/others", "bs=1M", *count])
    if size_bytes is None:
        assert os.statvfs(lab.root(host) / "dev" / "shm").f_bavail == 0


def told_of(job: HeavyHostJob) -> list[tuple[str, int, int]]:
    """Of each fault: what it was, where the job went on, and how many sealed steps that cost."""
    return [(i["kind"], i["resumed_from"], i["steps_lost"]) for i in job.faults()]


def assert_same(job: HeavyHostJob, ends: list[str], *hosts: int) -> None:
    """The hosts' launchers end well, and all ranks hold what they would without a fault."""
    assert job.wait_all(*hosts) == dict.fromkeys(hosts, 0), job.tail()
    assert job.ends() == ends


def test_a_link_cut_while_protecting_and_a_rack_without_power(
    make_lab: MakeLab, on_hosts: Start, ends_without_a_fault: Ends
) -> None:
    """A cut shorter than the heartbeat timeout: it is protected all the same. Two racks of two hosts: each group has
    one of either, so parity 1 makes up for both at once. A longer cut: the job resumes from the snapshot before."""
    lab = make_lab(6)
    job = on_hosts(lab, *FLAGS, "--spares", "2", "--parity", "1", "--protect-bandwidth", "4M", hold=(10, 20))
    for rank, (host, rack) in enumerate([(1, "east"), (2, "east"), (3, "west"), (4, "west")]):
        job.start(host, "--node-rank", str(rank), "--failure-domain", rack)
    job.wait_for(lambda s: len(s["nodes"]) == NODES, "the first hosts")
    for host in (5, 6):
        job.start(host, "--failure-domain", "south")
    gate = job.folder_on(1)
    assert gate.wait_sealed(9).protected is None
    cut_for_a_moment(lab, 3, job.folder_on(3), "event=protected version=9 ")
    gate.wait_protected(9)
    assert job.status()["generation"] == 1

    assert job.ask("snapshots")["groups"] == [[0, 2], [1, 3]]
    spares = [job.folder_on(host) for host in (5, 6)]  # they are there, to take over
    for host in (3, 4):
        lab.crash(host)
    for spare in spares:
        spare.wait_logged("event=restored version=9 ")
    gate.wait_protected(9)
    lab.heal()
    job.start(3, "--failure-domain", "west")
    job.wait_for(lambda s: s["nodes"][-1]["hostname"] == "h3" and s["nodes"][-1]["state"] == "idle", "a new spare")
    gate.wait_rest()
    generation = job.status()["generation"]
    partner, other = sorted((5, 6), key=lambda host: job.node_on(host)["position"])  # of the gate, which is 0
    job.go(10)
    assert gate.wait_sealed(19).protected == 9
    lab.cut(partner)
    gate.wait_logged(f"event=configure generation={generation + 1} ")
    job.go(20)

    assert_same(job, ends_without_a_fault(NODES), 1, 2, 3, other)
    assert told_of(job) == [("node_lost", 9, 0), ("node_lost", 9, 1)], "the first one is of both hosts"
    assert "event=protected version=19 " not in gate.log.partition(f"event=configure generation={generation + 1} ")[0]


def test_sources_cut_while_a_spare_rebuilds(make_lab: MakeLab, on_hosts: Start, ends_without_a_fault: Ends) -> None:
    """Parity 2, a host without power. A source cut for a moment: the rebuilding goes on. For longer: a second spare
    rebuilds that one's bytes, too."""
    lab = make_lab(6)
    job = on_hosts(lab, *FLAGS, "--spares", "2", "--parity", "2", hold=(10,))
    job.start_all(1, 2, 3, 4, 5, 6, nodes=NODES)
    gate, spares = job.folder_on(1), {host: job.folder_on(host) for host in (5, 6)}
    gate.wait_protected(9)
    for host in spares:
        lab.slow(host, 3 * MIB)
    lab.crash(3)
    wait_until(lambda: any("event=repair " in s.log for s in spares.values()), WAIT_SECONDS, "a spare that rebuilds")
    (spare,) = (s for s in spares.values() if "event=repair " in s.log)
    cut_for_a_moment(lab, 2, spare, "event=restored")
    assert "event=configure generation=3 " not in gate.log
    lab.cut(4)
    assert "event=restored" not in spare.log, "the cut came too late"
    gate.wait_logged("event=configure generation=3 ")
    for host in spares:
        lab.slow(host, 1000 * MIB)
    job.go(10)

    assert_same(job, ends_without_a_fault(NODES), 1, 2, 5, 6)
    assert all("event=restored version=9 " in s.log for s in spares.values())
    assert [(kind, version) for kind, version, _ in told_of(job)] == [("node_lost", 9)] * 2


def test_a_full_memory_is_said_before_training_starts(make_lab: MakeLab, on_hosts: Start) -> None:
    """Almost nothing is free on one of two hosts: its launcher says so. Too little for the job: see test_survival."""
    lab = make_lab(2, shm_bytes=256 * MIB)
    job = on_hosts(lab, *PAIR_FLAGS)
    job.start(1, "--node-rank", "0")
    fill(lab, 2, 255 * MIB)
    job.start(2, "--node-rank", "1")
    assert job.wait_all(2) == {2: 2}
    said = r"error: too little shared memory in /dev/shm: at least 8 MiB are needed, \d MiB are free"
    assert re.search(said, job.log_of(2).read_text())
    assert job.launchers[1].poll() is None, "the other host waits for one that has room"


def test_a_memory_that_fills_up_and_bits_flipped_on_the_wire(
    make_lab: MakeLab, on_hosts: Start, ends_without_a_fault: Ends
) -> None:
    """Somebody takes the last byte of a host's /dev/shm: nothing dies of it, and what was reserved goes on serving.

    Then bits flip, while a snapshot is protected, and while a spare rebuilds the bytes of a host without power.
    """
    lab = make_lab(3, shm_bytes=256 * MIB)
    job = on_hosts(lab, *PAIR_FLAGS, "--spares", "1", hold=(10, 20, 30, 40))
    job.start_all(1, 2, 3, nodes=2)
    gate, full, spare = (job.folder_on(host) for host in (1, 2, 3))
    gate.wait_protected(9)
    daemon = full.daemon_pid
    fill(lab, 2)
    gate.wait_rest()
    job.go(10)
    gate.wait_protected(19)
    assert "peer_lost" not in gate.log
    job.kill_rank(1)
    gate.wait_logged("event=configure generation=2 ")
    gate.wait_protected(19)  # It answers once the last generation's gate is shut.
    gate.wait_rest()
    job.go(20)
    gate.wait_protected(29)
    assert os.statvfs(lab.root(2) / "dev" / "shm").f_bavail == 0
    assert full.daemon_pid == daemon
    assert "Traceback" not in full.log

    lab.flip(FLIPPED_EVERY_FRAMES, job.daemon_ports())
    gate.wait_rest()
    job.go(30)
    gate.wait_protected(39)
    assert "event=chunk_damaged version=39 " in gate.log + full.log
    flipped = lab.flipped
    lab.crash(2)
    spare.wait_logged("event=restored version=39 ")
    assert lab.flipped > flipped
    job.go(40)

    assert_same(job, ends_without_a_fault(2), 1, 3)
    assert told_of(job) == [("worker_exit", 19, 0), ("node_lost", 39, 0)]
