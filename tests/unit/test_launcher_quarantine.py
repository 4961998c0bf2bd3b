"""Nodes that the policy takes out, since they are at fault again and again."""

from __future__ import annotations

import pytest
from unit.coordinator_job import BOTH, Job, config, snapshot
from unit.diagnosed_job import again, cordon, hang_twice, last, move, running_job, say, started

from ftrain_launcher.control import views
from ftrain_launcher.control.journal import decode
from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.job.events import Detect, HostCame, JobConfig
from ftrain_launcher.job.membership import NodeState, Phase

job = pytest.fixture(running_job)


def second_host_taken_out() -> tuple[Job, list[str]]:
    """A job over two of three hosts that trains on after its second was at fault; the nodes' names."""
    job = Job(config(nodes=2, spares=1, hosts=True))
    names = [job.come(f"host-{n}") for n in range(3)]
    job.stop_all()
    job.step_all()
    say(job, Kind.COMMUNICATION_HANG, nodes=(names[1],))
    again(job)
    return job, names


def test_a_node_that_hangs_again_is_replaced_by_the_spare_and_stays_connected(job: Job) -> None:
    hang_twice(job)
    again(job)
    assert job.members() == ["node-0", "node-3", "node-2"]
    node = job.coordinator.nodes["node-1"]
    assert (node.state, node.position, node.connection is not None) == (NodeState.CORDONED, None, True)
    assert node.cordon is not None
    assert node.cordon.quarantined
    assert last(job).decision == (
        "node-1 is quarantined: hung 2 times within an hour, at different steps; node-3 takes over from node-1"
    )
    assert "node-1" not in job.reaped
    assert job.started[-1] == "node-4"  # a new spare


def test_if_nobody_can_take_over_it_keeps_its_ranks_until_somebody_can() -> None:
    job = started(spares=0)
    hang_twice(job)
    again(job)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert "it keeps its ranks until another node is there" in last(job).decision
    assert job.started[-1] == "node-3"
    job.join("node-3")
    assert job.coordinator.phase is Phase.RUNNING
    move(job, 7)
    assert job.members() == ["node-0", "node-3", "node-2"]


def test_it_keeps_its_ranks_where_its_bytes_are_needed(job: Job) -> None:
    """A worker was killed: what is sealed is on its own nodes alone, and no sealed step may be lost for this."""
    hang_twice(job)
    job.stop_all(BOTH)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.restore == snapshot(5, slot=1)


def test_the_policy_takes_out_only_so_many_nodes_within_an_hour() -> None:
    job = started(nodes=3, spares=1)
    for n in range(3):
        for step in (2 * n, 2 * n + 1):
            rank = job.members().index(sorted(job.members())[0])
            say(job, Kind.HANG, rank, step=step)
            again(job)
            if job.started[-1] not in [name for name, node in job.coordinator.nodes.items() if node.connection]:
                job.join(job.started[-1])
    assert job.coordinator.phase is Phase.RUNNING
    out = [n for n in job.coordinator.nodes.values() if n.cordon is not None]
    assert len(out) == 2 == job.coordinator.quarantine.isolations(job.now)
    assert "2 nodes were taken out within an hour already" in last(job).decision
    assert job.coordinator.quarantine.isolations(job.now + 3600) == 0


def test_on_hosts_one_that_was_taken_out_comes_back_if_nobody_else_is_there() -> None:
    job, names = second_host_taken_out()
    assert job.members() == [names[0], names[2]]
    job.lose(names[2])
    assert job.members() == [names[0], names[1]]
    assert job.coordinator.nodes[names[1]].cordon is None
    assert f"{names[1]} may hold ranks again: nobody else is there" in job.news


def test_what_an_operator_has_cordoned_as_well_is_not_taken_back() -> None:
    job, names = second_host_taken_out()
    cordon(job, names[1])
    job.lose(names[2])
    assert job.members() == [names[0]]


def test_a_host_that_was_taken_out_does_not_come_back_as_another_node() -> None:
    job, names = second_host_taken_out()
    job.lose(names[1])
    job.tell(HostCame("another launcher", "host-1"))
    new = job.started[-1]
    job.join(new)
    assert job.coordinator.nodes[new].state is NodeState.CORDONED
    assert job.coordinator.nodes[new].cordon == job.coordinator.nodes[names[1]].cordon


def test_a_host_that_is_lost_again_and_again_is_taken_out_whatever_its_node_is_called() -> None:
    job = Job(config(nodes=2, hosts=True))
    job.come("steady")
    new = job.come("flaps")
    job.stop_all()
    job.step_all()
    for _ in range(3):
        job.lose(new)
        new = job.come("flaps")
        again(job)
    assert job.coordinator.nodes[new].cordon is not None
    assert job.coordinator.nodes[new].position == 1
    assert "lost 3 times within an hour, more than any other node" in last(job).decision
    other = job.come("other")
    move(job, 7)
    assert job.members()[1] == other


def test_hosts_of_one_name_are_told_apart_by_their_nodes() -> None:
    job = Job(config(nodes=2, hosts=True))
    for launcher in ("one", "two"):
        job.tell(HostCame(launcher, "localhost"))
        job.join(job.started[-1])
    assert job.coordinator.quarantine.machines() == {"node-0": "node-0", "node-1": "node-1"}


def test_a_journal_of_an_older_version_is_still_read() -> None:
    line = (
        b'{"now":1.0,"event":{"type":"job_started","config":{"work":{"job":"j","argv":["t.py"],"folder":"/",'
        b'"log_folder":"/","nproc_per_node":1,"snapshot_every":1,"parity":1,"max_restarts":3},"nodes":2,"spares":1}}}'
    )
    event = decode(line).event
    assert isinstance(event.config, JobConfig)
    assert (event.config.detect, event.config.isolate_slow) == (Detect.ACT, False)


def test_nodes_are_shown_with_what_speaks_against_them(job: Job) -> None:
    hang_twice(job)
    again(job)
    shown = views.nodes(job.coordinator, job.now)
    assert shown["isolations"] == {"last_hour": 1, "max": 2}
    out = shown["nodes"][1]
    assert (out["name"], out["state"], out["position"], out["ranks"]) == ("node-1", "cordoned", None, [])
    assert [(f["kind"], f["step"]) for f in out["failures"]] == [("hung", 5), ("hung", 9)]
    assert {key: out["cordon"][key] for key in ("quarantined", "leaves", "returning", "reason")} == {
        "quarantined": True,
        "leaves": False,
        "returning": False,
        "reason": "hung 2 times within an hour, at different steps",
    }
    assert (shown["nodes"][3]["position"], shown["nodes"][3]["ranks"], shown["nodes"][3]["cordon"]) == (1, [1], None)
    later = views.nodes(job.coordinator, job.now + 3601)
    assert later["nodes"][1]["failures"] == []
